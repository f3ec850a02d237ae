"""What a bijection is, and the transform of torch's that is made of one."""

from typing import Protocol

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import Transform, _InverseTransform

__all__ = ["AsTransform", "Bijection"]


class Bijection(Protocol):
    """y = f(x) of vectors."""

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """y (..., D) and log|det dy/dx| at x, which broadcasts with (...)."""
        ...

    def inverse(self, y: Tensor, /) -> tuple[Tensor, Tensor]:
        """x (..., D) and log|det dy/dx| there, the forward one."""
        ...


class AsTransform(Transform):
    """A bijection as a transform of torch's; make a new one for each distribution.

    It remembers its last point, so that the density of a draw takes no inverse and that of any point one pass. The
    memory is by identity, and goes with the distribution: the module that holds the parameters has none.

    Args:
        bijection: what to call.

    >>> import torch
    >>> from pyrovae.flows import ActNorm
    >>> transform = AsTransform(ActNorm(3))
    >>> x = torch.ones(5, 3)
    >>> transform.inv(transform(x)) is x
    True
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, bijection: Bijection) -> None:
        super().__init__(cache_size=1)
        self.bijection = bijection
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def inv(self) -> Transform:
        """The inverse. A new object each time: kept, it would be a cycle that holds a step's graph until collected."""
        return _InverseTransform(self)

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.bijection.forward(x)
        self._last = x, log_det
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self.bijection.inverse(y)
        self._last = x, log_det
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx|, of what is remembered if that is x."""
        if self._last is None or self._last[0] is not x:
            return self.bijection.forward(x)[1]
        return self._last[1]
