"""Mixtures of diagonal Normals, with reparametrised samples."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.conditionals.base import Conditional, vector_length
from pyrovae.nets import Head, as_size

__all__ = ["NormalMixture"]


class _MixtureOfDiagonalNormals(dist.MixtureSameFamily):
    r"""A mixture whose samples have the gradient of the inverse of their distribution function, dim after dim.

        F_d(z_d | z_<d) = sum_c w_cd Phi((z_d - m_cd) / s_cd),
        w_cd proportional to pi_c prod_{j<d} N(z_j; m_cj, s_cj)
        d z_d = -(d F_d at fixed z_d) / p(z_d | z_<d)

    for what is held fixed in drawing z is u_d = F_d(z_d | z_<d), uniform and independent. Gradients of the weights are
    among it. The values themselves come from a component that is drawn first.
    """

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            z = self.sample(torch.Size(sample_shape))  # (..., L)
        components = self.component_distribution.base_dist
        log_weights = self.mixture_distribution.logits  # (..., C)
        moved: list[Tensor] = []
        for loc, scale, drawn in zip(components.loc.unbind(-1), components.scale.unbind(-1), z.unbind(-1), strict=True):
            each = torch.distributions.Normal(loc, scale, validate_args=False)  # (..., C)
            weights, at = log_weights.softmax(-1), drawn.unsqueeze(-1)
            cdf = (weights * each.cdf(at)).sum(-1)
            density = (weights * each.log_prob(at).exp()).sum(-1).detach()
            moved.append(drawn - (cdf - cdf.detach()) / density)
            log_weights = log_weights + each.log_prob(moved[-1].unsqueeze(-1))
        return torch.stack(moved, -1)


class NormalMixture(Conditional):
    r"""z ~ sum_c pi_c(h) N(loc_c(h), diag scale_c(h)^2), a vector with several modes.

        scale = min_scale + exp(v / 2)

    Samples are reparametrised, weights included, by implicit differentiation of the distribution function, dim after
    dim, so that every objective trains it: L small steps for a sample of L numbers. Pyro's `MixtureOfDiagNormals` has
    another gradient, which is wrong for the weights where the components' scales differ, and none for L = 1.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z.
        num_components: C; 1 is `DiagonalNormal`.
        min_scale: the floor of the scales, in the units of z; 0 for none.

    Returns:
        From `forward(features)`: a MixtureSameFamily of Normals.

    Raises:
        ValueError: if the event is no vector, or min_scale is negative; sizes as in `Conditional`.

    Source: Figurnov, Mohamed & Mnih 2018, https://arxiv.org/abs/1805.08498, section 4; Graves 2016,
    https://arxiv.org/abs/1607.05690.

    >>> q = NormalMixture(200, 16, num_components=3)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_components: int,
        min_scale: float = 1e-4,
    ) -> None:
        vector_length(event_shape, "NormalMixture")
        self.num_components = as_size(num_components, "num_components")
        if min_scale < 0:
            raise ValueError(f"min_scale is {min_scale}, expected at least 0; pass min_scale=1e-4")
        super().__init__(feature_shape, event_shape, num_parameters=2 * self.num_components)
        self.weights = Head(feature_shape, self.num_components)
        self.min_scale = min_scale

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """sum_c pi_c(h) N(loc_c(h), diag scale_c(h)^2)."""
        loc, log_variance = torch.stack(self.head(features), -2).chunk(2, -2)  # (..., C, L)
        (logits,) = self.weights(features)
        components = dist.Normal(loc, self.min_scale + torch.exp(log_variance / 2)).to_event(1)
        return _MixtureOfDiagonalNormals(dist.Categorical(logits=logits), components)
