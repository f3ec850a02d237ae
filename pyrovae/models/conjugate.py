r"""Conjugate families: priors of the parameters of a mixture's components, and q of the same family.

Each part holds its prior's numbers as buffers, and those of q as parameters that start there. With the components of
the data known, q is the posterior in closed form, `update_`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence, transform_to
from torch.distributions.constraints import Constraint

from pyrovae.conditionals.base import positive, vector_length
from pyrovae.distributions import Wishart
from pyrovae.models.mixture import as_one_hot, at_least_two_classes, product
from pyrovae.nets import as_shape, as_size
from pyrovae.priors.covariances import Covariance, DiagonalCovariance, FullCovariance, scatter_matrices

__all__ = ["Conjugate", "DirichletClasses", "NormalGamma", "NormalWishart"]


class Conjugate(nn.Module, ABC):
    """Base of the families: p of the parameters of C components, fixed, and q of the same family, learned.

    Args:
        event_shape: shape of one x.
        prior: the numbers of the prior by name, each of C components, with where they may lie.
    """

    apart: ClassVar[str]  # of its parameters, the one by which components differ at the start

    def __init__(self, event_shape: tuple[int, ...], prior: dict[str, tuple[Tensor, Constraint]]) -> None:
        super().__init__()
        self.event_shape = event_shape
        self.constraints = {name: constraint for name, (_, constraint) in prior.items()}
        for name, (value, constraint) in prior.items():
            self.register_buffer(f"prior_{name}", value.clone())
            self.register_parameter(name, nn.Parameter(transform_to(constraint).inv(value).clone()))

    @property
    def prior(self) -> SimpleNamespace:
        """The numbers of the prior."""
        return SimpleNamespace(**{name: getattr(self, f"prior_{name}") for name in self.constraints})

    @property
    def posterior(self) -> SimpleNamespace:
        """The numbers of q."""
        return SimpleNamespace(**{name: transform_to(c)(getattr(self, name)) for name, c in self.constraints.items()})

    @torch.no_grad()
    def set_(self, numbers: SimpleNamespace) -> None:
        """Take these numbers for q."""
        for name, constraint in self.constraints.items():
            getattr(self, name).copy_(transform_to(constraint).inv(getattr(numbers, name)))

    @torch.no_grad()
    def move_apart_(self) -> None:
        """Move q's components apart at random: equal components would stay equal."""
        getattr(self, self.apart).add_(torch.randn_like(getattr(self, self.apart)))

    @abstractmethod
    def draw(self, numbers: SimpleNamespace) -> tuple[Tensor, ...]:
        """Sample the sites of the parameters, each with C components in its event."""

    @abstractmethod
    def likelihood(self, drawn: tuple[Tensor, ...], c: Tensor) -> dist.TorchDistribution:
        """p(x | c) at drawn parameters."""

    @abstractmethod
    def expected_log_prob(self, x: Tensor) -> Tensor:
        """E_q [log p(x | c)], (N, C) in nats."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL(q || p) of all components together."""

    @abstractmethod
    def update_(self, responsibilities: Tensor, x: Tensor) -> None:
        """Make q the posterior of data x (N, *event_shape) whose components are known by their q(c), (N, C)."""

    @property
    @abstractmethod
    def means(self) -> Tensor:
        """E[x | c] at q's mean, (C, *event_shape)."""

    def points(self, x: Tensor) -> Tensor:
        """The data as vectors, for k-means: (N, D)."""
        return x.flatten(1)


class _Normals(Conjugate):
    r"""mu_k | Lambda_k ~ N(m_k, (beta_k Lambda_k)^-1); a subclass says what Lambda_k is."""

    apart = "loc"

    def _statistics(self, responsibilities: Tensor, x: Tensor) -> tuple[Tensor, Tensor, SimpleNamespace]:
        """Means of the components' data; weight of their distance from the prior's mean; m, beta and nu of q."""
        prior, counts = self.prior, responsibilities.sum(0)
        rest = [1] * len(self.event_shape)
        sums = torch.tensordot(responsibilities.T, x, 1)
        means = sums / counts.clamp(min=torch.finfo(counts.dtype).tiny).reshape(-1, *rest)
        strength = prior.strength + counts
        loc = (prior.strength.reshape(-1, *rest) * prior.loc + sums) / strength.reshape(-1, *rest)
        weight = prior.strength * counts / strength
        return means, weight, SimpleNamespace(loc=loc, strength=strength, df=prior.df + counts)

    @property
    def means(self) -> Tensor:
        return self.posterior.loc

    @abstractmethod
    def plain_covariance(self) -> tuple[type[Covariance], Tensor]:
        """The covariances E_q [Lambda]^-1, and the part of a `GaussianMixture` that holds such."""


