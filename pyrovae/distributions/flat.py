"""The improper prior that says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import ImproperUniform, constraints
from torch import Tensor

__all__ = ["Flat", "is_improper"]


class Flat(ImproperUniform):
    """p(z) = 1 for every real z: Pyro's `ImproperUniform`, its zeros on the device and in the dtype of z.

    It integrates to infinity: a pair that has it has no density of x, and what it scores is no bound on one
    (`pyrovae.structure(...).improper` names the site). Nor can anything be drawn from it. Stock Pyro's `Predictive`
    asks each site of a model for a value before it takes the guide's: it gets `origin`, always the same.

    Args:
        origin: any z (*event).

    Returns:
        From `log_prob(z)`: 0, shape (..., *batch_shape).

    >>> Flat(torch.zeros(2)).log_prob(torch.randn(3, 2))
    tensor([0., 0., 0.])
    """

    def __init__(self, origin: Tensor) -> None:
        self.origin = origin
        super().__init__(constraints.independent(constraints.real, origin.dim()), (), origin.shape)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same for each place of `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.origin = self.origin
        return super().expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero."""
        return super().log_prob(value).to(value)  # Pyro's is on the CPU, and of the default dtype

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The origin, no draw."""
        return self.origin.expand(self._extended_shape(torch.Size(sample_shape)))


def is_improper(fn: Any) -> bool:
    """Whether a distribution is a flat one, which integrates to infinity, whatever wraps it.

    >>> is_improper(Flat(torch.zeros(2)).expand([3]).mask(True))
    True
    """
    while fn is not None and not isinstance(fn, ImproperUniform):
        fn = getattr(fn, "base_dist", None)
    return fn is not None
