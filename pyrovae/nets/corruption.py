"""Corruptions of a network's input, drawn anew at each call in training mode; in evaluation mode x stays as it is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["GaussianNoise", "Masking", "SaltAndPepper"]


class _Corruption(nn.Module, ABC):
    """Noise from torch's global generator, so that Pyro's seeds decide it and compiled steps draw it too."""

    def forward(self, x: Tensor) -> Tensor:
        """The corrupted x, of its shape; x itself in evaluation mode."""
        return self.corrupted(x) if self.training else x

    @abstractmethod
    def corrupted(self, x: Tensor) -> Tensor:
        """A draw of the corrupted x, in any mode."""


class Masking(_Corruption):
    """Each element is set to 0 with probability p, and nothing else is scaled (as `nn.Dropout` would).

    Args:
        p: share of the elements that are destroyed, in [0, 1).

    Returns:
        From `forward(x)`: x (..., *event) with zeros; x itself in evaluation mode.

    Raises:
        ValueError: for a p outside [0, 1).

    Source: Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html, section 3.3; 0.25 is among theirs.

    >>> Masking(0.25).eval()(torch.ones(3))
    tensor([1., 1., 1.])
    """

    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        self.p = _probability("p", p)

    def corrupted(self, x: Tensor) -> Tensor:
        """x with zeros."""
        return torch.where(torch.rand_like(x) < self.p, 0.0, x)

    def extra_repr(self) -> str:
        """Its argument."""
        return f"p={self.p}"


class GaussianNoise(_Corruption):
    """x + scale eps, eps ~ N(0, I).

    Args:
        scale: standard deviation of the noise, in the units of x.

    Returns:
        From `forward(x)`: x (..., *event) with noise; x itself in evaluation mode.

    Raises:
        ValueError: for a scale that is no positive number.

    Source: Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html, section 3.3.

    >>> GaussianNoise(0.3)
    GaussianNoise(scale=0.3)
    """

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale!r}, a positive number is wanted; pass scale=0.3, say")
        self.scale = float(scale)

    def corrupted(self, x: Tensor) -> Tensor:
        """x with noise."""
        return x + self.scale * torch.randn_like(x)

    def extra_repr(self) -> str:
        """Its argument."""
        return f"scale={self.scale}"


class SaltAndPepper(_Corruption):
    """Each element is set to the lowest or the highest value, by a fair coin, with probability p.

    Args:
        p: share of the elements that are destroyed, in [0, 1).
        low, high: pepper and salt, the ends of the range of x.

    Returns:
        From `forward(x)`: x (..., *event) with extremes; x itself in evaluation mode.

    Raises:
        ValueError: for a p outside [0, 1), or a low that is not below high.

    Source: Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html, section 3.3.

    >>> SaltAndPepper(0.1)
    SaltAndPepper(p=0.1, low=0.0, high=1.0)
    """

    def __init__(self, p: float = 0.25, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.p = _probability("p", p)
        if not low < high:
            raise ValueError(f"low is {low}, high is {high}; pass the ends of the range of x, low=0.0, high=1.0")
        self.low, self.high = low, high

    def corrupted(self, x: Tensor) -> Tensor:
        """x with pepper below p / 2 and salt below p."""
        u = torch.rand_like(x)
        return torch.where(u < self.p / 2, self.low, torch.where(u < self.p, self.high, x))

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"p={self.p}, low={self.low}, high={self.high}"


def _probability(name: str, p: float) -> float:
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p < 1:
        raise ValueError(f"{name} is {p!r}, a probability in [0, 1) is wanted; pass {name}=0.25, say")
    return float(p)
