"""Sprites: images of a square, an ellipse or a heart whose factors of variation are known, drawn as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Sprites"]

SUBSAMPLES = 8  # points of a pixel in each direction
# Ties are inside: points on an edge would fall on either side by rounding, and symmetric shapes lose their symmetry.
TOLERANCE = 1e-9
# The heart's half diagonal d: its tip, d (1 + centroid) from the centre, is its farthest point, at distance 1.
CENTROID = (math.pi / 4 + 1 / 3) / (2 + math.pi / 2)
HALF_DIAGONAL = 1 / (1 + CENTROID)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - math.sqrt(0.5)


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    return u**2 + (2 * v) ** 2 - 1


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """A square that stands on its corner, and the discs whose diameters are its upper sides."""
    d = HALF_DIAGONAL
    u, v = u.abs(), v + CENTROID * d
    return torch.minimum(u + v.abs() - d, (u - d / 2) ** 2 + (v - d / 2) ** 2 - d**2 / 2)


class Sprites(Dataset[dict[str, Tensor]]):
    r"""White sprites on black, one image for each combination of five factors, in the order of dSprites.

        shape         square, ellipse, heart
        scale         evenly from 1/2 to 1
        orientation   2 pi k / num_orientations, counterclockwise
        x, y          of the shape's centroid, to the right and downwards, in steps of whole pixels

    A pixel is the share of 8 x 8 points in it that are inside the shape, by formula; it is white where that is a half
    or more. In units of r = scale size / 4, the distance of their farthest point, the square has sides of sqrt(2) and
    area 2, the ellipse half axes 1 and 1/2, the heart area (2 + pi/2) d^2 with d = 0.7614. Nothing is kept but a
    picture of each shape, scale and orientation, which `images` moves to its place.

    As in dSprites, the square looks alike after a quarter turn, the ellipse after half a turn; some small sprites also
    coincide at small sizes. The factors are those of dSprites at the defaults, less its constant colour, but its last
    orientation is its first again, and here there are as many different ones.

    Args:
        size: pixels of a side, even.
        num_scales, num_orientations: values of these factors.
        num_positions: values of x and of y; it divides size / 2, over which they are spread. Default: size / 2.
        grey: the pixels' shares k / 64 themselves, instead of bits.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or do not divide.

    Shapes: item {"x": (1, size, size), "y": (), the shape, "factors": (5,)}.
    Source: the factors and their order are those of Matthey, Higgins, Hassabis & Lerchner 2017, dSprites,
    https://github.com/google-deepmind/dsprites-dataset; the shapes' formulas are ours.

    >>> sprites = Sprites(32, num_orientations=20, num_positions=8)
    >>> len(sprites), dict(zip(sprites.names, sprites.sizes, strict=True))
    (23040, {'shape': 3, 'scale': 6, 'orientation': 20, 'x': 8, 'y': 8})
    >>> sprites.index(sprites.factors[[7, 12345]])
    tensor([    7, 12345])
    """

    names: ClassVar[tuple[str, ...]] = ("shape", "scale", "orientation", "x", "y")
    shapes: ClassVar[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
        "square": _square,
        "ellipse": _ellipse,
        "heart": _heart,
    }

    def __init__(
        self,
        size: int = 64,
        *,
        num_scales: int = 6,
        num_orientations: int = 40,
        num_positions: int | None = None,
        grey: bool = False,
    ) -> None:
        num_positions = size // 2 if num_positions is None else num_positions
        counts = {"size": size, "num_scales": num_scales, "num_orientations": num_orientations}
        for name, count in {**counts, "num_positions": num_positions}.items():
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name} is {count!r}, a whole number is wanted; pass {name}=8, say")
            if count < 1:
                raise ValueError(f"{name} is {count}, at least 1 is wanted; pass {name}=8, say")
        if size % 2 or size // 2 % num_positions:
            raise ValueError(
                f"size is {size} and num_positions {num_positions}, which does not divide size / 2, so that steps are "
                "no whole pixels; pass size=32, num_positions=8, say"
            )
        self.size, self.grey = size, grey
        self.sizes = (len(self.shapes), num_scales, num_orientations, num_positions, num_positions)
        self.step = size // 2 // num_positions  # pixels
        # In float32 a quarter turn would be off by more than the tolerance.
        double = torch.float64
        self.scales = torch.linspace(0.5, 1.0, num_scales, dtype=double) if num_scales > 1 else torch.ones(1).double()
        self.orientations = torch.arange(num_orientations, dtype=double) * (2 * math.pi / num_orientations)

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{count} {name}s" for name, count in zip(self.names, self.sizes, strict=True))
        return f"Sprites({len(self)} images {self.size} x {self.size}: {sizes})"

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row is {row} of {len(self)}")
        return self.__getitems__([row % len(self)])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """The items of a batch, drawn together: what DataLoader calls."""
        x, factors = self.images(torch.as_tensor(rows)), self.factors_of(torch.as_tensor(rows))
        return [{"x": image, "y": row[0], "factors": row} for image, row in zip(x, factors, strict=True)]

    @property
    def factors(self) -> Tensor:
        """The table of factors, (N, 5) int64, each from 0; the last changes from row to row."""
        return self.factors_of(torch.arange(len(self)))

    def factors_of(self, index: Tensor) -> Tensor:
        """Factors (..., 5) of rows (...)."""
        return torch.stack(torch.unravel_index(index, self.sizes), -1)

    def index(self, factors: Tensor) -> Tensor:
        """Rows (...) that have the factors (..., 5).

        Raises:
            ValueError: for values that a factor does not have.
        """
        sizes = torch.tensor(self.sizes)
        if factors.shape[-1:] != sizes.shape or not ((factors >= 0) & (factors < sizes)).all():
            raise ValueError(
                f"factors of shape {tuple(factors.shape)} are not all in the table; pass (..., 5) whole numbers below "
                f"{self.sizes}, the values of {', '.join(self.names)}"
            )
        strides = torch.tensor([math.prod(self.sizes[k + 1 :]) for k in range(len(self.sizes))])
        return (factors * strides).sum(-1)

    def images(self, index: Tensor) -> Tensor:
        """Images (B, 1, size, size) of rows (B,), in the default dtype."""
        shape, scale, orientation, x, y = self.factors_of(index).unbind(-1)
        width = self._pictures.size(-1) - 1
        pixels = torch.arange(self.size)
        # Outside its picture an image has the picture's last row and column, which are black.
        columns, rows = (
            torch.where((at >= 0) & (at < width), at, width)
            for at in (pixels - self.step * place[:, None] for place in (x, y))
        )
        picture = (shape * self.sizes[1] + scale) * self.sizes[2] + orientation
        count = self._pictures[picture[:, None, None], rows[:, :, None], columns[:, None, :]]
        value = count.to(torch.get_default_dtype()).div_(SUBSAMPLES**2) if self.grey else 2 * count >= SUBSAMPLES**2
        return value.to(torch.get_default_dtype())[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """All rows in memory: x, y (the shape) and factors, for a `Split`; 4 size^2 bytes a row."""
        factors = self.factors
        return {"x": self.images(torch.arange(len(self))), "y": factors[:, 0], "factors": factors}

    @cached_property
    def _pictures(self) -> Tensor:
        """Points inside each pixel, (shapes x scales x orientations, W + 1, W + 1) uint8, of the first position."""
        width = self.size // 2 + self.step  # its middle is the first position, relative to the pixels
        at = (torch.arange(width * SUBSAMPLES, dtype=torch.float64) + 0.5) / SUBSAMPLES - width / 2
        right, up = at / (self.size / 4), -at[:, None] / (self.size / 4)
        angles = self.orientations[:, None, None]
        u, v = right * angles.cos() + up * angles.sin(), up * angles.cos() - right * angles.sin()
        pictures = []
        for shape in self.shapes.values():
            for scale in self.scales:
                inside = shape(u / scale, v / scale) <= TOLERANCE
                cells = inside.unflatten(1, (width, SUBSAMPLES)).unflatten(3, (width, SUBSAMPLES))
                pictures.append(cells.sum((2, 4)).to(torch.uint8))
        return torch.nn.functional.pad(torch.cat(pictures), (0, 1, 0, 1))
