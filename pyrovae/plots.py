"""Pictures of a pair and of its run: every function takes numbers, draws on a matplotlib Axes and returns it.

Nothing here knows a pair, an objective or a data set: arguments are tensors, arrays and plain mappings. Common to all:

* `ax=` is the Axes to draw on. Without it a figure is made outside pyplot: no window, no backend, no global list of
  figures. `save` writes it as PNG.
* An image is (C, H, W) with C = 1 (grey) or 3 (RGB), or (H, W), or flat with `image_shape=` (C, H, W) or (H, W). It is
  clipped to [0, 1] for display only, 0 black and 1 white. Any other event is a vector (D,), drawn as a line over its
  D entries. Below, *event is an image or a vector.
* z[0], z[1], ... are the dimensions of a latent, counted from 0 as in the tensor.
* A shape that does not fit, an empty array, a NaN or an infinity is a ValueError.

    >>> import torch
    >>> ax = image_grid(torch.rand(6, 1, 8, 8), columns=3)
    >>> ax.images[0].get_array().shape  # 2 x 3 images of 8 x 8 pixels, one white pixel between them
    (17, 26)
"""

from __future__ import annotations

import io
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "image_grid",
    "interpolation",
    "latent_kl",
    "latent_scatter",
    "manifold",
    "predictive_check",
    "predictive_checks",
    "reconstructions",
    "samples",
    "save",
    "training_curves",
    "traversals",
]

Values = torch.Tensor | npt.ArrayLike

# Ten colours that stay apart under the common colour blindnesses; ordered here so that the greys come last.
# Source: M. Petroff 2021, Accessible Color Sequences for Data Visualization, https://arxiv.org/abs/2107.02270
PALETTE = (
    "#3f90da", "#e76300", "#832db6", "#ffa90e", "#bd1f01", "#92dadd", "#a96b59", "#b9ac70", "#717581", "#94a4a2",
)  # fmt: skip
BLUE, ORANGE, GREY = PALETTE[0], PALETTE[1], "#b8bec4"
MARKERS = "os^D"  # of the first ten classes, the second ten, ...
ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0, "ncols": 2}
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0}