class NormalGamma(_Normals):
    r"""Means and precisions of diagonal Normals, element by element d of an event of any shape.

        tau_kd ~ Gamma(nu_k / 2, s_kd / 2)        mu_kd | tau_kd ~ N(m_kd, (beta_k tau_kd)^-1)

    Args:
        num_components: C.
        event_shape: shape of one x.
        loc: m of the prior.
        strength: beta of the prior, how many data its mean is worth.
        df: nu of the prior, how many data its variance is worth.
        scale: sqrt(s / nu) of the prior, the standard deviation that it expects.

    Raises:
        ValueError: for a strength, df or scale that is not positive; sizes as in `as_shape`.

    Source: Bishop 2006, section 2.3.6 and eq. 10.40; Murphy 2007, "Conjugate Bayesian analysis of the Gaussian
    distribution", section 3.

    >>> NormalGamma(3, (2, 2)).kl()
    tensor(0., grad_fn=<...>)
    """

    def __init__(
        self,
        num_components: int,
        event_shape: int | Sequence[int],
        *,
        loc: float = 0.0,
        strength: float = 1.0,
        df: float = 3.0,
        scale: float = 1.0,
    ) -> None:
        event_shape, count = as_shape(event_shape), as_size(num_components, "num_components")
        of_all = torch.ones(count, *event_shape)
        df = positive("df", df)
        super().__init__(
            event_shape,
            {
                "loc": (loc * of_all, constraints.real),
                "strength": (torch.full((count,), positive("strength", strength)), constraints.positive),
                "df": (torch.full((count,), df), constraints.positive),
                "scatter": (df * positive("scale", scale) ** 2 * of_all, constraints.positive),
            },
        )

    def _column(self, number: Tensor) -> Tensor:
        return number.reshape(-1, *[1] * len(self.event_shape))

    def _precision(self, numbers: SimpleNamespace) -> dist.TorchDistribution:
        shape = self._column(numbers.df).expand_as(numbers.scatter) / 2
        return dist.Gamma(shape, numbers.scatter / 2).to_event(1 + len(self.event_shape))

    def draw(self, numbers: SimpleNamespace) -> tuple[Tensor, ...]:  # noqa: D102
        precision = pyro.sample("precision", self._precision(numbers))
        scale = (self._column(numbers.strength) * precision).rsqrt()
        loc = pyro.sample("loc", dist.Normal(numbers.loc, scale).to_event(1 + len(self.event_shape)))
        return loc, precision

    def likelihood(self, drawn: tuple[Tensor, ...], c: Tensor) -> dist.TorchDistribution:  # noqa: D102
        loc, precision = (taken(value, c, len(self.event_shape)) for value in drawn)
        return dist.Normal(loc, precision.rsqrt()).to_event(len(self.event_shape))

    def expected_log_prob(self, x: Tensor) -> Tensor:  # noqa: D102
        q = self.posterior
        df, strength = self._column(q.df), self._column(q.strength)
        constant = (df / 2).digamma() - (q.scatter / 2).log() - math.log(2 * math.pi) - 1 / strength
        columns = [
            (each - precision * (x - loc) ** 2).flatten(1).sum(1) / 2
            for each, precision, loc in zip(constant, df / q.scatter, q.loc, strict=True)
        ]
        return torch.stack(columns, 1)

    def kl(self) -> Tensor:  # noqa: D102
        p, q = self.prior, self.posterior
        of_precision = kl_divergence(self._precision(q), self._precision(p))
        ratio = self._column(p.strength / q.strength)
        distance = self._column(p.strength * q.df) * (q.loc - p.loc) ** 2 / q.scatter
        return of_precision + (ratio - 1 - ratio.log() + distance).sum() / 2

    def update_(self, responsibilities: Tensor, x: Tensor) -> None:  # noqa: D102
        means, weight, numbers = self._statistics(responsibilities, x)
        within = [torch.tensordot(r, (x - m) ** 2, 1) for r, m in zip(responsibilities.T, means, strict=True)]
        between = self._column(weight) * (means - self.prior.loc) ** 2
        numbers.scatter = self.prior.scatter + torch.stack(within) + between
        self.set_(numbers)

    def plain_covariance(self) -> tuple[type[Covariance], Tensor]:  # noqa: D102
        q = self.posterior
        return DiagonalCovariance, q.scatter / self._column(q.df)


