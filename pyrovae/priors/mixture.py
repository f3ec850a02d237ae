"""A mixture of Normals, learned."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.distributions import MixtureSameFamily
from pyrovae.nets import as_shape, as_size
from pyrovae.priors.covariances import Covariance, DiagonalCovariance

__all__ = ["GaussianMixture"]


class GaussianMixture(nn.Module):
    r"""z ~ sum_k pi_k N(m_k, Sigma_k), with pi, m and Sigma learned, whatever the context.

    At the start pi_k = 1 / K, m_k ~ N(0, spread^2 I) and Sigma_k = (1 - spread^2) I: averaged over that draw of the
    means the prior is N(0, I), and `spread=0` with one component is exactly that. Equal components would stay equal.

    The component is summed out, so z alone is a site; a pair that needs it as a site samples it itself (VaDE), from
    `component()` and `given(c)`.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.
        num_components: K.
        covariance: of the components, or what makes it by `covariance(num_components, event_shape)`: for any event
            `DiagonalCovariance`, for vectors `FullCovariance`, `TiedCovariance`. Their `min_scale` is the floor of the
            standard deviations.
        spread: standard deviation of the initial means, in [0, 1).

    Returns:
        From `forward(context=None)`: a MixtureSameFamily of batch shape () and event shape `event_shape`; log_prob is
        exact, and there is no rsample, because the choice of the component has no gradient.

    Raises:
        TypeError: if a size is not an int, or covariance makes no `Covariance`.
        ValueError: if a size is not positive, spread is outside [0, 1), the covariance is of another shape, or its
            floor above the initial standard deviation; as the covariance.

    Source: Dilokthanakul et al. 2016, https://arxiv.org/abs/1611.02648, for a mixture as prior; in Tomczak & Welling
    2018, https://arxiv.org/abs/1705.07120, it is the baseline "MoG". The initialisation is this library's.

    >>> prior = GaussianMixture(2, num_components=1, spread=0.0)
    >>> prior().log_prob(torch.zeros(2))  # - log 2 pi
    tensor(-1.8379, grad_fn=<LogsumexpBackward0>)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        num_components: int,
        covariance: Covariance | Callable[..., Covariance] = DiagonalCovariance,
        spread: float = 0.5,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.num_components = as_size(num_components, "num_components")
        if not 0 <= spread < 1:
            raise ValueError(f"spread is {spread}, expected at least 0 and less than 1; pass spread=0.5")
        calls = callable(covariance) and not isinstance(covariance, nn.Module)
        made = covariance(self.num_components, self.event_shape) if calls else covariance
        if not isinstance(made, Covariance):
            raise TypeError(
                f"covariance is {covariance!r}, what makes a Covariance is wanted; pass covariance=FullCovariance, say"
            )
        shape, wanted = (made.num_components, *made.event_shape), (self.num_components, *self.event_shape)
        if shape != wanted:
            raise ValueError(f"covariance is of shape {shape}, wanted is {wanted}; pass {type(made).__name__} itself")
        self.covariance = made
        variance = 1 - spread**2
        if self.covariance.min_scale**2 >= variance:
            raise ValueError(
                f"min_scale is {self.covariance.min_scale} and spread {spread}, so that the floor is not below the "
                f"initial scale, {variance**0.5:.3g}; pass a covariance with min_scale=0.01"
            )
        self.covariance.isotropic_(variance)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(spread * torch.randn(self.num_components, *self.event_shape))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        return MixtureSameFamily(self.component(), self.components())

    @property
    def scale(self) -> Tensor:
        """Standard deviations of each component, (K, *event_shape)."""
        return self.covariance.variances().sqrt()

    def component(self) -> dist.TorchDistribution:
        """p(k), a Categorical."""
        return dist.Categorical(logits=self.logits)

    def components(self) -> dist.TorchDistribution:
        """p(z | k) of all k, of batch shape (K,)."""
        return self.given(torch.arange(self.num_components, device=self.loc.device))

    def given(self, k: Tensor) -> dist.TorchDistribution:
        """p(z | k) for components k (...), of batch shape (...)."""
        return self.covariance(self.loc[k], k)
