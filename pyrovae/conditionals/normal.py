"""Normals: of independent elements, posterior or likelihood, and of vectors whose elements are correlated."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.conditionals.base import Conditional, positive, vector_length
from pyrovae.nets import Head, as_size, near_zero_

__all__ = ["DiagonalNormal", "FixedNormal", "FullNormal", "LearnedNormal", "LowRankNormal", "SoftplusNormal"]


class DiagonalNormal(Conditional):
    """x ~ N(loc(h), scale(h)^2), element by element; as posterior z | x, or as likelihood x | z.

        scale = min_scale + exp(v / 2)

    where the head gives loc and v, up to the floor the log-variance: the paper's parameterisation, in which -log scale,
    the KL's barrier against collapse, is linear in v. The floor is this library's: it keeps scale positive where exp
    underflows, and the likelihood bounded, which maximum likelihood is not when scale may go to 0 (Mattei & Frellsen).

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x (or z).
        min_scale: the floor, in the units of x; 0 for none.

    Returns:
        From `forward(features)`: a Normal over reals.

    Raises:
        ValueError: if min_scale is negative; sizes as in `Conditional`.

    Source: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114, appendix C.2; Mattei & Frellsen 2018,
    https://arxiv.org/abs/1802.04826.

    >>> q = DiagonalNormal(200, 16)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, min_scale: float = 1e-4
    ) -> None:
        super().__init__(feature_shape, event_shape, num_parameters=2)
        if min_scale < 0:
            raise ValueError(f"min_scale is {min_scale}, expected at least 0; pass min_scale=1e-4")
        self.min_scale = min_scale

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """loc(h) and scale(h), (..., *event_shape)."""
        loc, log_variance = self.head(features)
        return loc, self.min_scale + torch.exp(log_variance / 2)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale(h)^2)."""
        return dist.Normal(*self.moments(features)).to_event(len(self.event_shape))


class _FullPrecision:
    """Mixed into a Normal over vectors: its products of matrices stay out of autocast."""

    loc: Tensor

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.autocast(self.loc.device.type, enabled=False):
            return super().rsample(torch.Size(sample_shape))  # type: ignore[misc]

    def log_prob(self, value: Tensor) -> Tensor:
        with torch.autocast(self.loc.device.type, enabled=False):
            return super().log_prob(value)  # type: ignore[misc]


class MultivariateNormal(_FullPrecision, dist.MultivariateNormal):
    pass


class LowRankMultivariateNormal(_FullPrecision, dist.LowRankMultivariateNormal):
    pass


class FullNormal(DiagonalNormal):
    r"""z ~ N(loc(h), C(h) C(h)^T), a vector with every correlation.

        C = diag(scale) + strictly lower triangle,    scale = min_scale + exp(v / 2)

    so that |det C| is the product of the scales, as for `DiagonalNormal`, which it is where the triangle is zero. It
    starts near that: the triangle's layer is a hundredth of torch's own start.

    Its KL from a diagonal Normal has no closed form in torch or Pyro: an objective estimates it with its samples.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z; the head gives L (L + 3) / 2 numbers, and a density takes L^2 operations.
        min_scale: the floor of the scales, in the units of z; 0 for none.

    Returns:
        From `forward(features)`: a MultivariateNormal.

    Raises:
        ValueError: if the event is no vector; else as in `DiagonalNormal`.

    Source: Kingma & Welling 2019, https://arxiv.org/abs/1906.02691, section 2.5.1.

    >>> q = FullNormal(200, 16)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, min_scale: float = 1e-4
    ) -> None:
        length = vector_length(event_shape, "FullNormal")
        super().__init__(feature_shape, event_shape, min_scale=min_scale)
        self.below = Head(feature_shape, length * (length - 1) // 2) if length > 1 else None
        if self.below is not None:
            near_zero_(self.below.layer)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), C(h) C(h)^T)."""
        loc, scale = self.moments(features)
        scale_tril = torch.diag_embed(scale)  # (..., L, L)
        if self.below is not None:
            rows, columns = torch.tril_indices(loc.size(-1), loc.size(-1), -1, device=loc.device)
            triangle = torch.zeros_like(scale_tril)
            triangle[..., rows, columns] = self.below(features)[0]
            scale_tril = scale_tril + triangle
        return MultivariateNormal(loc, scale_tril=scale_tril)


class LowRankNormal(DiagonalNormal):
    r"""z ~ N(loc(h), W(h) W(h)^T + diag scale(h)^2), a vector whose elements have `rank` factors in common.

    Up to rank L - 1 between `DiagonalNormal` (W = 0) and `FullNormal`, which has no more covariances than rank L. A
    density takes L rank^2 operations. W starts at a tenth of torch's own start: at zero it would have no gradient.

    Its KL from a diagonal Normal has no closed form in torch or Pyro: an objective estimates it with its samples.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z.
        rank: columns of W, up to L.
        min_scale: the floor of the scales, in the units of z; 0 for none.

    Returns:
        From `forward(features)`: a LowRankMultivariateNormal.

    Raises:
        ValueError: if the event is no vector or the rank above its length; else as in `DiagonalNormal`.

    Source: Ong, Nott & Smith 2018, https://arxiv.org/abs/1701.03208, of one posterior for all; Rezende, Mohamed &
    Wierstra 2014, https://arxiv.org/abs/1401.4082, section 4.3, have a rank-one form of the precision.

    >>> q = LowRankNormal(200, 16, rank=2)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        rank: int = 1,
        min_scale: float = 1e-4,
    ) -> None:
        length = vector_length(event_shape, "LowRankNormal")
        self.rank = as_size(rank, "rank")
        if self.rank > length:
            raise ValueError(f"rank is {rank}, a covariance of {length} numbers has rank {length}; pass rank={length}")
        super().__init__(feature_shape, event_shape, min_scale=min_scale)
        self.factors = Head(feature_shape, length, self.rank)
        with torch.no_grad():
            for parameter in self.factors.parameters():
                parameter.mul_(0.1)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), W(h) W(h)^T + diag scale(h)^2)."""
        loc, scale = self.moments(features)
        factors = torch.stack(self.factors(features), -1)  # (..., L, rank)
        with torch.autocast(loc.device.type, enabled=False):
            return LowRankMultivariateNormal(loc, factors, scale**2)


class SoftplusNormal(DiagonalNormal):
    """z ~ N(loc(h), scale(h)^2) with variance softplus(v) of the head's v, and min_scale^2 more.

    Its variance grows with v no faster than v itself, where that of `DiagonalNormal` is exp(v).

    Args:
        feature_shape, event_shape, min_scale: as for `DiagonalNormal`.

    Returns:
        From `forward(features)`: a Normal over reals.

    Source: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282; the floor is this library's.
    """

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """loc(h) and scale(h), (..., *event_shape)."""
        loc, v = self.head(features)
        return loc, (softplus(v) + self.min_scale**2).sqrt()  # the floor inside: the root of 0 has no derivative


class FixedNormal(Conditional):
    """x ~ N(loc(h), scale^2) with a given scale: half the squared error over scale^2, plus its constant.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.
        scale: standard deviation of each element, in the units of x.

    Returns:
        From `forward(features)`: a Normal over reals.

    Raises:
        ValueError: if scale is not positive; sizes as in `Conditional`.
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, scale: float = 1.0
    ) -> None:
        super().__init__(feature_shape, event_shape)
        self.scale = positive("scale", scale)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale^2)."""
        (loc,) = self.head(features)
        # Filled on the device, where Normal(loc, float) copies from the host; and 0.1 in float64 is 0.1 in full.
        return dist.Normal(loc, loc.new_full((), self.scale)).to_event(len(self.event_shape))


class LearnedNormal(Conditional):
    """x ~ N(loc(h), scale^2) with one learned scale, shared by all elements and data.

    Learning it balances reconstruction against KL, which a fixed scale leaves to a hand-tuned weight. It has no floor:
    one scale for all data goes to 0 only if every datum is reproduced exactly.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.
        initial_scale: where the scale starts, in the units of x.

    Returns:
        From `forward(features)`: a Normal over reals.

    Raises:
        ValueError: if initial_scale is not positive; sizes as in `Conditional`.

    Source: Rybkin, Daniilidis & Levine 2021 (sigma-VAE), https://orybkin.github.io/sigma-vae
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, initial_scale: float = 1.0
    ) -> None:
        super().__init__(feature_shape, event_shape)
        self.log_scale = nn.Parameter(torch.tensor(math.log(positive("initial_scale", initial_scale))))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale^2)."""
        (loc,) = self.head(features)
        return dist.Normal(loc, self.log_scale.exp()).to_event(len(self.event_shape))
