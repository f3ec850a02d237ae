"""Pyro's own, where one thing is wanted otherwise."""

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["Bernoulli", "MixtureSameFamily", "Multinomial"]


class Bernoulli(dist.Bernoulli):
    """Pyro's `Bernoulli`, whose bits may be whole numbers too, as those of its `Categorical` may.

    >>> import torch
    >>> Bernoulli(torch.tensor(0.25)).log_prob(torch.tensor([0, 1])).exp()
    tensor([0.7500, 0.2500])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-mass, in nats."""
        return super().log_prob(value if value.is_floating_point() else value.to(self.logits.dtype))


class MixtureSameFamily(dist.MixtureSameFamily):
    """Pyro's `MixtureSameFamily` of components that all have one support without bounds of their own, as Normals do.

    The support is theirs, where torch's of a mixture has no bijection from the reals: autoguides need one.
    """

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the components."""
        return self.component_distribution.support


class Multinomial(dist.Multinomial):
    """Pyro's `Multinomial`, of counts that sum to total_count: Pyro's takes smaller sums, and scores them as their own.

    >>> import torch
    >>> Multinomial(3, torch.ones(2)).support.check(torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    tensor([ True, False])
    """

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Counts of one sum."""
        return _Counts(self.total_count)


class _Counts(constraints.Constraint):
    is_discrete, event_dim = True, 1

    def __init__(self, total: int) -> None:
        self.total = total

    def check(self, value: Tensor) -> Tensor:
        return ((value >= 0) & (value == value.floor())).all(-1) & (value.sum(-1) == self.total)

    def __repr__(self) -> str:
        return f"counts that sum to {self.total}"
