"""The improper prior that says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pyro.distributions import ImproperUniform, constraints
from torch import Tensor

from pyrovae.nets import as_shape

__all__ = ["Flat", "is_improper"]


class Flat(ImproperUniform):
    """p(z) = 1 for every real z: Pyro's `ImproperUniform`, its zeros on the device and in the dtype of z.

    It integrates to infinity, so that nothing can be drawn from it, and a pair that has it no density of x: what it
    scores is no bound (`pyrovae.structure(...).improper` names its site).

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.

    Returns:
        From `log_prob(z)`: 0, shape (..., *batch_shape).

    Raises:
        NotImplementedError: from `sample`.

    >>> import torch
    >>> Flat(2).log_prob(torch.randn(3, 2))
    tensor([0., 0., 0.])
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        shape = as_shape(event_shape)
        super().__init__(constraints.independent(constraints.real, len(shape)), (), shape)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same for each place of `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        return super().expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, of which the gradient is zero too."""
        return super().log_prob(value).to(value)  # Pyro's is on the CPU, and of the default dtype

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """There is none."""
        raise NotImplementedError(
            "z has a flat prior, from which nothing can be drawn: an auto-encoder has no p(x) to generate from; "
            "decode given codes with pyrovae.evaluation.decode, or fit a VAE"
        )


def is_improper(fn: Any) -> bool:
    """Whether a distribution is a flat one, which integrates to infinity, whatever wraps it.

    >>> is_improper(Flat(2).expand([3]).mask(True))
    True
    """
    while fn is not None and not isinstance(fn, ImproperUniform):
        fn = getattr(fn, "base_dist", None)
    return fn is not None
