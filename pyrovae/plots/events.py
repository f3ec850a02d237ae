"""Events side by side: images as tiles of one picture, vectors as lines below one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.plots.figures import ABOVE, axes_of, draw_legend, finite, name_axes, name_entries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["as_events", "draw_lines", "draw_tiles", "gap"]


def as_events(name: str, values: Any, leading: int, image_shape: Sequence[int] | None) -> np.ndarray:
    """Images as (*leading, H, W, C), clipped to [0, 1]; vectors as (*leading, D)."""
    array = finite(name, values)
    lead, event = array.shape[:leading], array.shape[leading:]
    if image_shape is not None:
        if math.prod(event) != math.prod(image_shape) or len(image_shape) not in (2, 3):
            shapes = f"{name} has events of shape {event}, image_shape is {tuple(image_shape)}"
            raise ValueError(f"{shapes}; pass (C, H, W) or (H, W) with a product of {math.prod(event)}")
        event = tuple(image_shape)
    if len(event) == 1:
        return array
    if len(event) not in (2, 3):
        before = "N" if leading == 1 else "R, S"
        wanted = " or ".join(f"({before}, {shape})" for shape in ("C, H, W", "H, W", "D"))
        raise ValueError(f"{name} has shape {array.shape}, wanted {wanted}; reshape it")
    if len(event) == 2:
        event = (1, *event)
    if event[0] not in (1, 3):
        fix = "move the channels there (torch.movedim) or choose some"
        raise ValueError(f"{name} has shape {array.shape}, wanted 1 or 3 channels in front of height and width; {fix}")
    if array.max() > 1 and (array == array.round()).all():
        raise ValueError(f"{name} holds whole numbers up to {array.max():g}, wanted values in [0, 1]; divide it by 255")
    return np.clip(np.moveaxis(array.reshape(*lead, *event), -3, -1), 0, 1)


def gap(images: np.ndarray) -> int:
    """White pixels between neighbouring images (..., H, W, C)."""
    return max(1, max(images.shape[-3:-1]) // 16)


def draw_tiles(
    images: np.ndarray,
    ax: Axes | None,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str | None = None,
    extent: tuple[float, float, float, float] | None = None,
) -> Axes:
    """Images (R, S, H, W, C) as one, with texts beside rows and below columns, or with axes that span `extent`."""
    num_rows, num_columns, height, width, channels = images.shape
    down, across = height + gap(images), width + gap(images)
    canvas = np.ones((num_rows, num_columns, down, across, channels))
    canvas[:, :, :height, :width] = images
    canvas = canvas.swapaxes(1, 2).reshape(num_rows * down, num_columns * across, channels)  # (R * down, S * across, C)
    canvas = canvas[: height - down, : width - across]  # no gap after the last
    inches = min(6.0, max(1.6, 0.7 * num_columns))
    texts = 0.3 * (title is not None) + 0.4 * (len(columns) > 0)
    ax = axes_of(ax, inches, inches * canvas.shape[0] / canvas.shape[1] + texts)
    ax.imshow(canvas[..., 0] if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1, extent=extent)
    if extent is None:
        shown = range(0, len(columns), math.ceil(len(columns) / 12) or 1)
        ax.set_yticks([down * row + (height - 1) / 2 for row in range(len(rows))], rows)
        ax.set_xticks([across * column + (width - 1) / 2 for column in shown], [columns[column] for column in shown])
        ax.tick_params(length=0)
    else:  # square pixels whatever the units of the axes
        ax.set_aspect((extent[1] - extent[0]) / canvas.shape[1] * canvas.shape[0] / (extent[3] - extent[2]))
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=10, loc="left")
    return name_axes(ax, "", "")


def draw_lines(
    values: np.ndarray, ax: Axes | None, colors: Sequence[Any], rows: Sequence[str], kind: str, names: Sequence[str]
) -> Axes:
    """Vectors (R, S, D): S lines a row, the rows below one another; `names` are those of the first and last line."""
    apart = 1.1 * (float(np.ptp(values)) or 1.0)
    ax = axes_of(ax, 6, min(9.0, 1.2 + 0.5 * len(values)))
    style: dict[str, Any] = {"linewidth": 1.3, "markersize": 3, "marker": "o" if values.shape[2] <= 12 else ""}
    for row, number in np.ndindex(*values.shape[:2]):
        label = {0: names[0], values.shape[1] - 1: names[-1]}.get(number) if row == 0 else None
        ax.plot(values[row, number] - row * apart, color=colors[number], label=label, **style)
    middle = (values.max() + values.min()) / 2
    ax.set_yticks([middle - row * apart for row in range(len(values))], rows)
    ax.tick_params(axis="y", length=0)
    draw_legend(ax, **ABOVE)
    return name_entries(ax, f"{kind} ({apart:.2g} apart)")
