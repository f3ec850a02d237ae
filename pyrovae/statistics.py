"""Test statistics of a whole data set x (N, *event), for predictive checks: each is one number."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "STATISTICS",
    "Statistic",
    "by_name",
    "largest",
    "mean",
    "neighbour_correlation",
    "number",
    "sd",
    "smallest",
    "spread_of_totals",
    "zeros",
]

Statistic = Callable[[Tensor], "Tensor | float"]


def mean(x: Tensor) -> Tensor:
    """Mean of all entries."""
    return _real(x).mean()


def sd(x: Tensor) -> Tensor:
    """Root of the variance over data, averaged over the entries of a datum."""
    return _real(x).var(0, correction=0).mean().sqrt()


def smallest(x: Tensor) -> Tensor:
    """Smallest of all entries."""
    return x.min()


def largest(x: Tensor) -> Tensor:
    """Largest of all entries."""
    return x.max()


def zeros(x: Tensor) -> Tensor:
    """Share of the entries that are exactly zero."""
    return _real(x == 0).mean()


def spread_of_totals(x: Tensor) -> Tensor:
    """Standard deviation over data of the sum of a datum: that of the ink of an image, or the length of a text."""
    return _real(x).reshape(len(x), -1).sum(1).std(correction=0)


def neighbour_correlation(x: Tensor) -> Tensor:
    """Root mean square correlation over data of neighbouring entries, in [0, 1]; pairs weigh by their variances.

    Neighbours are adjacent pixels, horizontally and vertically, or adjacent entries of a vector. 0 if nothing varies.
    """
    x = _real(x) - _real(x).mean(0)
    squared, scale = x.new_zeros(()), x.new_zeros(())
    for dim in range(max(1, x.dim() - 2), x.dim()):  # of (C, H, W) the last two
        one, other = x.narrow(dim, 0, x.size(dim) - 1), x.narrow(dim, 1, x.size(dim) - 1)
        squared += (one * other).mean(0).square().sum()
        scale += (one.square().mean(0) * other.square().mean(0)).sum()
    return torch.where(scale > 0, squared / scale, 0.0).sqrt()


STATISTICS: dict[str, Statistic] = {
    "mean": mean,
    "sd": sd,
    "min": smallest,
    "max": largest,
    "zeros": zeros,
    "spread_of_totals": spread_of_totals,
    "neighbour_correlation": neighbour_correlation,
}


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def by_name(statistics: Any) -> dict[str, Statistic]:
    """Statistics by name, from any way to ask for them: see `pyrovae.check`.

    Raises:
        ValueError: for an unknown name, none at all, or two of one name.
        TypeError: for what is neither a name nor a function.

    >>> list(by_name(["mean", torch.median]))
    ['mean', 'median']
    """
    if statistics is None:
        return STATISTICS
    if isinstance(statistics, str) or callable(statistics):
        statistics = [statistics]
    if not isinstance(statistics, Mapping):
        named = [(s if isinstance(s, str) else getattr(s, "__name__", repr(s)), s) for s in statistics]
        statistics = dict(named)
        if len(statistics) < len(named):
            names = [name for name, _ in named]
            raise ValueError(f"statistics has two of one name among {names}; pass a mapping with a name for each")
    if not statistics:
        raise ValueError("statistics is empty; name some of them, or pass None for all")
    functions: dict[str, Statistic] = {}
    for name, statistic in statistics.items():
        if isinstance(statistic, str) and statistic not in STATISTICS:
            near = difflib.get_close_matches(statistic, STATISTICS, n=2, cutoff=0.4)
            guess = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"there is no statistic {statistic!r}; {guess}pass one of {', '.join(STATISTICS)}")
        if not isinstance(statistic, str) and not callable(statistic):
            raise TypeError(f"statistic {name!r} is {statistic!r}; pass a name from STATISTICS or a function of x")
        functions[name] = STATISTICS[statistic] if isinstance(statistic, str) else statistic
    return functions


def number(name: str, statistic: Statistic, x: Tensor) -> float:
    """A statistic of x (N, *event), as one finite number.

    Raises:
        ValueError: where it is none.
    """
    value = torch.as_tensor(statistic(x))
    if value.numel() != 1:
        raise ValueError(f"statistic {name!r} returns shape {tuple(value.shape)}, one number is wanted; reduce it")
    if not math.isfinite(found := value.item()):
        raise ValueError(
            f"statistic {name!r} is {found} for the data or a replicate; make it finite, or look at the model's values"
        )
    return found
