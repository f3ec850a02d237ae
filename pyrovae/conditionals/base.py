"""What a conditional is: a module whose `forward(features)` returns a Distribution."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.nets import Head, as_shape

__all__ = ["Conditional", "positive", "vector_length"]


class Conditional(nn.Module, ABC):
    """Base of the conditionals: a head on the features. A subclass says `forward(features)`.

    `is_density` is False where log_prob is no log-density (or log-mass), so that bounds made of it are no bounds.

    Args:
        feature_shape: shape of one datum's features; an int stands for a vector.
        event_shape: shape of one value of the distribution; an int stands for a vector.
        num_parameters: how many numbers the head gives per element of the event.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or at the call if the features have another shape.
    """

    is_density: ClassVar[bool] = True

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, num_parameters: int = 1
    ) -> None:
        super().__init__()
        self.head = Head(feature_shape, event_shape, num_parameters)
        self.event_shape = self.head.event_shape

    @abstractmethod
    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The distribution given the features."""


def positive(name: str, value: float) -> float:
    """`value`, which has to be a positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, expected a positive number; pass {name}=1.0")
    return float(value)


def vector_length(event_shape: int | Sequence[int], name: str) -> int:
    """L of an event that has to be a vector.

    Raises:
        ValueError: for an event of another number of dims.
    """
    shape = as_shape(event_shape)
    if len(shape) != 1:
        raise ValueError(f"event_shape is {shape}, {name} is over vectors; pass event_shape={prod(shape)}")
    return shape[0]
