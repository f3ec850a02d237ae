"""Covariances of the components of a Gaussian mixture: one part for each shape that they may have."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyrovae.conditionals.base import vector_length
from pyrovae.conditionals.normal import MultivariateNormal
from pyrovae.nets import as_shape, as_size

__all__ = ["Covariance", "DiagonalCovariance", "FullCovariance", "TiedCovariance"]


class Covariance(nn.Module, ABC):
    """Base of the covariances of C components, learned: the Normals that they make, and their M-step.

    Args:
        num_components: C.
        event_shape: shape of one x; an int stands for a vector.
        min_scale: floor of each standard deviation, in every direction. Without it the likelihood has no upper bound:
            a component that falls onto one datum, or onto a subspace, has any density.

    Raises:
        ValueError: for a negative min_scale; sizes as in `as_shape`.
    """

    covariance_type: ClassVar[str]  # what scikit-learn's GaussianMixture calls this shape

    def __init__(self, num_components: int, event_shape: int | Sequence[int], *, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.num_components = as_size(num_components, "num_components")
        self.event_shape = as_shape(event_shape)
        if not 0 <= min_scale < math.inf:
            raise ValueError(f"min_scale is {min_scale}, expected at least 0; pass min_scale=1e-3")
        self.min_scale = float(min_scale)

    @abstractmethod
    def forward(self, loc: Tensor, c: Tensor) -> dist.TorchDistribution:
        """N(loc, Sigma_c) for means (..., *event_shape) of components c (...)."""

    @abstractmethod
    def scatter(self, responsibilities: Tensor, x: Tensor, loc: Tensor) -> Tensor:
        """The covariances that maximise the expected log-likelihood, in the shape that `set_` takes.

        A component without responsibilities, where any is as good, has the one it had.

        Args:
            responsibilities: q(c_n = k), (N, C).
            x: data (N, *event_shape).
            loc: the components' means (C, *event_shape).
        """

    @abstractmethod
    def set_(self, covariance: Tensor) -> None:
        """Take these covariances, raised to the floor where they lie below it."""

    @abstractmethod
    def isotropic_(self, variance: float) -> None:
        """Take this variance in every direction."""

    @abstractmethod
    def matrices(self) -> Tensor:
        """Sigma of each component, of x as a flat vector: (C, D, D)."""

    @abstractmethod
    def variances(self) -> Tensor:
        """The diagonal of each Sigma, (C, *event_shape)."""

    @abstractmethod
    def precisions(self) -> Tensor:
        """The diagonal of each Sigma^-1, (C, *event_shape)."""

    def _above_floor(self, variance: Tensor, noise: Tensor) -> Tensor:
        """Variances without the floor's own part; a little is left, or what rounding makes of 0 where that is more.

        Raises:
            ValueError: where a variance is no more than noise and there is no floor.
        """
        floor = self.min_scale**2
        if floor == 0 and not (variance > noise).all():
            raise ValueError(
                "a component has no variance left in some direction, so that its density has no bound; pass a "
                "covariance with min_scale=1e-3, or fewer components"
            )
        return (variance - floor).clamp(min=noise.clamp(min=1e-6 * floor))


class DiagonalCovariance(Covariance):
    r"""Sigma_k = diag(s_k^2 + min_scale^2), events of any shape.

    Args:
        num_components, event_shape, min_scale: as in `Covariance`.

    >>> DiagonalCovariance(3, 2, min_scale=0.0)(torch.zeros(4, 2), torch.tensor([0, 2, 1, 1])).variance
    tensor([[1., 1.],
            [1., 1.],
            [1., 1.],
            [1., 1.]], grad_fn=<...>)
    """

    covariance_type = "diag"

    def __init__(self, num_components: int, event_shape: int | Sequence[int], *, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, event_shape, min_scale=min_scale)
        self.log_scale = nn.Parameter(torch.zeros(self.num_components, *self.event_shape))

    def forward(self, loc: Tensor, c: Tensor) -> dist.TorchDistribution:  # noqa: D102
        return dist.Normal(loc, self.variances().sqrt()[c]).to_event(len(self.event_shape))

    def scatter(self, responsibilities: Tensor, x: Tensor, loc: Tensor) -> Tensor:
        """Variances (C, *event_shape)."""
        shares = _shares(responsibilities)
        found = torch.stack([torch.tensordot(shares[:, k], (x - loc[k]) ** 2, 1) for k in range(len(loc))])
        return torch.where(with_data(responsibilities, found), found, self.variances())

    @torch.no_grad()
    def set_(self, covariance: Tensor) -> None:  # noqa: D102
        self.log_scale.copy_(self._above_floor(covariance, covariance.new_zeros(())).log() / 2)

    def isotropic_(self, variance: float) -> None:  # noqa: D102
        self.set_(torch.full_like(self.log_scale, variance))

    def matrices(self) -> Tensor:  # noqa: D102
        return self.variances().flatten(1).diag_embed()

    def variances(self) -> Tensor:  # noqa: D102
        return (2 * self.log_scale).exp() + self.min_scale**2

    def precisions(self) -> Tensor:  # noqa: D102
        return 1 / self.variances()


class FullCovariance(Covariance):
    r"""Sigma_k = L_k L_k^T + min_scale^2 I, events that are vectors.

    The M-step raises the eigenvalues of the scatter matrix to the floor, which is its maximum under that constraint, or
    to one rounding of the largest of them: below that they are noise. Factors are made in float64 whatever the dtype.

    Args:
        num_components, event_shape, min_scale: as in `Covariance`.

    Raises:
        ValueError: for events that are no vectors.

    >>> FullCovariance(3, 2, min_scale=0.0)(torch.zeros(1, 2), torch.tensor([1])).covariance_matrix
    tensor([[[1., 0.],
             [0., 1.]]], grad_fn=<...>)
    """

    covariance_type = "full"

    def __init__(self, num_components: int, event_shape: int | Sequence[int], *, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, event_shape, min_scale=min_scale)
        dim = vector_length(event_shape, type(self).__name__)
        self.raw_tril = nn.Parameter(torch.zeros(*self._batch(), dim, dim))  # L = I

    def _batch(self) -> tuple[int, ...]:
        return (self.num_components,)

    def forward(self, loc: Tensor, c: Tensor) -> dist.TorchDistribution:  # noqa: D102
        tril = torch.linalg.cholesky(self._sum()).to(self.raw_tril.dtype)
        return MultivariateNormal(loc, scale_tril=self._each(tril)[c])

    def scatter(self, responsibilities: Tensor, x: Tensor, loc: Tensor) -> Tensor:
        """Covariances (C, D, D)."""
        found = scatter_matrices(_shares(responsibilities), x, loc)
        return torch.where(with_data(responsibilities, found), found, self.matrices())

    @torch.no_grad()
    def set_(self, covariance: Tensor) -> None:  # noqa: D102
        values, vectors = torch.linalg.eigh(covariance.double())
        rounding = max(torch.finfo(covariance.dtype).eps, values.size(-1) * torch.finfo(values.dtype).eps)
        raised = (vectors * self._above_floor(values, rounding * values[..., -1:])[..., None, :]) @ vectors.mT
        self.raw_tril.copy_(transform_to(constraints.lower_cholesky).inv(torch.linalg.cholesky(raised)))

    def isotropic_(self, variance: float) -> None:  # noqa: D102
        self.set_(variance * torch.eye(self.raw_tril.size(-1)).to(self.raw_tril).expand_as(self.raw_tril))

    def matrices(self) -> Tensor:  # noqa: D102
        return self._each(self._sum().to(self.raw_tril.dtype))

    def variances(self) -> Tensor:  # noqa: D102
        return self.matrices().diagonal(dim1=-2, dim2=-1)

    def precisions(self) -> Tensor:  # noqa: D102
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._sum()))
        return self._each(inverse.to(self.raw_tril.dtype)).diagonal(dim1=-2, dim2=-1)

    def _each(self, matrix: Tensor) -> Tensor:
        """The matrix of each component, (C, D, D)."""
        return matrix.expand(self.num_components, -1, -1)

    def _sum(self) -> Tensor:
        """L L^T + min_scale^2 I in float64: rounded to less, it need not be positive."""
        tril = transform_to(constraints.lower_cholesky)(self.raw_tril.double())
        identity = torch.eye(tril.size(-1), dtype=tril.dtype, device=tril.device)
        with torch.autocast(tril.device.type, enabled=False):
            return tril @ tril.mT + self.min_scale**2 * identity


class TiedCovariance(FullCovariance):
    r"""Sigma_k = L L^T + min_scale^2 I, one for all components: linear discriminants without labels.

    Args:
        num_components, event_shape, min_scale: as in `Covariance`.

    Raises:
        ValueError: for events that are no vectors.

    >>> TiedCovariance(3, 2).raw_tril.shape
    torch.Size([2, 2])
    """

    covariance_type = "tied"

    def _batch(self) -> tuple[int, ...]:
        return ()

    def scatter(self, responsibilities: Tensor, x: Tensor, loc: Tensor) -> Tensor:
        """The covariance (D, D)."""
        return scatter_matrices(responsibilities / len(x), x, loc).sum(0)


def scatter_matrices(weights: Tensor, x: Tensor, loc: Tensor) -> Tensor:
    """sum_n w_nk (x_n - m_k) (x_n - m_k)^T: (C, D, D) for weights (N, C), x (N, D) and m (C, D)."""
    residuals = [x - center for center in loc]
    return torch.stack([(w[:, None] * r).T @ r for w, r in zip(weights.unbind(1), residuals, strict=True)])


def with_data(responsibilities: Tensor, like: Tensor) -> Tensor:
    """Whether each component has any of the responsibilities (N, C), to choose by among numbers (C, ...)."""
    counts = responsibilities.sum(0)
    return (counts >= torch.finfo(counts.dtype).tiny).reshape(-1, *[1] * (like.dim() - 1))


def _shares(responsibilities: Tensor) -> Tensor:
    """Each component's responsibilities, of sum 1."""
    return responsibilities / responsibilities.sum(0).clamp(min=torch.finfo(responsibilities.dtype).tiny)
