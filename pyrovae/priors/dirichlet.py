"""A Dirichlet over topics, as a Normal in the softmax basis."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.nets import as_shape

__all__ = ["LaplaceDirichlet"]


class LaplaceDirichlet(nn.Module):
    r"""The Laplace approximation of softmax(z) ~ Dirichlet(alpha), whatever the context: a Normal over z.

        mean_k = log alpha_k - 1/K sum_i log alpha_i
        variance_k = (1 - 2/K) / alpha_k + 1/K^2 sum_i 1 / alpha_i

    In the softmax basis the density of a Dirichlet has its mode at the Dirichlet's mean, inside the simplex, however
    small alpha is. The inverse Hessian there (on sum z = 0) is P diag(1 / alpha) P, with P = I - 1 1^T / K; the
    variances are its diagonal, and its other entries, of order 1/K, are dropped, as the paper does.

    Args:
        event_shape: K, the number of topics.
        concentration: alpha, one positive number for all topics or one for each.

    Returns:
        From `forward(context=None)`: a Normal of batch shape () and event shape (K,).

    Raises:
        TypeError: if a size is not an int.
        ValueError: for an event that is no vector of at least two, or a concentration that is not positive or has
            another length.

    Source: MacKay 1998, "Choice of basis for Laplace approximation"; Hennig et al. 2012, "Kernel topic models";
    Srivastava & Sutton 2017, https://arxiv.org/abs/1703.01488, eq. 3.

    >>> p = LaplaceDirichlet(4, concentration=0.5)()
    >>> p.mean, p.variance
    (tensor([0., 0., 0., 0.]), tensor([1.5000, 1.5000, 1.5000, 1.5000]))
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, concentration: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        if len(self.event_shape) != 1 or self.event_shape[0] < 2:
            raise ValueError(f"event_shape is {self.event_shape}, a Dirichlet has a vector of at least 2; pass 50, say")
        (topics,) = self.event_shape
        alpha = torch.as_tensor(concentration, dtype=torch.float64)
        if alpha.shape not in ((), (topics,)) or not bool((alpha > 0).all()) or not bool(alpha.isfinite().all()):
            raise ValueError(
                f"concentration is {concentration}, expected a positive number, or {topics} of them; "
                "pass concentration=1.0"
            )
        alpha = alpha.expand(topics)
        loc = alpha.log() - alpha.log().mean()
        variance = (1 - 2 / topics) / alpha + (1 / alpha).sum() / topics**2
        # Constants, not state; and computed in float64 whatever they are kept in.
        dtype = torch.get_default_dtype()
        self.register_buffer("loc", loc.to(dtype), persistent=False)
        self.register_buffer("scale", variance.sqrt().to(dtype), persistent=False)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        return dist.Normal(self.loc, self.scale).to_event(1)
