"""A point, up to rounding."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import Delta
from torch import Tensor

__all__ = ["TolerantDelta"]


class TolerantDelta(Delta):
    r"""Pyro's `Delta`, where a value counts as the point if rounding alone could tell them apart.

        log p(x) = log_density  if |x_j - v_j| <= tolerance (1 + |v_j|) for all j,  else -inf

    What is computed along two ways, such as f(f^-1(x)), is hardly ever equal in each bit. The gradient is that of
    log_density: neither x nor v has one.

    Args:
        v: the point, (*batch, *event).
        log_density: what it counts with, in nats, (*batch).
        event_dim: number of dims of an event.
        tolerance: positive.

    Returns:
        From `log_prob(x)`: nats, shape (..., *batch).

    Raises:
        ValueError: if the tolerance is not positive.

    >>> x = torch.tensor(0.1) + torch.tensor([0.0, 1e-6, 0.5])
    >>> TolerantDelta(torch.tensor(0.1), torch.tensor(2.0)).log_prob(x)
    tensor([2., 2., -inf])
    """

    def __init__(
        self,
        v: Tensor,
        log_density: Tensor | float = 0.0,
        event_dim: int = 0,
        *,
        tolerance: float = 1e-3,
        validate_args: bool | None = None,
    ) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance is {tolerance}, expected a positive number; pass tolerance=1e-3")
        self.tolerance = tolerance
        super().__init__(v, log_density, event_dim, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same point in each place of `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.tolerance = self.tolerance
        return super().expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        """log_density near the point, -inf elsewhere."""
        near = (value - self.v).abs() <= self.tolerance * (1 + self.v.abs())
        if self.event_dim:
            near = near.flatten(-self.event_dim).all(-1)
        return torch.where(near, self.log_density, -torch.inf)
