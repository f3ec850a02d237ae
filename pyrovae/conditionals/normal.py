"""Normals of independent elements: posteriors and likelihoods."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals.base import Conditional, positive

__all__ = ["DiagonalNormal", "FixedNormal", "LearnedNormal"]


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

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale(h)^2)."""
        loc, log_variance = self.head(features)
        scale = self.min_scale + torch.exp(log_variance / 2)
        return dist.Normal(loc, scale).to_event(len(self.event_shape))


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
