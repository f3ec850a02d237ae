"""Walks in latent space: lines between data, one dimension at a time, and a grid over two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.evaluation.predictive import decode, encode
from pyrovae.evaluation.running import check_counts, first_rows, repeating

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
    """What lies between data: z on straight lines between the codes of rows 0 and 1, 2 and 3, ..., decoded.

    Args:
        pair, data, plate, seed: see `evaluating`; an odd last row is left out.
        steps: points on each line S, both ends included.
        latent, site: see `decode`; where the model takes more than x, each line has the inputs of its first row.

    Returns:
        (R, S, *event), as `pyrovae.plots.interpolation` takes it.

    Raises:
        ValueError: for fewer than two rows, or fewer than two steps.
    """
    check_counts(steps=steps)
    batch = first_rows(pair, data, seed)
    if len(batch[0]) < 2 or steps < 2:
        raise ValueError(f"data has {len(batch[0])} rows and steps is {steps}; pass two of each at least")
    batch = tuple(tensor[: len(tensor) // 2 * 2] for tensor in batch)
    z = encode(pair, batch, site=latent, plate=plate, seed=seed)
    fraction = torch.linspace(0, 1, steps, dtype=z.dtype, device=z.device).reshape(1, steps, *[1] * (z.dim() - 1))
    line = torch.lerp(z[::2].unsqueeze(1), z[1::2].unsqueeze(1), fraction)  # (R, S, L)
    like = tuple(tensor[::2].repeat_interleave(steps, 0) for tensor in batch)
    images = decode(pair, line.flatten(0, 1), like=like, latent=latent, site=site, plate=plate, seed=seed)
    return images.unflatten(0, (-1, steps))


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

    Args:
        pair, plate, seed: see `evaluating`.
        like: data, of which the first row is taken.
        z: where to start, (L,). Default: the code of that row.
        dims: which numbers of z to replace. Default: each.
        values: by what, S of them. Default: -3, -2, ..., 3.
        latent, site: see `decode`.

    Returns:
        (len(dims), S, *event), as `pyrovae.plots.traversals` takes it.

    Raises:
        ValueError: if z is not a vector, or has no such dimension.
    """
    batch = _first_row(pair, like, plate, seed)
    z = encode(pair, batch, site=latent, plate=plate, seed=seed)[0] if z is None else torch.as_tensor(z)
    z = z if z.is_floating_point() else z.to(torch.get_default_dtype())  # for values between whole numbers
    dims = list(range(len(z))) if dims is None else list(dims)
    if z.dim() != 1 or not dims or not all(0 <= dim < len(z) for dim in dims):
        raise ValueError(f"dims is {dims} and z has shape {tuple(z.shape)}; pass dims of a z of shape (L,)")
    steps = torch.as_tensor(range(-3, 4) if values is None else values).to(z).flatten()
    points = z.repeat(len(dims), len(steps), 1)  # (dims, S, L)
    for row, dim in enumerate(dims):
        points[row, :, dim] = steps
    images = decode(pair, points.flatten(0, 1), like=batch, latent=latent, site=site, plate=plate, seed=seed)
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
    """What the points of a grid over a two-dimensional latent decode to.

    Args:
        pair, plate, seed: see `evaluating`.
        n: points along each dimension.
        like: data or a batch to call the model with, of which the first row is taken.
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
    batch = _first_row(pair, like, plate, seed)
    code = encode(pair, batch, site=latent, plate=plate, seed=seed)
    if code.shape[1:] != (2,):
        raise ValueError(f"the latent has shape {tuple(code.shape[1:])}, a grid takes (2,); pass latent= another one")
    ends = (0.5 / n, 1 - 0.5 / n) if quantiles else (-float(extent), float(extent))
    grid = torch.linspace(*ends, n, dtype=code.dtype, device=code.device)
    grid = torch.special.ndtri(grid) if quantiles else grid
    z = torch.cartesian_prod(grid, grid)  # (n * n, 2)
    images = decode(pair, z, like=batch, latent=latent, site=site, plate=plate, seed=seed)
    return images.unflatten(0, (n, n)), ends


def _first_row(pair: Any, like: Any, plate: str | None, seed: int) -> tuple[Tensor, ...]:
    """The first row of `like`, as often as the data plate takes rows at the least."""
    with repeating(pair, like, 1, plate=plate, seed=seed) as on:
        return on.batch(len(on.rows))
