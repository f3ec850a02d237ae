"""Pyro's own, where one thing is wanted otherwise."""

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["Bernoulli", "MixtureSameFamily"]


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