def save(ax: Axes | np.ndarray | Sequence[Axes], path: str | os.PathLike[str]) -> Path:
    """Write the figure that holds `ax` as PNG, 150 dots per inch: the whole file appears, or none.

    Args:
        ax: what a function of this module returned: an Axes, or several of one figure.
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
    figure: Any = _axes(np.ravel(np.asarray(ax, dtype=object))[0]).figure
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


def training_curves(history: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """Every column train_* and validation_* against the epoch: one colour a quantity, training the paler line.

    A dot marks the lowest `validation_loss`. Values that are missing (NaN, None) or infinite are left out.

    Args:
        history: columns of equal length: "epoch", and any of train_* and validation_*, in nats per datum.

    Raises:
        ValueError: there is no epoch, nothing to plot, or a column of another length.
    """
    names = [name for name in history if name.startswith(("train_", "validation_"))]
    if "epoch" not in history or not names:
        wanted = "'epoch' and train_* or validation_*"
        raise ValueError(f"history has the columns {list(history)}, wanted {wanted}; add what is missing")
    columns = {name: np.asarray(history[name], dtype=float) for name in ("epoch", *names)}
    epoch = columns.pop("epoch")
    for name, values in columns.items():
        if values.shape != epoch.shape:
            counts = f"{values.size} values, history['epoch'] {epoch.size}"
            raise ValueError(f"history[{name!r}] has {counts}; write None for a value that is missing")
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not columns:
        raise ValueError(f"history has no finite value in {names}, wanted one at least; train for an epoch first")
    ax = _axes(ax, 6, 3.4)
    quantities = list(dict.fromkeys(name.split("_", 1)[1] for name in columns))
    for name, values in columns.items():
        split, quantity = name.split("_", 1)
        color = PALETTE[quantities.index(quantity) % len(PALETTE)]
        known = np.isfinite(values)
        alpha, marker = 0.45 if split == "train" else 1.0, "o" if known.sum() == 1 else ""
        label = name.replace("_", " ")
        ax.plot(epoch[known], values[known], color=color, alpha=alpha, marker=marker, markersize=3, label=label)
        if name == "validation_loss":
            best = int(np.argmin(np.where(known, values, np.inf)))
            label = f"best validation (epoch {epoch[best]:g})"
            ax.plot(epoch[best], values[best], "o", color=color, markersize=6, markeredgecolor="white", label=label)
    _legend(ax)
    return _label(ax, "epoch", "nats per datum")


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
    data = _data("images", images, 1, image_shape)
    if data.ndim != 4:
        raise ValueError(f"images has shape {data.shape}, wanted (N, C, H, W) or (N, H, W); pass image_shape=")
    columns = math.ceil(math.sqrt(len(data))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns is {columns}, wanted at least 1; leave it out for a square picture")
    rows, columns = math.ceil(len(data) / columns), min(columns, len(data))
    blank = np.ones((rows * columns - len(data), *data.shape[1:]))
    return _tiles(np.concatenate([data, blank]).reshape(rows, columns, *data.shape[1:]), ax, title=title)


def reconstructions(
    x: Values, reconstructed: Values, *, ax: Axes | None = None, num: int = 10, image_shape: Sequence[int] | None = None
) -> Axes:
    """The first data above their reconstructions; of vectors, each reconstruction as a line over that of its datum.

    Args:
        x: data (N, *event).
        reconstructed: their reconstructions (N, *event).
        num: how many data at most.
    """
    data, means = _data("x", x, 1, image_shape), _data("reconstructed", reconstructed, 1, image_shape)
    if data.shape != means.shape:
        shapes = f"x has shape {tuple(np.shape(x))}, reconstructed {tuple(np.shape(reconstructed))}"
        raise ValueError(f"{shapes}; pass one reconstruction for each datum, such as the mean over samples")
    if num < 1:
        raise ValueError(f"num is {num}, wanted at least 1; leave it out for 10")
    names = ["data", "reconstruction"]
    if data.ndim == 2:
        rows = [str(row) for row in range(min(num, len(data)))]
        return _lines(np.stack([data[:num], means[:num]], axis=1), ax, [GREY, BLUE], rows, "datum", names)
    return _tiles(np.stack([data[:num], means[:num]]), ax, rows=names)


def samples(
    images: Values, *, ax: Axes | None = None, columns: int | None = None, image_shape: Sequence[int] | None = None
) -> Axes:
    """Samples of x as an image grid; vectors as a histogram (D = 1), a scatter (D = 2) or one line each (D > 2).

    Args:
        images: (N, *event).
        columns: images per row, as in `image_grid`.
    """
    data = _data("images", images, 1, image_shape)
    if data.ndim == 4:
        return image_grid(images, ax=ax, columns=columns, image_shape=image_shape)
    ax = _axes(ax, *((4.2, 3.4) if data.shape[1] <= 2 else (6, 3)))
    if data.shape[1] == 1:
        _histogram(ax, data[:, 0], BLUE)
        return _label(ax, "x[0]", "samples per bin")
    if data.shape[1] == 2:
        ax.scatter(data[:, 0], data[:, 1], s=_dot(len(data)), color=BLUE, alpha=0.7, linewidths=0)
        return _label(ax, "x[0]", "x[1]")
    ax.plot(np.arange(data.shape[1]), data.T, color=BLUE, linewidth=0.9, alpha=max(0.1, min(0.8, 8 / len(data))))
    return _entries(ax, "value")


def interpolation(images: Values, *, ax: Axes | None = None, image_shape: Sequence[int] | None = None) -> Axes:
    """Decoded points on the way between two data, each way a row from left to right; vectors from dark to light lines.

    Args:
        images: R ways in S even steps, both ends included: (R, S, *event).
    """
    data = _data("images", images, 2, image_shape)
    if data.ndim == 3:
        return _lines(data, ax, _shades(data.shape[1]), list(map(str, range(len(data)))), "way", ["start", "end"])
    marks = [f"{fraction:.2g}" for fraction in np.linspace(0, 1, data.shape[1])]
    return _label(_tiles(data, ax, columns=marks), "fraction of the way", "")


def traversals(
    images: Values,
    labels: Sequence[str] | None = None,
    *,
    values: Values | None = None,
    ax: Axes | None = None,
    image_shape: Sequence[int] | None = None,
) -> Axes:
    """Decoded points along single dimensions of z, each a row, its value growing to the right (vectors: lighter).

    Args:
        images: L dimensions in S steps: (L, S, *event).
        labels: one text a row, such as "z[3], 1.92 nats"; z[0], z[1], ... if not given.
        values: the S values that each dimension takes, written below the picture.
    """
    data = _data("images", images, 2, image_shape)
    labels = [f"z[{row}]" for row in range(len(data))] if labels is None else list(labels)
    if len(labels) != len(data):
        raise ValueError(f"labels has {len(labels)} texts and images {len(data)} rows; pass one text for each row")
    marks = [] if values is None else [f"{value:.3g}".replace("-", "−") for value in _array("values", values).ravel()]
    if values is not None and len(marks) != data.shape[1]:
        raise ValueError(f"values has {len(marks)} numbers and images {data.shape[1]} steps; pass one for each step")
    if data.ndim == 3:
        ends = [f"value {mark}" for mark in (marks[0], marks[-1])] if marks else ["lowest value", "highest value"]
        return _lines(data, ax, _shades(data.shape[1]), labels, "dimension", ends)
    return _label(_tiles(data, ax, rows=labels, columns=marks), "value of the dimension" if marks else "", "")


def manifold(
    images: Values,
    extent: Sequence[float],
    *,
    names: tuple[str, str] = ("z[0]", "z[1]"),
    ax: Axes | None = None,
    image_shape: Sequence[int] | None = None,
) -> Axes:
    """What the points of a two-dimensional grid in z decode to, each at its place; a vector as a small line.

    The axes are in units of z, so encoded data can be scattered over the picture.

    Args:
        images: (n, m, *event), [i, j] decoded from the i-th value of z[0] (to the right) and the j-th of z[1]
            (upwards): the order of `torch.cartesian_prod(a, b).reshape(n, m, 2)`.
        extent: first and last value of the evenly spaced grid: (low, high), or (low, high) of z[0], then of z[1].
        names: of the axes, for a grid that is even in something else, such as quantiles of the prior.
    """
    data = _data("images", images, 2, image_shape)
    if min(data.shape[:2]) < 2:
        raise ValueError(f"images is a grid of {data.shape[0]} x {data.shape[1]}, wanted 2 x 2 at least; decode more")
    ends = [float(end) for end in extent] * (2 if len(extent) == 2 else 1)
    if len(ends) != 4 or not (ends[0] < ends[1] and ends[2] < ends[3]):
        raise ValueError(
            f"extent is {tuple(extent)}, wanted (low, high) once or twice, low < high; pass such as (-3, 3)"
        )
    step = np.array([ends[1] - ends[0], ends[3] - ends[2]]) / (np.array(data.shape[:2]) - 1)
    if data.ndim == 5:
        rows = data.swapaxes(0, 1)[::-1]  # (m, n, H, W, C), the highest z[1] on top
        right, up = step / 2 / (1 + _gap(data) / np.array([data.shape[3], data.shape[2]]))  # half an image, without gap
        return _label(_tiles(rows, ax, extent=(ends[0] - right, ends[1] + right, ends[2] - up, ends[3] + up)), *names)
    ax = _axes(ax, 5.5, 5.5)
    heights = 0.84 * step[1] * ((data - data.min()) / (np.ptp(data) or 1.0) - 0.5)
    across = 0.42 * step[0] * np.linspace(-1, 1, data.shape[2])
    for i, j in np.ndindex(*data.shape[:2]):
        line = ends[0] + i * step[0] + across, ends[2] + j * step[1] + heights[i, j]
        ax.plot(*line, color=BLUE, linewidth=0.8, marker="." if data.shape[2] == 1 else "")
    return _label(ax, *names)


def latent_scatter(z: Values, labels: Values | Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Points of z, coloured by label: themselves if L = 2, their first two principal components if L > 2.

    A component's sign makes its largest loading positive. L = 1 is drawn against the share of the
    point's class below it: one cumulative curve a class.

    Args:
        z: latent points (N, L).
        labels: N class numbers or names, 40 different ones at most.
    """
    points = _array("z", z)
    if points.ndim != 2:
        raise ValueError(f"z has shape {points.shape}, wanted (N, L); pass z.reshape(len(z), -1)")
    given = np.asarray(labels.tolist() if isinstance(labels, torch.Tensor) else labels)
    given = np.zeros(len(points)) if labels is None else given
    if given.shape != (len(points),):
        raise ValueError(f"labels has shape {given.shape} and z {points.shape}; pass one label for each row of z")
    classes, numbers = np.unique(given, return_inverse=True)
    limit = len(PALETTE) * len(MARKERS)
    if len(classes) > limit:
        raise ValueError(f"labels has {len(classes)} different values, wanted {limit} at most; group them into classes")
    points, names = _plane(points, numbers)
    ax = _axes(ax, 5.6, 4.6)
    rounds, colors = numbers // len(PALETTE), np.array(PALETTE)[numbers % len(PALETTE)]
    for kind in np.unique(rounds):  # classes share a collection, in the order of the data: none covers the others
        x, y = points[rounds == kind].T
        ax.scatter(x, y, s=_dot(len(points)), c=colors[rounds == kind], marker=MARKERS[kind], alpha=0.8, linewidths=0)
    if np.shape(z)[1] > 1:
        ax.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        from matplotlib.lines import Line2D

        style: dict[str, Any] = {"linestyle": "", "markersize": 5}
        handles = [
            Line2D([], [], color=PALETTE[k % len(PALETTE)], marker=MARKERS[k // len(PALETTE)], label=str(name), **style)
            for k, name in enumerate(classes.tolist())
        ]
        _legend(ax, handles=handles, **BESIDE | {"ncols": math.ceil(len(classes) / 20)})
    return _label(ax, *names)


def latent_kl(kl: Values, *, threshold: float = 0.01, ax: Axes | None = None) -> Axes:
    """KL(q(z_j | x) || p(z_j)) of each dimension as bars that fall, those to the left of the dashed line active.

    The threshold is drawn as this line between bars, for 0.01 nats cannot be told from 0 beside a KL of several nats.

    Args:
        kl: mean over data for each dimension (L,), in nats per datum.
        threshold: a dimension above it counts as active, in nats per datum.
    """
    heights = _array("kl", kl)
    if heights.ndim != 1:
        raise ValueError(f"kl has shape {heights.shape}, wanted (L,); pass its mean over data, kl.mean(0)")
    order = np.argsort(-heights, kind="stable")
    active = int((heights > threshold).sum())
    ax = _axes(ax, 6, 2.8)
    ax.bar(range(len(order)), heights[order], width=0.75, color=[BLUE] * active + [GREY] * (len(order) - active))
    label = f"{active} of {len(order)} above {threshold:g} nats"
    ax.axvline(active - 0.5, color=ORANGE, linewidth=1.2, linestyle="--", label=label)
    places = range(0, len(order), math.ceil(len(order) / 32))
    ax.set_xticks(places, [str(order[place]) for place in places])
    ax.set_xlim(-0.75, len(order) - 0.25)
    _legend(ax, **ABOVE)
    return _label(ax, "dimension of z, by falling KL", "KL (nats per datum)")


def predictive_check(observed: float, replicated: Values, p_value: float, name: str, *, ax: Axes | None = None) -> Axes:
    """A statistic of replicated data as a histogram, that of the observed data as a line, the p-value in the title.

    Args:
        observed: the statistic of the observed data.
        replicated: the statistic of each replicated data set (R,).
        p_value: as computed by the caller, in [0, 1].
        name: of the statistic.
    """
    values, mark = _array("replicated", replicated), _array("observed", observed)
    if values.ndim != 1:
        raise ValueError(f"replicated has shape {values.shape}, wanted (R,); pass one statistic for each replicate")
    if mark.size != 1:
        raise ValueError(f"observed has shape {mark.shape}, wanted one number; pass the statistic of all observed data")
    if not 0 <= float(p_value) <= 1:
        raise ValueError(f"p_value is {float(p_value)}, wanted a number in [0, 1]; pass the share of replicates beyond")
    ax = _axes(ax, 4.2, 2.8)
    _histogram(ax, values, GREY)
    ax.axvline(mark.item(), color=ORANGE, linewidth=2)
    ax.set_title(f"{name}\np = {float(p_value):.3g}", fontsize=9, loc="left")  # two lines, for panels are narrow
    return _label(ax, "statistic, replicated (bars) and observed (line)", "replicates per bin")


def predictive_checks(
    checks: Sequence[Mapping[str, Any]], *, axes: Sequence[Axes] | np.ndarray | None = None, columns: int = 3
) -> np.ndarray:
    """Several predictive checks side by side; in a figure made here they share the names of their axes.

    Args:
        checks: for each, the arguments of `predictive_check`: observed, replicated, p_value, name.
        axes: where to draw, one Axes for each check.
        columns: checks per row of a figure made here.

    Returns:
        The axes, (len(checks),).
    """
    wanted = ("observed", "replicated", "p_value", "name")
    if not checks:
        raise ValueError(f"checks is empty, wanted one mapping at least; pass such as dict of {wanted}")
    for number, check in enumerate(checks):
        if missing := [key for key in wanted if key not in check]:
            raise ValueError(f"checks[{number}] has the keys {list(check)}, without {missing}; pass all of {wanted}")
    figure = None
    if axes is None:
        columns = max(1, min(columns, len(checks)))
        rows = math.ceil(len(checks) / columns)
        figure = _figure(max(4.2, 2.3 * columns), 0.4 + 1.8 * rows)
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for unused in axes[len(checks) :]:
            unused.remove()
        axes = axes[: len(checks)]
    panels = np.ravel(np.asarray(axes, dtype=object))
    if len(panels) != len(checks):
        raise ValueError(f"axes has {len(panels)} Axes and checks {len(checks)} entries; pass one Axes for each check")
    for panel, check in zip(panels, checks, strict=True):
        predictive_check(*(check[key] for key in wanted), ax=panel)
    if figure is not None:
        figure.supxlabel(panels[0].get_xlabel(), fontsize=9)
        figure.supylabel(panels[0].get_ylabel(), fontsize=9)
        for panel in panels:
            _label(panel, "", "")
    return panels


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(ax: Any, width: float = 0, height: float = 0) -> Axes:
    """`ax` if it is one, or that of a new figure (inches), which pyplot does not know."""
    from matplotlib.axes import Axes

    if ax is None:
        return _figure(width, height).subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax is a {type(ax).__name__}, wanted a matplotlib Axes; pass such as figure.subplots()")
    return ax


def _array(name: str, values: Any) -> np.ndarray:
    """`values` as finite float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()  # numpy has no bfloat16
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError(f"{name} is empty, of shape {array.shape}; pass one row at least")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name} is NaN or infinite in {bad} of its {array.size} values; leave those rows out")
    return array


def _data(name: str, values: Any, leading: int, image_shape: Sequence[int] | None) -> np.ndarray:
    """Images as (*leading, H, W, C), clipped to [0, 1]; vectors as (*leading, D)."""
    array = _array(name, values)
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


def _gap(images: np.ndarray) -> int:
    """White pixels between neighbouring images (..., H, W, C)."""
    return max(1, max(images.shape[-3:-1]) // 16)


def _tiles(
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
    down, across = height + _gap(images), width + _gap(images)
    canvas = np.ones((num_rows, num_columns, down, across, channels))
    canvas[:, :, :height, :width] = images
    canvas = canvas.swapaxes(1, 2).reshape(num_rows * down, num_columns * across, channels)  # (R * down, S * across, C)
    canvas = canvas[: height - down, : width - across]  # no gap after the last
    inches = min(6.0, max(1.6, 0.7 * num_columns))
    texts = 0.3 * (title is not None) + 0.4 * (len(columns) > 0)
    ax = _axes(ax, inches, inches * canvas.shape[0] / canvas.shape[1] + texts)
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
    return _label(ax, "", "")


def _lines(
    values: np.ndarray, ax: Axes | None, colors: Sequence[Any], rows: Sequence[str], kind: str, names: Sequence[str]
) -> Axes:
    """Vectors (R, S, D): S lines a row, the rows below one another; `names` are those of the first and last line."""
    apart = 1.1 * (float(np.ptp(values)) or 1.0)
    ax = _axes(ax, 6, min(9.0, 1.2 + 0.5 * len(values)))
    style: dict[str, Any] = {"linewidth": 1.3, "markersize": 3, "marker": "o" if values.shape[2] <= 12 else ""}
    for row, number in np.ndindex(*values.shape[:2]):
        label = {0: names[0], values.shape[1] - 1: names[-1]}.get(number) if row == 0 else None
        ax.plot(values[row, number] - row * apart, color=colors[number], label=label, **style)
    middle = (values.max() + values.min()) / 2
    ax.set_yticks([middle - row * apart for row in range(len(values))], rows)
    ax.tick_params(axis="y", length=0)
    _legend(ax, **ABOVE)
    return _entries(ax, f"{kind} ({apart:.2g} apart)")


def _plane(points: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Points (N, L) of the classes `numbers` (N,) in two dimensions (N, 2), and the names of these."""
    if points.shape[1] == 1:
        order, counts = np.lexsort((points[:, 0], numbers)), np.bincount(numbers)
        ranks = np.arange(len(points)) - np.repeat(counts.cumsum() - counts, counts)
        below = np.empty(len(points))
        below[order] = (ranks + 0.5) / np.repeat(counts, counts)
        whole = "the class" if len(counts) > 1 else "data"
        return np.stack([points[:, 0], below], axis=1), ["z[0]", f"share of {whole} below"]
    if points.shape[1] == 2:
        return points, ["z[0]", "z[1]"]
    centred = points - points.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    variances, directions = variances[:-3:-1] / (variances.sum() or 1.0), directions[:, :-3:-1]  # (2,), (L, 2)
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), [0, 1]])
    names = [
        f"principal component {k + 1} of z ({max(share, 0.0):.0%} of variance)" for k, share in enumerate(variances)
    ]
    return centred @ directions, names


def _histogram(ax: Axes, values: np.ndarray, color: str) -> None:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-8 * max(abs(low), abs(high)):  # equal up to rounding, which numpy refuses to cut into bins
        half = 0.5 * max(1.0, abs(high))
        low, high = low - half, high + half
    ax.hist(values, bins=int(np.clip(math.sqrt(len(values)), 11, 41)), range=(low, high), color=color, linewidth=0)


def _dot(number: int) -> float:
    """The area of a dot among so many, in square points."""
    return float(np.clip(15000 / number, 4, 25))


def _shades(number: int) -> list[Any]:
    import matplotlib

    return [matplotlib.colormaps["viridis"](position) for position in np.linspace(0, 0.9, number)]


def _legend(ax: Axes, **options: Any) -> None:
    ax.legend(fontsize=8, frameon=False, handletextpad=0.5, **options)


def _label(ax: Axes, x: str, y: str) -> Axes:
    """Name the axes, in the one typography of all pictures."""
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)
    if not ax.images:
        ax.spines[["top", "right"]].set_visible(False)
    return ax


def _entries(ax: Axes, y: str) -> Axes:
    """Name the axes of a picture whose lines run over the entries of x, which have whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _label(ax, "entry of x", y)
