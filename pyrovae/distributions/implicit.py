"""Distributions that one can draw from and that have no density."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import MaskedDistribution, TorchDistribution, constraints
from torch import Tensor

__all__ = ["Implicit", "has_density"]


class Implicit(TorchDistribution):
    r"""What a network makes of noise: z = g(eps), eps ~ noise, with samples, gradients through them and no density.

    Only `log_prob` is missing. An objective that asks for none trains it (`pyrovae.AdversarialVB`, `JointRatio`,
    `AdversarialAutoencoder`), `pyrovae.ais` evaluates a pair with such a guide, and all that only draws works.

    Args:
        generator: g, of noise (..., *noise.event_shape) to (..., *event_shape).
        noise: any distribution with reparametrised samples; its batch shape is this one's.
        event_shape: shape of one z.

    Raises:
        ValueError: from `log_prob`, and at a draw if g gives another shape.

    Source: Mohamed & Lakshminarayanan 2016, https://arxiv.org/abs/1610.03483, eq. 2.

    >>> from pyro.distributions import Normal
    >>> squared = Implicit(torch.square, Normal(torch.zeros(3), 1.0).to_event(1), (3,))
    >>> squared.rsample((5,)).shape
    torch.Size([5, 3])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, generator: Callable[[Tensor], Tensor], noise: TorchDistribution, event_shape: Sequence[int]
    ) -> None:
        self.generator, self.noise = generator, noise
        super().__init__(noise.batch_shape, torch.Size(event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether the noise has reparametrised samples."""
        return self.noise.has_rsample

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All real numbers, of which g may reach some only."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same g, of independent noise for each of the batch shape."""
        new = self._get_checked_instance(type(self), _instance)
        noise = self.noise.expand(torch.Size(batch_shape))
        Implicit.__init__(new, self.generator, noise, self.event_shape)
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """g of noise, (*sample_shape, *batch_shape, *event_shape)."""
        z = self.generator(self.noise.rsample(torch.Size(sample_shape)))
        want = (*sample_shape, *self.batch_shape, *self.event_shape)
        if z.shape != want:
            raise ValueError(
                f"the generator gives shape {tuple(z.shape)}, expected {want}; it has to keep the noise's leading dims "
                f"and end in event_shape={tuple(self.event_shape)}"
            )
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """There is none."""
        raise ValueError(
            "an implicit distribution has samples and no density, so it has no log_prob; train a guide that has one "
            "with pyrovae.AdversarialVB, a model with pyrovae.JointRatio, and evaluate with pyrovae.ais"
        )


def has_density(fn: Any) -> bool:
    """Whether a distribution has a log_prob: it is not `Implicit`, whatever wraps that.

    >>> from pyro.distributions import Normal
    >>> d = Implicit(torch.square, Normal(0.0, 1.0), ())
    >>> has_density(d.expand([3]).to_event(1)), has_density(d.mask(False))  # the second scores zero
    (False, True)
    """
    while fn is not None and not isinstance(fn, Implicit):
        if isinstance(fn, MaskedDistribution) and fn._mask is False:
            return True
        fn = getattr(fn, "base_dist", None) or getattr(fn, "component_distribution", None)
    return fn is None
