"""Latents: what their dimensions decode to, where they put the data, how many nats each of them carries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovae.plots.events import as_events, draw_lines, draw_tiles, gap
from pyrovae.plots.figures import (
    ABOVE,
    BESIDE,
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    Values,
    axes_of,
    dot_area,
    draw_legend,
    finite,
    name_axes,
    shades,
    verbatim,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "capacity_curves",
    "clusters",
    "latent_densities",
    "latent_kl",
    "latent_scatter",
    "layers",
    "manifold",
    "traversals",
]

MARKERS = "os^D"  # of the first ten classes, the second ten, ...


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
    data = as_events("images", images, 2, image_shape)
    labels = [f"z[{row}]" for row in range(len(data))] if labels is None else list(labels)
    if len(labels) != len(data):
        raise ValueError(f"labels has {len(labels)} texts and images {len(data)} rows; pass one text for each row")
    marks = [] if values is None else [f"{value:.3g}".replace("-", "−") for value in finite("values", values).ravel()]
    if values is not None and len(marks) != data.shape[1]:
        raise ValueError(f"values has {len(marks)} numbers and images {data.shape[1]} steps; pass one for each step")
    if data.ndim == 3:
        ends = [f"value {mark}" for mark in (marks[0], marks[-1])] if marks else ["lowest value", "highest value"]
        return draw_lines(data, ax, shades(data.shape[1]), labels, "dimension", ends)
    return name_axes(draw_tiles(data, ax, rows=labels, columns=marks), "value of the dimension" if marks else "", "")


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
    data = as_events("images", images, 2, image_shape)
    if min(data.shape[:2]) < 2:
        raise ValueError(f"images is a grid of {data.shape[0]} x {data.shape[1]}, wanted 2 x 2 at least; decode more")
    ends = _ends(extent)
    step = np.array([ends[1] - ends[0], ends[3] - ends[2]]) / (np.array(data.shape[:2]) - 1)
    if data.ndim == 5:
        rows = data.swapaxes(0, 1)[::-1]  # (m, n, H, W, C), the highest z[1] on top
        right, up = step / 2 / (1 + gap(data) / np.array([data.shape[3], data.shape[2]]))  # half an image, without gap
        around = ends[0] - right, ends[1] + right, ends[2] - up, ends[3] + up
        return name_axes(draw_tiles(rows, ax, extent=around), *names)
    ax = axes_of(ax, 5.5, 5.5)
    heights = 0.84 * step[1] * ((data - data.min()) / (np.ptp(data) or 1.0) - 0.5)
    across = 0.42 * step[0] * np.linspace(-1, 1, data.shape[2])
    for i, j in np.ndindex(*data.shape[:2]):
        line = ends[0] + i * step[0] + across, ends[2] + j * step[1] + heights[i, j]
        ax.plot(*line, color=BLUE, linewidth=0.8, marker="." if data.shape[2] == 1 else "")
    return name_axes(ax, *names)


def latent_scatter(z: Values, labels: Values | Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Points of z, coloured by label: themselves if L = 2, their first two principal components if L > 2.

    A component's sign makes its largest loading positive. L = 1 is drawn against the share of the
    point's class below it: one cumulative curve a class.

    Args:
        z: latent points (N, L).
        labels: N class numbers or names, 40 different ones at most.
    """
    points = finite("z", z)
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
    ax = axes_of(ax, 5.6, 4.6)
    rounds, colors = numbers // len(PALETTE), np.array(PALETTE)[numbers % len(PALETTE)]
    dots: dict[str, Any] = {"s": dot_area(len(points)), "alpha": 0.8, "linewidths": 0}
    for kind in np.unique(rounds):  # classes share a collection, in the order of the data: none covers the others
        x, y = points[rounds == kind].T
        ax.scatter(x, y, c=colors[rounds == kind], marker=MARKERS[kind], **dots)
    if np.shape(z)[1] > 1:
        ax.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        from matplotlib.lines import Line2D

        style: dict[str, Any] = {"linestyle": "", "markersize": 5}
        handles = [
            Line2D([], [], color=PALETTE[k % len(PALETTE)], marker=MARKERS[k // len(PALETTE)], label=name, **style)
            for k, name in enumerate(map(verbatim, classes.tolist()))
        ]
        draw_legend(ax, handles=handles, **BESIDE | {"ncols": math.ceil(len(classes) / 20)})
    return name_axes(ax, *names)


def clusters(
    z: Values,
    weights: Values,
    loc: Values,
    covariance: Values,
    labels: Values | Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Points of z as in `latent_scatter`, and over them the components of a mixture of Normals, two sigmas wide.

    Each is numbered at its mean, its line the thicker the larger its weight. In more than two dimensions an ellipse is
    the component's projection on the plane of the picture, whose rim holds 86 % of its mass.

    Args:
        z: latent points (N, L), L at least 2.
        weights: of the components, (C,).
        loc: mean of each component, (C, L).
        covariance: of each component, (C, L, L).
        labels: N class numbers or names.
    """
    points, means, covariances = finite("z", z), finite("loc", loc), finite("covariance", covariance)
    shares = finite("weights", weights)
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"z has shape {points.shape}, wanted (N, L) with L of at least 2; draw latent_scatter(z)")
    shape = (len(shares), points.shape[1])
    if shares.ndim != 1 or means.shape != shape or covariances.shape != (*shape, shape[1]):
        raise ValueError(
            f"weights have shape {shares.shape}, loc {means.shape}, covariance {covariances.shape} for z "
            f"{points.shape}; pass (C,), (C, L) and (C, L, L)"
        )
    centre, directions, names = _principal(points)
    ax = latent_scatter((points - centre) @ directions, labels, ax=ax)
    turn = np.linspace(0, 2 * np.pi, 100)
    circle = 2 * np.stack([np.cos(turn), np.sin(turn)])
    for number, (share, mean, spread) in enumerate(
        zip(shares, (means - centre) @ directions, covariances, strict=True)
    ):
        values, axes = np.linalg.eigh(directions.T @ spread @ directions)
        rim = mean[:, None] + axes @ (np.sqrt(np.maximum(values, 0))[:, None] * circle)
        ax.plot(*rim, color="black", linewidth=0.4 + 1.6 * share / shares.max())
        ax.annotate(str(number), mean, ha="center", va="center", fontsize=8, fontweight="bold")
    return name_axes(ax, *names)


def latent_kl(kl: Values, *, threshold: float = 0.01, ax: Axes | None = None) -> Axes:
    """KL(q(z_j | x) || p(z_j)) of each dimension as bars that fall, those to the left of the dashed line active.

    The threshold is drawn as this line between bars, for 0.01 nats cannot be told from 0 beside a KL of several nats.

    Args:
        kl: mean over data for each dimension (L,), in nats per datum.
        threshold: a dimension above it counts as active, in nats per datum.
    """
    if kl is None:
        raise ValueError(
            "kl is None, as active_units(...).kl is of a pair without a KL by dimension; draw that of whole latents, "
            "layers({'pair': pyrovae.elbo(pair, data).kl})"
        )
    heights = finite("kl", kl)
    if heights.ndim != 1:
        raise ValueError(f"kl has shape {heights.shape}, wanted (L,); pass its mean over data, kl.mean(0)")
    order = np.argsort(-heights, kind="stable")
    active = int((heights > threshold).sum())
    ax = axes_of(ax, 6, 2.8)
    ax.bar(range(len(order)), heights[order], width=0.75, color=[BLUE] * active + [GREY] * (len(order) - active))
    label = f"{active} of {len(order)} above {threshold:g} nats"
    ax.axvline(active - 0.5, color=ORANGE, linewidth=1.2, linestyle="--", label=label)
    places = range(0, len(order), math.ceil(len(order) / 32))
    ax.set_xticks(places, [str(order[place]) for place in places])
    ax.set_xlim(-0.75, len(order) - 0.25)
    draw_legend(ax, **ABOVE)
    return name_axes(ax, "dimension of z, by falling KL", "KL (nats per datum)")


def layers(
    kl: Mapping[str, Mapping[str, float]],
    active: Mapping[str, Mapping[str, str]] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """KL of each layer of latents as a bar, one colour a model, from the data up.

    A layer that a model makes no use of has no KL; `pyrovae.elbo(pair, data).kl` has those of every site.

    Args:
        kl: for each model, by name, the KL of each layer in nats per datum: {"ladder": {"z1": 12.3, "z2": 1.5}}. Layers
            are drawn in the order of the first model.
        active: for each model and layer what is written above its bar, such as "12 / 64".
    """
    if not kl or not all(kl.values()):
        raise ValueError(f"kl is {dict(kl)!r}, wanted the layers of one model at least; pass {{'VAE': {{'z1': 3.2}}}}")
    sites = list(next(iter(kl.values())))
    if other := [name for name in kl if set(kl[name]) != set(sites)]:
        raise ValueError(f"kl of {other[0]!r} has the layers {list(kl[other[0]])}, the first {sites}; pass the same")
    for name, site in product(kl, sites):
        if active is not None and site not in active.get(name, {}):
            raise ValueError(
                f"active has no text for layer {site!r} of {name!r}; pass {{{name!r}: {{{site!r}: '12 / 64', ...}}}}"
            )
    heights = {name: finite(f"kl of {name!r}", [kl[name][site] for site in sites]) for name in kl}
    ax = axes_of(ax, max(4.0, 0.5 + 0.55 * len(sites) * len(kl)), 3.2)
    width = 0.8 / len(kl)
    for number, (name, values) in enumerate(heights.items()):
        places = np.arange(len(sites)) + width * (number - (len(kl) - 1) / 2)
        bars = ax.bar(places, values, width=0.92 * width, color=PALETTE[number % len(PALETTE)], label=name)
        if active is not None:
            ax.bar_label(bars, [active[name][site] for site in sites], fontsize=7, padding=2)
    ax.set_xticks(range(len(sites)), sites)
    ax.margins(y=0.12)
    if len(kl) > 1:
        draw_legend(ax, **ABOVE)
    return name_axes(ax, "layer of latents, from the data up", "KL (nats per datum)")


def capacity_curves(capacity: Values, kl: Values, *, ax: Axes | None = None) -> Axes:
    """KL(q(z_j | x) || p(z_j)) of each dimension and of all together against the capacity C, which is the dashed line.

    The eight dimensions with the highest KL at the last point have colours and are named, the others are grey.

    Args:
        capacity: C at S points of training (S,), nats.
        kl: mean over data for each dimension there (S, L), nats per datum: rows of `active_units(pair, data).kl`.
    """
    levels, values = finite("capacity", capacity), finite("kl", kl)
    if levels.ndim != 1 or values.ndim != 2 or len(levels) != len(values):
        raise ValueError(
            f"capacity has shape {levels.shape} and kl {values.shape}, wanted (S,) and (S, L); pass both so"
        )
    order, ends = np.argsort(-values[-1], kind="stable"), np.array([levels.min(), levels.max()])
    ax = axes_of(ax, 6, 3.8)
    ax.plot(ends, ends, color="black", linewidth=0.9, linestyle="--", label="C")
    ax.plot(levels, values.sum(1), color="black", linewidth=1.6, label="all")
    for place, j in reversed(list(enumerate(order))):
        named = place < 8
        color, label = (PALETTE[place], f"z[{j}]") if named else (GREY, None)
        ax.plot(levels, values[:, j], color=color, linewidth=1.2 if named else 0.7, label=label)
    handles, labels = ax.get_legend_handles_labels()
    shown = [0, 1, *range(len(handles) - 1, 1, -1)]  # by falling KL
    draw_legend(ax, handles=[handles[i] for i in shown], labels=[labels[i] for i in shown], **BESIDE)
    return name_axes(ax, "capacity C (nats)", "KL (nats per datum)")


def latent_densities(
    aggregate: Values,
    prior: Values,
    extent: Sequence[float],
    *,
    components: Values | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The aggregated posterior q(z) as shades, and the prior p(z) over it, in two dimensions.

    The lines are borders of the smallest regions that hold 50, 90 and 99 % of the prior's mass (on the grid). Where the
    prior is the optimal one, they follow the shades.

    Args:
        aggregate: q(z) on a grid (n, m), [i, j] at the i-th value of z[0] (to the right) and the j-th of z[1]
            (upwards), the order of `torch.cartesian_prod(a, b).reshape(n, m, 2)`.
        prior: p(z) on the same grid.
        extent: first and last value of the evenly spaced grid: (low, high), or (low, high) of z[0], then of z[1].
        components: points (C, 2) of the prior, such as the means of a mixture or of q(z | u) at a VampPrior's
            pseudo-inputs u; drawn as crosses.
    """
    q, p = finite("aggregate", aggregate), finite("prior", prior)
    if q.ndim != 2 or q.shape != p.shape or min(q.shape) < 2:
        raise ValueError(
            f"aggregate has shape {q.shape} and prior {p.shape}, wanted (n, m) twice; pass one grid of both"
        )
    if min(q.min(), p.min()) < 0:
        raise ValueError("aggregate or prior is below 0 somewhere, wanted are densities; pass log_prob(z).exp()")
    low_x, high_x, low_y, high_y = _ends(extent)
    x, y = np.linspace(low_x, high_x, q.shape[0]), np.linspace(low_y, high_y, q.shape[1])
    ax = axes_of(ax, 5.5, 5)
    ax.pcolormesh(x, y, q.T, cmap="Blues", shading="nearest", rasterized=True)
    falling = np.sort(p.ravel())[::-1]
    held = falling.cumsum() / (falling.sum() or 1.0)
    last = [min(int(np.searchsorted(held, share)), len(held) - 1) for share in (0.5, 0.9, 0.99)]
    levels = sorted({float(falling[place]) for place in last})
    if np.ptp(p) > 0:  # a flat density has no lines
        ax.contour(x, y, p.T, levels=levels, colors=ORANGE, linewidths=1.1)
    ax.plot([], [], color=ORANGE, linewidth=1.1, label="p(z): 50, 90, 99 %")
    if components is not None:
        points = finite("components", components)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"components has shape {points.shape}, wanted (C, 2); pass points of z")
        ax.scatter(points[:, 0], points[:, 1], marker="x", s=18, color="black", linewidths=0.8, label="components")
    ax.set(xlim=(low_x, high_x), ylim=(low_y, high_y), aspect="equal")
    draw_legend(ax, **ABOVE)
    return name_axes(ax, "z[0]", "z[1]")


def _ends(extent: Sequence[float]) -> list[float]:
    """(low, high) of z[0] and of z[1]."""
    ends = [float(end) for end in extent] * (2 if len(extent) == 2 else 1)
    if len(ends) != 4 or not (ends[0] < ends[1] and ends[2] < ends[3]):
        raise ValueError(
            f"extent is {tuple(extent)}, wanted (low, high) once or twice, low < high; pass such as (-3, 3)"
        )
    return ends


def _plane(points: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Points (N, L) of the classes `numbers` (N,) in two dimensions (N, 2), and the names of these."""
    if points.shape[1] == 1:
        order, counts = np.lexsort((points[:, 0], numbers)), np.bincount(numbers)
        ranks = np.arange(len(points)) - np.repeat(counts.cumsum() - counts, counts)
        below = np.empty(len(points))
        below[order] = (ranks + 0.5) / np.repeat(counts, counts)
        whole = "the class" if len(counts) > 1 else "data"
        return np.stack([points[:, 0], below], axis=1), ["z[0]", f"share of {whole} below"]
    centre, directions, names = _principal(points)
    return (points - centre) @ directions, names


def _principal(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Centre (L,) and directions (L, 2) of the plane that shows most of points (N, L), and their names."""
    if points.shape[1] == 2:
        return np.zeros(2), np.eye(2), ["z[0]", "z[1]"]
    centre = points.mean(0)
    centred = points - centre
    variances, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    variances, directions = variances[:-3:-1] / (variances.sum() or 1.0), directions[:, :-3:-1]  # (2,), (L, 2)
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), [0, 1]])
    names = [
        f"principal component {k + 1} of z ({max(share, 0.0):.0%} of variance)" for k, share in enumerate(variances)
    ]
    return centre, directions, names
