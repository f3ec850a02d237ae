"""A mixture of diagonal Normals, learned."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.nets import as_shape

__all__ = ["GaussianMixture"]


class GaussianMixture(nn.Module):
    r"""z ~ sum_k pi_k N(m_k, diag s_k^2), with pi, m and s learned, whatever the context.

    At the start pi_k = 1 / K, m_k ~ N(0, spread^2 I) and s_k^2 = 1 - spread^2: averaged over that draw of the means the
    prior is N(0, I), and `spread=0` with one component is exactly that. Equal components would stay equal.

    The component is summed out, so z alone is a site; a pair that needs it as a site samples it itself (VaDE), from
    `component()` and `given(c)`.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.
        num_components: K.
        spread: standard deviation of the initial means, in [0, 1).
        min_scale: the floor of s_k, in the units of z: s_k = min_scale + exp(log_scale_k).

    Returns:
        From `forward(context=None)`: a MixtureSameFamily of batch shape () and event shape `event_shape`; log_prob is
        exact, and there is no rsample, because the choice of the component has no gradient.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, spread is outside [0, 1), or min_scale outside [0, initial s_k).

    Source: Dilokthanakul et al. 2016, https://arxiv.org/abs/1611.02648, for a mixture as prior; in Tomczak & Welling
    2018, https://arxiv.org/abs/1705.07120, it is the baseline "MoG". The initialisation is this library's.

    >>> prior = GaussianMixture(2, num_components=1, spread=0.0)
    >>> prior().log_prob(torch.zeros(2))  # - log 2 pi
    tensor(-1.8379, grad_fn=<LogsumexpBackward0>)
    """

    def __init__(
        self, event_shape: int | Sequence[int], *, num_components: int, spread: float = 0.5, min_scale: float = 0.0
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        (self.num_components,) = as_shape(num_components, "num_components")
        if not 0 <= spread < 1:
            raise ValueError(f"spread is {spread}, expected at least 0 and less than 1; pass spread=0.5")
        scale = math.sqrt(1 - spread**2)
        if not 0 <= min_scale < scale:
            raise ValueError(
                f"min_scale is {min_scale}, expected at least 0 and less than {scale:.3g}, the initial scale; "
                "pass min_scale=0.01"
            )
        self.min_scale = min_scale
        shape = (self.num_components, *self.event_shape)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(spread * torch.randn(shape))
        self.log_scale = nn.Parameter(torch.full(shape, math.log(scale - min_scale)))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        components = dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))
        return dist.MixtureSameFamily(self.component(), components)

    @property
    def scale(self) -> Tensor:
        """s, (K, *event_shape)."""
        return self.min_scale + self.log_scale.exp()

    def component(self) -> dist.TorchDistribution:
        """p(k), a Categorical."""
        return dist.Categorical(logits=self.logits)

    def given(self, k: Tensor) -> dist.TorchDistribution:
        """p(z | k) for components k (...), of batch shape (...)."""
        return dist.Normal(self.loc[k], self.scale[k]).to_event(len(self.event_shape))
