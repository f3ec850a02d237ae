"""Masks as data: which elements of x are observed, True where they are, in the shape of x.

`incomplete` makes data of x with holes; `masked` hides more of it, by masks drawn anew for each training batch on the
data's device, and once for validation and test. What draws masks is any function of x: `pixels`, `rectangle`, `half`,
`one_of` them, or the user's own.

>>> draw = lambda x: x > 0  # hides what is black
>>> data = masked(Split({"x": torch.tensor([[0.0, 1.0], [2.0, 0.0]])}), draw)
>>> data.rows([0])[1]
tensor([[False,  True]])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.rows import Data, Split
from pyrovae.data.seeds import BITS, derived_seed
from pyrovae.data.sparse import SparseRows

__all__ = ["Mask", "check_mask", "half", "incomplete", "masked", "one_of", "pixels", "rectangle"]

Mask = Callable[[Tensor], Tensor]


@overload
def masked(data: Data, mask: Mask, *, seed: int = 0) -> Data: ...
@overload
def masked(data: Split, mask: Mask, *, seed: int = 0) -> Split: ...
def masked(data: Data | Split, mask: Mask, *, seed: int = 0) -> Data | Split:
    """The data with a tensor `mask`, True where x is observed: drawn for each batch, in validation and test once.

    x stays complete: whether a model sees the hidden values is its own affair (`InpaintingVAE` learns from them, every
    encoder of a mask ignores them). Where the data have a mask already, an element is observed if it is in both.

    Args:
        data: `Data` or a `Split`; its transform, if any, comes first.
        mask: x (B, *event) to booleans of the same shape, on the device of x; may draw from torch's global generator.
        seed: of the masks of validation and test.

    Returns:
        the same rows with `mask` among their names.

    Raises:
        TypeError: for other data or sparse x, or a mask that is no function.
        ValueError: where the mask is drawn, if it has another shape or dtype.

    >>> data = masked(Data(Split({"x": torch.ones(4, 1, 8, 8)})), half())
    >>> x, mask = data.train.rows(slice(2))
    >>> mask.sum((1, 2, 3))
    tensor([32, 32])
    """
    if not callable(mask):
        raise TypeError(f"mask is a {type(mask).__name__}, a function of x is wanted; pass pixels(0.5), say")
    if isinstance(data, Data):
        splits: dict[str, Any] = {}
        for use, (name, split) in enumerate(data.splits.items()):
            drawn = masked(_in_memory(split), mask)
            # A stream of its own: the bits of `load` come from (seed, BITS, use).
            splits[name] = drawn if name == "train" else drawn.fixed(derived_seed(seed, BITS, use, 1))
        return dataclasses.replace(data, **splits)
    split = _in_memory(data)
    x = split["x"]
    # All True in the memory of one row, for a Split knows its names before any batch is drawn.
    given = split.tensors.get("mask", torch.ones_like(x[:1], dtype=torch.bool).expand(x.shape))
    before = split.transform

    def transform(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = tensors if before is None else before(tensors)
        drawn = mask(tensors["x"])
        if drawn.shape != tensors["x"].shape or drawn.dtype != torch.bool:
            raise ValueError(
                f"mask gave {str(drawn.dtype).removeprefix('torch.')} of shape {tuple(drawn.shape)} for x of shape "
                f"{tuple(tensors['x'].shape)}; return booleans in the shape of x, True where it is observed"
            )
        return {**tensors, "mask": tensors["mask"] & drawn}

    names = dict.fromkeys([*split.names, "mask"])
    return split.replace({**split.tensors, "mask": given}, transform=transform).select(*names)


def incomplete(x: Tensor | np.ndarray, mask: Tensor | np.ndarray | None = None, **others: Tensor | np.ndarray) -> Split:
    """Data with missing values: x and its mask. Without a mask, NaN means missing.

    Missing values are filled with the first observed one of their column, so that they lie in the support of whatever
    likelihood the column has; nothing that takes the mask reads them.

    Args:
        x: (N, *event).
        mask: True (or 1) where x is observed, in the shape of x. Default: where x is not NaN.
        others: further tensors with a row for each datum, such as y.

    Returns:
        a `Split` of x, mask and the others.

    Raises:
        ValueError: for a mask of another shape or with other values than 0 and 1, for rows without an observed value,
            and for infinities, or NaN that the mask calls observed: rows are named.

    >>> incomplete(np.array([[1.0, np.nan], [np.nan, 4.0]])).rows(slice(2))
    (tensor([[1., 4.],
            [1., 4.]]), tensor([[ True, False],
            [False,  True]]))
    """
    keeps = isinstance(x, Tensor) and x.is_floating_point()
    x = torch.as_tensor(x, dtype=None if keeps else torch.get_default_dtype())
    seen = ~torch.isnan(x) if mask is None else torch.as_tensor(mask)
    check_mask(x, seen)
    seen = seen.bool()
    if len(rows := _rows_with(torch.isnan(x) & seen)):
        raise ValueError(
            f"x is NaN where the mask says observed, in {_named(rows)}; leave mask out for NaN to mean missing"
        )
    first = seen.byte().argmax(0, keepdim=True)  # the first observed row of each column; row 0 where there is none
    filled = torch.where(seen, x, x.gather(0, first))
    # A column that is never observed may have no number to show; an infinity that is observed is the Split's to refuse.
    return Split({"x": filled.masked_fill(~(seen | filled.isfinite()), 0.0), "mask": seen, **others})


def check_mask(x: Tensor, mask: Tensor) -> None:
    """The mask has the shape of x and no other values than 0 and 1, and every row an observed value.

    Raises:
        ValueError: otherwise, with the rows.
    """
    if mask.shape != x.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, x {tuple(x.shape)}; pass one element for each of x, "
            "True where it is observed"
        )
    if mask.dtype != torch.bool and len(rows := _rows_with((mask != 0) & (mask != 1))):
        raise ValueError(f"mask has values beside 0 and 1 in {_named(rows)}; pass booleans, True where x is observed")
    if len(rows := _rows_with(~mask.reshape(len(mask), -1).any(1))):
        raise ValueError(f"{_named(rows)} of x have no observed value; drop them, nothing can be learnt from them")


def pixels(missing: float | tuple[float, float] = 0.5) -> Mask:
    """Each element missing by itself, with one probability or, for a pair of them, one drawn between them for each row.

    A row that would lose all its elements keeps one. An image with several channels loses all channels of a pixel.

    Args:
        missing: the probability of being missing, at least 0 and below 1; or the least and the greatest.

    Returns:
        a function from x (B, *event) to its mask.

    Raises:
        ValueError: for other probabilities.

    >>> pixels(0.25)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 1, 8, 8])
    """
    low, high = missing if isinstance(missing, tuple) else (missing, missing)
    if not 0 <= low <= high < 1:
        raise ValueError(f"missing is {missing!r}, a probability of at least 0 and below 1 is wanted; pass missing=0.5")

    def draw(x: Tensor) -> Tensor:
        u = torch.rand(_pixel_shape(x), device=x.device)
        rate = low + (high - low) * torch.rand(_one_per_row(x), device=x.device)
        largest = u.flatten(1).amax(1).reshape(_one_per_row(x))
        return ((u >= rate) | (u == largest)).expand(x.shape)

    return draw


def rectangle(smallest: float = 0.3, largest: float = 0.9) -> Mask:
    """One rectangle of missing pixels in each image, its place uniform among those where it fits.

    Args:
        smallest, largest: least and greatest side, as a fraction of the image's; each side is uniform between them and
            rounded to whole pixels, at least one and, so that something is left, at most all but one.

    Returns:
        a function from x (B, ..., H, W) to its mask.

    Raises:
        ValueError: for other fractions, or when drawn for x that are no images.
    """
    if not 0 < smallest <= largest <= 1:
        raise ValueError(
            f"smallest is {smallest}, largest {largest}; pass fractions with 0 < smallest <= largest <= 1, "
            "such as 0.3 and 0.9"
        )

    def draw(x: Tensor) -> Tensor:
        inside = _one_side(x, -2, smallest, largest) & _one_side(x, -1, smallest, largest)
        return ~inside.expand(x.shape)

    return draw


def half() -> Mask:
    """The upper, lower, left or right half of each image missing, one of the four at random.

    Returns:
        a function from x (B, ..., H, W) to its mask; of an odd side the smaller part is missing.
    """

    def draw(x: Tensor) -> Tensor:
        height, width = _image(x)
        row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        zeros = torch.zeros(height, width, dtype=torch.bool, device=x.device)
        halves = torch.stack(
            [
                (row < height // 2)[:, None] | zeros,
                (row >= height - height // 2)[:, None] | zeros,
                (column < width // 2) | zeros,
                (column >= width - width // 2) | zeros,
            ]
        )
        chosen = halves[torch.randint(4, (len(x),), device=x.device)]  # (B, H, W)
        return ~chosen.reshape(len(x), *(1,) * (x.dim() - 3), height, width).expand(x.shape)

    return draw


def one_of(*masks: Mask) -> Mask:
    """For each row one of several masks, all equally likely.

    >>> one_of(pixels(0.5), half())(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 1, 8, 8])
    """
    if not masks:
        raise ValueError("masks is empty, at least one function is wanted; pass one_of(pixels(0.5), half())")

    def draw(x: Tensor) -> Tensor:
        chosen = torch.randint(len(masks), _one_per_row(x), device=x.device)
        out = torch.zeros_like(x, dtype=torch.bool)
        for number, mask in enumerate(masks):
            out |= mask(x) & (chosen == number)
        return out

    return draw


def _one_side(x: Tensor, dim: int, smallest: float, largest: float) -> Tensor:
    """Booleans (B, 1..., H, 1) or (B, 1..., 1, W): where along `dim` the rectangle of each row lies."""
    size, shape = dict(zip((-2, -1), _image(x), strict=True))[dim], _one_per_row(x)
    side = size * (smallest + (largest - smallest) * torch.rand(shape, device=x.device))
    side = side.round().clamp(1, max(1, size - 1))
    start = ((size - side + 1) * torch.rand(shape, device=x.device)).floor()
    at = torch.arange(size, device=x.device).reshape(size, *(1,) * (-1 - dim))
    return (at >= start) & (at < start + side)


def _image(x: Tensor) -> tuple[int, int]:
    if x.dim() < 3 or min(x.shape[-2:]) < 2:
        raise ValueError(f"x has event shape {tuple(x.shape[1:])}, this mask is for images; pass x (B, ..., H, W)")
    return x.size(-2), x.size(-1)


def _pixel_shape(x: Tensor) -> tuple[int, ...]:
    """The shape of x, with one channel for all where x are images (B, C, H, W)."""
    return (len(x), 1, *x.shape[2:]) if x.dim() == 4 else tuple(x.shape)


def _one_per_row(x: Tensor) -> tuple[int, ...]:
    return (len(x), *(1,) * (x.dim() - 1))


def _in_memory(split: Any) -> Split:
    if not isinstance(split, Split) or "x" not in split.fields:
        kind = f"a Split of {', '.join(split.fields)}" if isinstance(split, Split) else f"a {type(split).__name__}"
        raise TypeError(f"data is {kind}, a Data or Split with x is wanted; pass Split({{'x': ...}})")
    if isinstance(split["x"], SparseRows):
        raise TypeError("x is sparse, masks are for dense rows; pass Split({'x': split['x'].to_dense()})")
    return split


def _rows_with(wrong: Tensor) -> list[int]:
    return wrong.reshape(len(wrong), -1).any(1).nonzero()[:, 0].tolist()


def _named(rows: list[int]) -> str:
    return f"rows {', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''} ({len(rows)} in all)"
