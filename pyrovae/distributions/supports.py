"""Supports of distributions, and the bijections that lead to them from the reals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import MixtureSameFamilyConstraint

__all__ = ["bijection", "bounds", "unmixed", "with_bounds"]


def bijection(name: str, support: constraints.Constraint) -> Transform:
    """`torch.distributions.biject_to` for the support of a site, which may be a mixture.

    Raises:
        ValueError: naming the site, where torch has none, or the components of a mixture have different supports.

    >>> bijection("z", constraints.simplex)
    StickBreakingTransform()
    """
    try:
        return biject_to(unmixed(name, support))
    except NotImplementedError as error:
        raise ValueError(
            f"site {name!r} has the support {support}, to which torch has no bijection from the reals; condition on it "
            "with pyro.poutine.condition, or register one with torch.distributions.biject_to"
        ) from error


def bounds(support: constraints.Constraint) -> list[Tensor]:
    """The tensors that a support is made of."""
    parts = vars(support).values()
    inner = [part for part in parts if isinstance(part, constraints.Constraint)]
    return [part for part in parts if isinstance(part, Tensor)] + [bound for part in inner for bound in bounds(part)]


def with_bounds(support: constraints.Constraint, of: Callable[[Tensor], Tensor]) -> constraints.Constraint:
    """The same support with a function of each of its tensors in that tensor's place."""
    new = copy.copy(support)
    for name, part in vars(support).items():
        if isinstance(part, Tensor):
            setattr(new, name, of(part))
        elif isinstance(part, constraints.Constraint):
            setattr(new, name, with_bounds(part, of))
    return new


def unmixed(name: str, support: constraints.Constraint) -> constraints.Constraint:
    """The support of a site, with that of one component in place of a mixture's.

    Raises:
        ValueError: naming the site, where components have different bounds.
    """
    if isinstance(support, constraints.independent):
        base = unmixed(name, support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    if isinstance(support, MixtureSameFamilyConstraint):
        one = partial(_of_one_component, name=name, dim=-1 - support.event_dim)
        return unmixed(name, with_bounds(support.base_constraint, one))
    return support


def _of_one_component(bound: Tensor, *, name: str, dim: int) -> Tensor:
    if bound.dim() < -dim:
        return bound
    first = bound.select(dim, 0)
    if not (bound == first.unsqueeze(dim)).all():
        raise ValueError(
            f"site {name!r} is a mixture whose components have different bounds, so that no bijection from the reals "
            "leads to its support; give all components the same bounds"
        )
    return first
