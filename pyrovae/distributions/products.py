"""Products of distributions over the elements of an event: their observed part, and columns of different kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution, constraints
from torch import Tensor

__all__ = ["Columns", "by_element", "masked", "masks"]


def masked(distribution: TorchDistribution, mask: Tensor) -> TorchDistribution:
    r"""A distribution over events whose density is that of the observed elements: sum_d mask_d log p(x_d).

    The elements have to be independent, so that the density is that of the observed part; it and its gradient are
    exactly zero in what is missing, whose values have to be in the support all the same. Samples are whole events.
    Pyro's own `.mask` of the elements does it; of an event it masks the whole. Where the distribution has masks, what
    they hide stays hidden.

    Args:
        distribution: a product over the elements of its event, as the conditionals give it.
        mask: (..., \*event_shape), True where observed; broadcasts with the distribution's batch shape.

    Returns:
        a distribution of the same event shape.

    Raises:
        ValueError: if the distribution is no product over its elements.

    >>> import pyro.distributions as dist
    >>> d = masked(dist.Bernoulli(torch.tensor([0.5, 0.1])).to_event(1), torch.tensor([True, False]))
    >>> d.log_prob(torch.ones(2))  # log 1/2
    tensor(-0.6931)
    """
    base, dims = by_element(distribution)
    for own in masks(distribution, dims):
        mask = mask.bool() & own
    return base.mask(mask).to_event(dims)


def masks(distribution: TorchDistribution, dims: int) -> Iterator[Tensor | bool]:
    """Those of a distribution, over its elements: a mask of rows or whole events hides each of their elements."""
    while isinstance(distribution, Independent | MaskedDistribution):
        if isinstance(distribution, Independent):
            dims -= distribution.reinterpreted_batch_ndims
        else:
            own = distribution._mask
            yield own if isinstance(own, bool) else own.reshape(*own.shape, *[1] * dims)
        distribution = distribution.base_dist


def by_element(distribution: TorchDistribution) -> tuple[TorchDistribution, int]:
    """What a distribution over events is, element by element and without a mask, and the number of event dims.

    Raises:
        ValueError: if it is no product over its elements.
    """
    base, dims = distribution, 0
    while isinstance(base, Independent | MaskedDistribution):
        dims += base.reinterpreted_batch_ndims if isinstance(base, Independent) else 0
        base = base.base_dist
    if base.event_dim:
        raise ValueError(
            f"{type(base).__name__} is no product over the elements of its event, so that its observed part has no "
            "density in closed form; use a likelihood with independent elements, such as Bernoulli or LearnedNormal"
        )
    return base, dims


class _ByColumn(constraints.Constraint):
    """Each column has the support of its own distribution."""

    is_discrete = False

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def check(self, value: Tensor) -> Tensor:
        parts = self.columns.split(value)
        checks = [d.support.check(part) for d, part in zip(self.columns.kinds, parts, strict=True)]
        return self.columns.join(checks)

    def __repr__(self) -> str:
        kinds = zip(self.columns.kinds, self.columns.sizes, strict=True)
        return "columns of " + ", ".join(f"{type(d).__name__} ({size})" for d, size in kinds)


class Columns(TorchDistribution):
    r"""Numbers along the last batch dim, of which each kind of column has a distribution of its own.

    Args:
        kinds: distributions over single numbers, of batch shape (..., n_i), with the same leading dims.
        order: where their columns stand, one kind after the other: a permutation of 0, ..., D - 1 with D = sum n_i.

    Returns:
        From `log_prob(x)`: nats of each element (..., D), densities and masses side by side.

    >>> import pyro.distributions as dist
    >>> d = Columns([dist.Normal(torch.zeros(2), 1.0), dist.Bernoulli(torch.tensor([0.5]))], torch.tensor([0, 2, 1]))
    >>> d.log_prob(torch.tensor([0.0, 1.0, 1.0]))
    tensor([-0.9189, -0.6931, -1.4189])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(self, kinds: Sequence[TorchDistribution], order: Tensor, validate_args: bool | None = None) -> None:
        self.kinds = list(kinds)
        self.order = order
        self.sizes = [d.batch_shape[-1] for d in self.kinds]
        super().__init__((*self.kinds[0].batch_shape[:-1], sum(self.sizes)), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Columns:
        """The distribution with more leading dims; the columns stay."""
        new = self._get_checked_instance(Columns, _instance)
        new.__dict__.update(self.__dict__)
        new.kinds = [d.expand((*batch_shape[:-1], n)) for d, n in zip(self.kinds, self.sizes, strict=True)]
        new._batch_shape = torch.Size(batch_shape)
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Of each column its own."""
        return _ByColumn(self)

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """The columns (..., D) of each kind, (..., n_i)."""
        return value.index_select(-1, self.order).split(self.sizes, -1)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What `split` was given."""
        return torch.cat(list(parts), -1).index_select(-1, self.order.argsort())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each element, in nats."""
        return self.join([d.log_prob(part) for d, part in zip(self.kinds, self.split(value), strict=True)])

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Values, shape (*sample_shape, *batch_shape)."""
        return self.join([d.sample(torch.Size(sample_shape)) for d in self.kinds])

    @property
    def mean(self) -> Tensor:
        """Of each column its own; NaN for classes, which have none."""
        return self.join([d.mean for d in self.kinds])

    @property
    def variance(self) -> Tensor:
        """Of each column its own; NaN for classes."""
        return self.join([d.variance for d in self.kinds])