class NormalWishart(_Normals):
    r"""Means and precisions of Normals with full covariances, over vectors.

        Lambda_k ~ Wishart(nu_k, W_k)        mu_k | Lambda_k ~ N(m_k, (beta_k Lambda_k)^-1)

    Args:
        num_components: C.
        event_shape: D, length of one x.
        loc: m of the prior, in each direction.
        strength: beta of the prior, how many data its mean is worth.
        df: nu of the prior, greater than D - 1. Default: D + 2, the first whole number with a mean of the covariance.
        scale: W = I / (nu scale^2): the standard deviation that the prior expects.

    Raises:
        ValueError: for a strength or scale that is not positive, df of D - 1 or less, events that are no vectors.

    Source: Bishop 2006, eq. 10.40 and B.78.

    >>> NormalWishart(3, 2).kl().abs() < 1e-4
    tensor(True)
    """

    def __init__(
        self,
        num_components: int,
        event_shape: int | Sequence[int],
        *,
        loc: float = 0.0,
        strength: float = 1.0,
        df: float | None = None,
        scale: float = 1.0,
    ) -> None:
        dim, count = vector_length(event_shape, "NormalWishart"), as_size(num_components, "num_components")
        df = dim + 2.0 if df is None else float(df)
        if not dim - 1 < df < math.inf:
            raise ValueError(f"df is {df}, greater than D - 1 = {dim - 1} is wanted; leave it out for {dim + 2}")
        scale_tril = torch.eye(dim).expand(count, dim, dim) / (math.sqrt(df) * positive("scale", scale))
        super().__init__(
            (dim,),
            {
                "loc": (torch.full((count, dim), float(loc)), constraints.real),
                "strength": (torch.full((count,), positive("strength", strength)), constraints.positive),
                "df": (torch.full((count,), df), constraints.greater_than(dim - 1)),
                "scale_tril": (scale_tril, constraints.lower_cholesky),
            },
        )

    def draw(self, numbers: SimpleNamespace) -> tuple[Tensor, ...]:  # noqa: D102
        precision = pyro.sample("precision", Wishart(numbers.df, numbers.scale_tril).to_event(1))
        of_mean = dist.MultivariateNormal(numbers.loc, precision_matrix=numbers.strength[:, None, None] * precision)
        return pyro.sample("loc", of_mean.to_event(1)), precision

    def likelihood(self, drawn: tuple[Tensor, ...], c: Tensor) -> dist.TorchDistribution:  # noqa: D102
        loc, precision = drawn
        return dist.MultivariateNormal(taken(loc, c, 1), precision_matrix=taken(precision, c, 2))

    def expected_log_prob(self, x: Tensor) -> Tensor:  # noqa: D102
        q, dim = self.posterior, self.event_shape[0]
        steps = torch.arange(dim, dtype=x.dtype, device=x.device)
        log_det = (((q.df[:, None] - steps) / 2).digamma() + math.log(2)).sum(1)
        log_det = log_det + 2 * q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = log_det - dim * (math.log(2 * math.pi) + 1 / q.strength)
        distance = _in_full(x - q.loc[:, None], q.scale_tril).pow(2).sum(-1)  # (C, N)
        return ((constant[:, None] - q.df[:, None] * distance) / 2).T

    def kl(self) -> Tensor:  # noqa: D102
        p, q = self.prior, self.posterior
        of_precision = kl_divergence(Wishart(q.df, q.scale_tril), Wishart(p.df, p.scale_tril)).sum()
        ratio = p.strength / q.strength
        shift = _in_full((q.loc - p.loc)[:, None], q.scale_tril).pow(2).sum((1, 2))
        of_mean = self.event_shape[0] * (ratio - 1 - ratio.log()) + p.strength * q.df * shift
        return of_precision + of_mean.sum() / 2

    def update_(self, responsibilities: Tensor, x: Tensor) -> None:  # noqa: D102
        means, weight, numbers = self._statistics(responsibilities, x)
        apart = means - self.prior.loc
        between = weight[:, None, None] * apart[:, :, None] * apart[:, None]
        prior = torch.cholesky_inverse(self.prior.scale_tril)  # W^-1
        inverse = torch.cholesky_inverse(
            torch.linalg.cholesky(prior + scatter_matrices(responsibilities, x, means) + between)
        )
        numbers.scale_tril = torch.linalg.cholesky(inverse)
        self.set_(numbers)

    def plain_covariance(self) -> tuple[type[Covariance], Tensor]:  # noqa: D102
        q = self.posterior
        return FullCovariance, torch.cholesky_inverse(q.scale_tril) / q.df[:, None, None]


