"""The components of a mixture over the data that they explain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrovae.plots.figures import GREY, PALETTE, Values, axes_of, dot_area, finite, name_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["component_ellipses"]


def component_ellipses(
    x: Values, means: Values, covariances: Values, weights: Values | None = None, *, ax: Axes | None = None
) -> Axes:
    """Data in the plane, and each Normal's mean with its contours of one and two standard deviations.

    Args:
        x: data (N, 2).
        means: of the components, (C, 2).
        covariances: of the components, (C, 2, 2).
        weights: of the components, (C,): the heavier, the darker; those below 0.001 are left out.
    """
    points, centers, spreads = finite("x", x), finite("means", means), finite("covariances", covariances)
    count = len(centers)
    if points.ndim != 2 or points.shape[1] != 2 or centers.shape != (count, 2) or spreads.shape != (count, 2, 2):
        shapes = f"x has shape {points.shape}, means {centers.shape}, covariances {spreads.shape}"
        raise ValueError(f"{shapes}; pass (N, 2), (C, 2) and (C, 2, 2)")
    shares = np.full(count, 1 / count) if weights is None else finite("weights", weights)
    if shares.shape != (count,):
        raise ValueError(f"weights has shape {shares.shape} for {count} components; pass one for each")
    ax = axes_of(ax, 5, 5)
    ax.scatter(points[:, 0], points[:, 1], s=dot_area(len(points)), color=GREY, alpha=0.6, linewidths=0)
    angles = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for k in np.flatnonzero(shares >= 1e-3):
        values, vectors = np.linalg.eigh(spreads[k])
        ring = (vectors * np.sqrt(values.clip(0))) @ circle
        color, alpha = PALETTE[k % len(PALETTE)], 0.3 + 0.7 * shares[k] / shares.max()
        for radius in (1, 2):
            ax.plot(*(centers[k][:, None] + radius * ring), color=color, alpha=alpha, linewidth=1.4)
        ax.plot(*centers[k], marker="+", color=color, alpha=alpha)
    return name_axes(ax, "x[0]", "x[1]")
