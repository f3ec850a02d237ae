"""The curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyrovae.plots.figures import PALETTE, axes_of, draw_legend, name_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["training_curves"]


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
    ax = axes_of(ax, 6, 3.4)
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
    draw_legend(ax)
    return name_axes(ax, "epoch", "nats per datum")
