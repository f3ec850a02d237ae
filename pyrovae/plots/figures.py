"""What all pictures share: figures outside pyplot and how they are saved, colours, the typography of axes, numbers."""

from __future__ import annotations

import io
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ABOVE",
    "BESIDE",
    "BLUE",
    "GREY",
    "ORANGE",
    "PALETTE",
    "Values",
    "axes_of",
    "dot_area",
    "draw_histogram",
    "draw_legend",
    "finite",
    "name_axes",
    "name_entries",
    "new_figure",
    "save",
    "shades",
    "verbatim",
]

Values = torch.Tensor | npt.ArrayLike

# Ten colours that stay apart under the common colour blindnesses; ordered here so that the greys come last.
# Source: M. Petroff 2021, Accessible Color Sequences for Data Visualization, https://arxiv.org/abs/2107.02270
PALETTE = (
    "#3f90da", "#e76300", "#832db6", "#ffa90e", "#bd1f01", "#92dadd", "#a96b59", "#b9ac70", "#717581", "#94a4a2",
)  # fmt: skip
BLUE, ORANGE, GREY = PALETTE[0], PALETTE[1], "#b8bec4"
ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0, "ncols": 2}
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0}


def save(ax: Axes | np.ndarray | Sequence[Axes], path: str | os.PathLike[str]) -> Path:
    """Write the figure that holds `ax` as PNG, 150 dots per inch: the whole file appears, or none.

    Args:
        ax: what a function of this package returned: an Axes, or several of one figure.
        path: a name that ends in .png, in a folder that exists; a file of that name is replaced.

    Returns:
        The path written.

    Raises:
        ValueError: the name does not end in .png.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path {str(path)!r} does not end in .png; pass {path.name + '.png'!r} in the same folder")
    if not path.parent.is_dir():
        folder = str(path.parent)
        raise FileNotFoundError(f"path {str(path)!r} is in no existing folder; first make it: os.makedirs({folder!r})")
    figure: Any = axes_of(np.ravel(np.asarray(ax, dtype=object))[0]).figure
    figure = getattr(figure, "figure", figure)  # a SubFigure cannot be saved, the figure around it can
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", pad_inches=0.05)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(picture.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def new_figure(width: float, height: float) -> Any:
    """A figure (inches) which pyplot does not know."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def axes_of(ax: Any, width: float = 0, height: float = 0) -> Axes:
    """`ax` if it is one, or that of a new figure (inches), which pyplot does not know."""
    from matplotlib.axes import Axes

    if ax is None:
        return new_figure(width, height).subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax is a {type(ax).__name__}, wanted a matplotlib Axes; pass such as figure.subplots()")
    return ax


def finite(name: str, values: Any) -> np.ndarray:
    """`values` as finite float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()  # numpy has no bfloat16
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError(f"{name} is empty, of shape {array.shape}; pass one row at least")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name} is NaN or infinite in {bad} of its {array.size} values; leave those rows out")
    return array


def verbatim(text: Any) -> str:
    """A text of the data as it is: matplotlib takes what is between two dollars for a formula, or fails to."""
    return str(text).replace("$", r"\$")


def draw_legend(ax: Axes, **options: Any) -> None:
    """The legend of what is labelled, in the one typography of all pictures."""
    ax.legend(fontsize=8, frameon=False, handletextpad=0.5, **options)


def name_axes(ax: Axes, x: str, y: str) -> Axes:
    """Name the axes, in the one typography of all pictures."""
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)
    if not ax.images:
        ax.spines[["top", "right"]].set_visible(False)
    return ax


def name_entries(ax: Axes, y: str) -> Axes:
    """Name the axes of a picture whose lines run over the entries of x, which have whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return name_axes(ax, "entry of x", y)


def draw_histogram(ax: Axes, values: np.ndarray, color: str) -> None:
    """Bars of `values` (N,) from the least to the greatest, about sqrt(N) of them."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-8 * max(abs(low), abs(high)):  # equal up to rounding, which numpy refuses to cut into bins
        half = 0.5 * max(1.0, abs(high))
        low, high = low - half, high + half
    ax.hist(values, bins=int(np.clip(math.sqrt(len(values)), 11, 41)), range=(low, high), color=color, linewidth=0)


def dot_area(number: int) -> float:
    """The area of a dot among so many, in square points."""
    return float(np.clip(15000 / number, 4, 25))


def shades(number: int) -> list[Any]:
    """So many colours, from dark to light."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](position) for position in np.linspace(0, 0.9, number)]
