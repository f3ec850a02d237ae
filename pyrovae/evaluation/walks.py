"""Walks in latent space: lines between data, one dimension at a time, and a grid over two.

On a walk nothing else changes: the other latents keep one draw given the datum, of the guide or, where the model sums
them, of p(c | x, z). Those whose distribution in the model depends on what is walked, as z1 on z2 of a ladder, are
drawn from it, with the same noise at each point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.evaluation.points import at_data, by_row, decoded
from pyrovae.evaluation.predictive import encode
from pyrovae.evaluation.running import Evaluation, check_counts, evaluating_first, first_rows
from pyrovae.evaluation.sites import is_discrete, latent_site, observed_site, rows_first

__all__ = ["interpolate", "manifold", "traverse"]


def interpolate(
    pair: Any,
    data: Any,
    *,
    steps: int = 10,
    latent: str | None = None,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> Tensor:
    """What lies between data: latents on straight lines between the codes of rows 0 and 1, 2 and 3, ..., decoded.

    Args:
        pair, data, plate, seed: see `evaluating`; an odd last row is left out.
        steps: points on each line S, both ends included.
        latent: walk this one only. Default: all continuous ones of a datum. The others are those of each line's first
            row, and so is what the model takes beside x.
        site: see `decode`.

    Returns:
        (R, S, *event), as `pyrovae.plots.interpolation` takes it.

    Raises:
        ValueError: for fewer than two rows, or fewer than two steps.
    """
    check_counts(steps=steps)
    batch = first_rows(pair, data, seed)
    rows = len(batch[0]) // 2 * 2
    if rows < 2 or steps < 2:
        raise ValueError(f"data has {len(batch[0])} rows and steps is {steps}; pass two of each at least")
    with evaluating_first(pair, batch, None, plate=plate, seed=seed) as on:
        name, walked = observed_site(on.known, site), {}
        for walk in [latent_site(on, latent)] if latent else _continuous(on):
            z = _codes(pair, on, walk["name"], plate, seed)[:rows]
            fraction = torch.linspace(0, 1, steps, dtype=z.dtype, device=z.device)
            line = torch.lerp(z[::2].unsqueeze(1), z[1::2].unsqueeze(1), fraction.reshape(1, -1, *[1] * (z.dim() - 1)))
            walked[walk["name"]] = by_row(line.flatten(0, 1), walk)  # (R * S, L)
        first = torch.arange(0, rows, 2).repeat_interleave(steps)
        return decoded(on, first, walked, at_data(on), name, seed).unflatten(0, (-1, steps))


def _codes(pair: Any, on: Evaluation, site: str, plate: str | None, seed: int) -> Tensor:
    return encode(pair, on.batch(len(on.rows)), site=site, plate=plate, seed=seed, batch_size=on.batch_size)


def _continuous(on: Evaluation) -> list[dict[str, Any]]:
    """The continuous latents that the guide samples for each datum."""
    first = latent_site(on)  # says so, if there is none
    names = [name for name in on.known.latent if name not in {first["name"], *on.known.global_latent}]
    others = [latent_site(on, name) for name in names if name not in on.known.enumerated]
    return [first, *(site for site in others if not is_discrete(site))]


def traverse(
    pair: Any,
    like: Any,
    *,
    z: Tensor | None = None,
    dims: Sequence[int] | None = None,
    values: Tensor | Sequence[float] | None = None,
    latent: str | None = None,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> Tensor:
    """What each dimension of z does: z of one datum with one of its numbers replaced, decoded.

    The other latents keep a draw given that datum, and the noise of those below is the same at each point.

    Args:
        pair, plate, seed: see `evaluating`.
        like: data, of which the first row is taken; all that a guide was fitted to that has a row for each.
        z: where to start, (L,). Default: the code of that row.
        dims: which numbers of z to replace. Default: each.
        values: by what, S of them. Default: -3, -2, ..., 3.
        latent, site: see `decode`.

    Returns:
        (len(dims), S, *event), as `pyrovae.plots.traversals` takes it.

    Raises:
        TypeError, ValueError: if z is not a vector of the latent's length, or has no such dimension.
    """
    if isinstance(dims, int):
        raise TypeError(f"dims is {dims}, a sequence is wanted; pass dims=[{dims}]")
    with evaluating_first(pair, like, 1, plate=plate, seed=seed) as on:
        at, name = latent_site(on, latent), observed_site(on.known, site)
        code = _codes(pair, on, at["name"], plate, seed)[0]
        z = code if z is None else torch.as_tensor(z).to(code)  # of real numbers, for values between whole ones
        if code.dim() != 1:
            raise ValueError(
                f"latent {at['name']!r} has shape {tuple(code.shape)}, a traversal takes (L,); pass latent="
            )
        dims = list(range(z.numel())) if dims is None else list(dims)
        if z.shape != code.shape or not dims or not all(0 <= dim < len(z) for dim in dims):
            raise ValueError(
                f"dims is {dims} and z has shape {tuple(z.shape)}, latent {at['name']!r} {tuple(code.shape)}; "
                "pass dims of a z of that shape"
            )
        steps = torch.as_tensor(range(-3, 4) if values is None else values).to(z).flatten()
        if not len(steps):
            raise ValueError(f"values is {values}, one number at least is wanted; pass values=[-1.0, 0.0, 1.0]")
        points = z.repeat(len(dims), len(steps), 1)  # (dims, S, L)
        for row, dim in enumerate(dims):
            points[row, :, dim] = steps
        walked = {at["name"]: by_row(points.flatten(0, 1), at)}
        images = decoded(on, torch.zeros(len(dims) * len(steps), dtype=torch.long), walked, at_data(on), name, seed)
        return images.unflatten(0, (len(dims), len(steps)))


def manifold(
    pair: Any,
    n: int = 20,
    *,
    like: Any,
    extent: float = 3.0,
    quantiles: bool = False,
    latent: str | None = None,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> tuple[Tensor, tuple[float, float]]:
    """What the points of a grid over a two-dimensional latent decode to, the other latents as in `traverse`.

    Args:
        pair, plate, seed: see `evaluating`.
        n: points along each dimension.
        like: data, of which the first row is taken; all that a guide was fitted to that has a row for each.
        extent: the grid goes evenly from -extent to extent.
        quantiles: space it evenly in quantiles of the standard Normal instead: u = (i + 1/2) / n through the inverse of
            its distribution function, so that each point stands for equally much of the prior.
        latent, site: see `decode`.

    Returns:
        images (n, n, *event), [i, j] decoded from the i-th value of z[0] and the j-th of z[1]; and the first and last
        value of the even grid, in z or in u: as `pyrovae.plots.manifold` takes them.

    Raises:
        ValueError: if the latent has not two dimensions.

    Source: Kingma & Welling 2014, figure 4, for the grid in quantiles.
    """
    check_counts(n=n)
    if n < 2 or not 0 < extent < math.inf:
        raise ValueError(f"n is {n} and extent {extent}; pass n=20 and extent=3.0, say")
    with evaluating_first(pair, like, 1, plate=plate, seed=seed) as on:
        at, name = latent_site(on, latent), observed_site(on.known, site)
        code = rows_first(at["value"], at)
        if code.shape[1:] != (2,):
            raise ValueError(
                f"the latent has shape {tuple(code.shape[1:])}, a grid takes (2,); pass latent= another one"
            )
        ends = (0.5 / n, 1 - 0.5 / n) if quantiles else (-float(extent), float(extent))
        grid = torch.linspace(*ends, n, dtype=code.dtype, device=code.device)
        grid = torch.special.ndtri(grid) if quantiles else grid
        walked = {at["name"]: by_row(torch.cartesian_prod(grid, grid), at)}  # (n * n, 2)
        images = decoded(on, torch.zeros(n * n, dtype=torch.long), walked, at_data(on), name, seed)
        return images.unflatten(0, (n, n)), ends