class DirichletClasses(Conjugate):
    r"""Probabilities of V classes, of each number d of an event and each component: theta_kd ~ Dirichlet(a_kd).

    Args:
        num_components: C.
        event_shape: shape of one x.
        num_classes: V.
        concentration: a of the prior, how many data of each class it is worth.

    Raises:
        ValueError: for a concentration that is not positive, or fewer than two classes; sizes as in `as_shape`.

    Source: Bishop 2006, section 2.2.1.

    >>> DirichletClasses(3, (2, 2)).kl()
    tensor(0., grad_fn=<...>)
    """

    apart = "concentration"

    def __init__(
        self,
        num_components: int,
        event_shape: int | Sequence[int],
        *,
        num_classes: int = 2,
        concentration: float = 1.0,
    ) -> None:
        event_shape, count = as_shape(event_shape), as_size(num_components, "num_components")
        self.num_classes = at_least_two_classes(num_classes)
        numbers = torch.full((count, *event_shape, self.num_classes), positive("concentration", concentration))
        super().__init__(event_shape, {"concentration": (numbers, constraints.positive)})

    def draw(self, numbers: SimpleNamespace) -> tuple[Tensor, ...]:  # noqa: D102
        probs = dist.Dirichlet(numbers.concentration).to_event(1 + len(self.event_shape))
        return (pyro.sample("probs", probs),)

    def likelihood(self, drawn: tuple[Tensor, ...], c: Tensor) -> dist.TorchDistribution:  # noqa: D102
        (probs,) = drawn
        tiny = torch.finfo(probs.dtype).tiny
        logits = taken(probs, c, 1 + len(self.event_shape)).clamp(min=tiny).log()  # draws of small concentrations are 0
        return product(logits, len(self.event_shape))

    def expected_log_prob(self, x: Tensor) -> Tensor:  # noqa: D102
        concentration = self.posterior.concentration
        expected = concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()
        return _in_full(as_one_hot(x, self.num_classes).to(expected).flatten(1), expected.flatten(1).T)

    def kl(self) -> Tensor:  # noqa: D102
        q, p = (dist.Dirichlet(numbers.concentration) for numbers in (self.posterior, self.prior))
        return kl_divergence(q, p).sum()

    def points(self, x: Tensor) -> Tensor:  # noqa: D102
        return as_one_hot(x, self.num_classes).flatten(1)

    def update_(self, responsibilities: Tensor, x: Tensor) -> None:  # noqa: D102
        codes = as_one_hot(x, self.num_classes).to(responsibilities)
        counts = torch.tensordot(responsibilities.T, codes, 1)
        self.set_(SimpleNamespace(concentration=self.prior.concentration + counts))

    @property
    def means(self) -> Tensor:  # noqa: D102
        concentration = self.posterior.concentration
        probs = concentration / concentration.sum(-1, keepdim=True)
        return probs @ torch.arange(self.num_classes, dtype=probs.dtype, device=probs.device)


def taken(values: Tensor, c: Tensor, event_dims: int) -> Tensor:
    """What components c have of values (..., C, *event), leading dims of both broadcast."""
    return Vindex(values)[(..., c, *[slice(None)] * event_dims)]


def _in_full(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, under autocast too: what is summed here is log p."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
