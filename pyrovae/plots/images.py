"""Data and what a pair makes of them: grids, reconstructions, samples and ways between two data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyrovae.plots.events import as_events, draw_lines, draw_tiles
from pyrovae.plots.figures import (
    BLUE,
    GREY,
    Values,
    axes_of,
    dot_area,
    draw_histogram,
    name_axes,
    name_entries,
    shades,
    verbatim,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["completions", "image_grid", "interpolation", "reconstructions", "rows", "samples"]


def image_grid(
    images: Values,
    *,
    ax: Axes | None = None,
    columns: int | None = None,
    title: str | None = None,
    image_shape: Sequence[int] | None = None,
) -> Axes:
    """Images side by side, row by row, white between them and in the unused places of the last row.

    Args:
        images: (N, C, H, W), (N, H, W), or (N, D) with `image_shape`.
        columns: images per row; the square root of N, rounded up, if not given.
        title: above the picture.
    """
    data = as_events("images", images, 1, image_shape)
    if data.ndim != 4:
        raise ValueError(f"images has shape {data.shape}, wanted (N, C, H, W) or (N, H, W); pass image_shape=")
    columns = math.ceil(math.sqrt(len(data))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns is {columns}, wanted at least 1; leave it out for a square picture")
    rows, columns = math.ceil(len(data) / columns), min(columns, len(data))
    blank = np.ones((rows * columns - len(data), *data.shape[1:]))
    return draw_tiles(np.concatenate([data, blank]).reshape(rows, columns, *data.shape[1:]), ax, title=title)


def reconstructions(
    x: Values, reconstructed: Values, *, ax: Axes | None = None, num: int = 10, image_shape: Sequence[int] | None = None
) -> Axes:
    """The first data above their reconstructions; of vectors, each reconstruction as a line over that of its datum.

    Args:
        x: data (N, *event).
        reconstructed: their reconstructions (N, *event).
        num: how many data at most.
    """
    data, means = as_events("x", x, 1, image_shape), as_events("reconstructed", reconstructed, 1, image_shape)
    if data.shape != means.shape:
        shapes = f"x has shape {tuple(np.shape(x))}, reconstructed {tuple(np.shape(reconstructed))}"
        raise ValueError(f"{shapes}; pass one reconstruction for each datum, such as the mean over samples")
    if num < 1:
        raise ValueError(f"num is {num}, wanted at least 1; leave it out for 10")
    names = ["data", "reconstruction"]
    if data.ndim == 2:
        rows = [str(row) for row in range(min(num, len(data)))]
        return draw_lines(np.stack([data[:num], means[:num]], axis=1), ax, [GREY, BLUE], rows, "datum", names)
    return draw_tiles(np.stack([data[:num], means[:num]]), ax, rows=names)


def completions(
    x: Values,
    mask: Values,
    imputed: Values,
    *,
    ax: Axes | None = None,
    num: int = 10,
    image_shape: Sequence[int] | None = None,
) -> Axes:
    """The first images, what of them is observed (the rest in blue), and below one another M completions of each.

    Args:
        x: images (N, C, H, W).
        mask: True where observed, in the shape of x; a pixel counts as observed if all its channels do.
        imputed: completions (M, N, C, H, W).
        num: how many images at most.
        image_shape: (C, H, W) or (H, W), of flat events.
    """
    data, filled = as_events("x", x, 1, image_shape), as_events("imputed", imputed, 2, image_shape)
    seen = as_events("mask", mask, 1, image_shape)
    if data.ndim != 4 or data.shape != seen.shape or filled.shape[1:] != data.shape:
        shapes = f"x has shape {np.shape(x)}, mask {np.shape(mask)}, imputed {np.shape(imputed)}"
        raise ValueError(f"{shapes}; pass images (N, C, H, W), their mask, and completions (M, N, C, H, W)")
    if num < 1:
        raise ValueError(f"num is {num}, wanted at least 1; leave it out for 10")
    data, seen, filled = (np.broadcast_to(a, (*a.shape[:-1], 3)) for a in (data, seen, filled))  # for the blue
    observed = np.where(seen.min(-1, keepdims=True) > 0, data, [0.55, 0.7, 0.9])
    rows = ["data", "observed", *(str(number + 1) for number in range(len(filled)))]
    return draw_tiles(np.stack([data[:num], observed[:num], *filled[:, :num]]), ax, rows=rows)


def samples(
    images: Values, *, ax: Axes | None = None, columns: int | None = None, image_shape: Sequence[int] | None = None
) -> Axes:
    """Samples of x as an image grid; vectors as a histogram (D = 1), a scatter (D = 2) or one line each (D > 2).

    Args:
        images: (N, *event).
        columns: images per row, as in `image_grid`.
    """
    data = as_events("images", images, 1, image_shape)
    if data.ndim == 4:
        return image_grid(images, ax=ax, columns=columns, image_shape=image_shape)
    ax = axes_of(ax, *((4.2, 3.4) if data.shape[1] <= 2 else (6, 3)))
    if data.shape[1] == 1:
        draw_histogram(ax, data[:, 0], BLUE)
        return name_axes(ax, "x[0]", "samples per bin")
    if data.shape[1] == 2:
        ax.scatter(data[:, 0], data[:, 1], s=dot_area(len(data)), color=BLUE, alpha=0.7, linewidths=0)
        return name_axes(ax, "x[0]", "x[1]")
    ax.plot(np.arange(data.shape[1]), data.T, color=BLUE, linewidth=0.9, alpha=max(0.1, min(0.8, 8 / len(data))))
    return name_entries(ax, "value")


def interpolation(images: Values, *, ax: Axes | None = None, image_shape: Sequence[int] | None = None) -> Axes:
    """Decoded points on the way between two data, each way a row from left to right; vectors from dark to light lines.

    Args:
        images: R ways in S even steps, both ends included: (R, S, *event).
    """
    data = as_events("images", images, 2, image_shape)
    if data.ndim == 3:
        return draw_lines(data, ax, shades(data.shape[1]), list(map(str, range(len(data)))), "way", ["start", "end"])
    marks = [f"{fraction:.2g}" for fraction in np.linspace(0, 1, data.shape[1])]
    return name_axes(draw_tiles(data, ax, columns=marks), "fraction of the way", "")


def rows(
    images: Values, names: Sequence[str], *, ax: Axes | None = None, image_shape: Sequence[int] | None = None
) -> Axes:
    """Rows of data, each with its name: samples of each class, say; of vectors, all of a row as lines in one band.

    Args:
        images: R rows of S data each, (R, S, *event).
        names: one for each row.
    """
    data = as_events("images", images, 2, image_shape)
    if len(names) != len(data):
        raise ValueError(f"names are {len(names)} for {len(data)} rows; pass one for each")
    texts = [verbatim(name) for name in names]
    if data.ndim == 3:
        return draw_lines(data, ax, shades(data.shape[1]), texts, "row", ["first", "last"])
    return draw_tiles(data, ax, rows=texts)
