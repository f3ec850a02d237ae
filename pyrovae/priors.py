"""Priors: modules called as `prior(context=None)` that return the Distribution p(z), or p(z | context).

The contract: the returned distribution has event shape `event_shape` (z of one datum) and, without a context, an empty
batch shape, which the model's plate expands. A prior that depends on its context takes the context's leading dims as
batch shape; one that does not ignores it. Constants are buffers, so that `.to(device)` and `.double()` move them.
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.nets import as_shape

__all__ = ["LaplaceDirichlet", "StandardNormal"]


class StandardNormal(nn.Module):
    """z ~ N(0, I), whatever the context.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.

    Returns:
        From `forward(context=None)`: a Normal of batch shape () and event shape `event_shape`.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive.

    Source: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114

    >>> StandardNormal(2)().log_prob(torch.zeros(5, 2))  # - log 2 pi
    tensor([-1.8379, -1.8379, -1.8379, -1.8379, -1.8379])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        # Constants, not state: a checkpoint has nothing to say about them.
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))


class LaplaceDirichlet(nn.Module):
    r"""z ~ N(mu, diag(sigma^2)), the Laplace approximation to z with softmax(z) ~ Dirichlet(alpha, ..., alpha).

        mu_k = 0,    sigma_k^2 = (1 - 1 / K) / alpha

    For any alpha_k: mu_k = log alpha_k - mean(log alpha), and sigma_k^2 = (1 - 2 / K) / alpha_k + sum(1 / alpha) / K^2.

    Args:
        event_shape: K, at least 2.
        concentration: alpha, positive.

    Returns:
        From `forward(context=None)`: a Normal of batch shape () and event shape (K,).

    Raises:
        TypeError, ValueError: for another K or alpha.

    Source: Srivastava & Sutton 2017, https://arxiv.org/abs/1703.01488, eq. 4 (the diagonal of MacKay's covariance).

    >>> LaplaceDirichlet(4)().variance
    tensor([0.7500, 0.7500, 0.7500, 0.7500])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, concentration: float = 1.0) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        if len(self.event_shape) != 1 or self.event_shape[0] < 2:
            raise ValueError(f"event_shape is {event_shape}, a Dirichlet has at least 2 parts; pass event_shape=50")
        if not 0 < concentration < float("inf"):
            raise ValueError(f"concentration is {concentration}, expected a positive number; pass concentration=1.0")
        alpha, size = torch.full(self.event_shape, float(concentration)), self.event_shape[0]
        loc, variance = alpha.log() - alpha.log().mean(), (1 - 2 / size) / alpha + (1 / alpha).sum() / size**2
        self.register_buffer("loc", loc, persistent=False)
        self.register_buffer("scale", variance.sqrt(), persistent=False)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        return dist.Normal(self.loc, self.scale).to_event(1)
