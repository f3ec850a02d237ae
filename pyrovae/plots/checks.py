"""Predictive checks: a statistic of the observed data beside that of replicated data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.plots.figures import GREY, ORANGE, Values, axes_of, draw_histogram, finite, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["predictive_check", "predictive_checks"]


def predictive_check(observed: float, replicated: Values, p_value: float, name: str, *, ax: Axes | None = None) -> Axes:
    """A statistic of replicated data as a histogram, that of the observed data as a line, the p-value in the title.

    Args:
        observed: the statistic of the observed data.
        replicated: the statistic of each replicated data set (R,).
        p_value: as computed by the caller, in [0, 1].
        name: of the statistic.
    """
    values, mark = finite("replicated", replicated), finite("observed", observed)
    if values.ndim != 1:
        raise ValueError(f"replicated has shape {values.shape}, wanted (R,); pass one statistic for each replicate")
    if mark.size != 1:
        raise ValueError(f"observed has shape {mark.shape}, wanted one number; pass the statistic of all observed data")
    if not 0 <= float(p_value) <= 1:
        raise ValueError(f"p_value is {float(p_value)}, wanted a number in [0, 1]; pass the share of replicates beyond")
    ax = axes_of(ax, 4.2, 2.8)
    draw_histogram(ax, values, GREY)
    ax.axvline(mark.item(), color=ORANGE, linewidth=2)
    ax.locator_params(axis="x", nbins=3)  # numbers of many digits stand apart in narrow panels
    ax.set_title(f"{name}\np = {float(p_value):.3g}", fontsize=9, loc="left")  # two lines, for panels are narrow
    return name_axes(ax, "statistic, replicated (bars) and observed (line)", "replicates per bin")


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
        figure = new_figure(max(4.2, 2.3 * columns), 0.4 + 1.8 * rows)
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
            name_axes(panel, "", "")
    return panels
