"""Monotone splines: tensors to tensors, and no probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

__all__ = ["rational_quadratic"]

FLOOR = 1e-3  # of each bin's share of the interval and of each slope, those of Durkan et al.


def rational_quadratic(parameters: Tensor, x: Tensor, *, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""A monotone rational-quadratic spline on [-bound, bound], the identity outside, number by number.

    With w_k and h_k the width and height of the bin of x, s = h_k / w_k, d_k and d_k+1 the slopes at its ends and
    t in [0, 1] the place of x in it,

        y = y_k + h_k (s t^2 + d_k t (1 - t)) / (s + (d_k + d_k+1 - 2 s) t (1 - t))

    Slopes are 1 at both ends, so that the density of a transformed variable is continuous. Parameters 0 are the
    identity. Pyro's own splines are not used: they assign by masks, of which the number of elements is unknown while
    a step is captured, and in float32 four layers of them come back to x within 1e-3 only, these within 1e-5.

    Args:
        parameters: (..., 3 K - 1) of each number: K widths, K heights (both before a softmax), K - 1 slopes.
        x: numbers (...).
        bound: half the width of the interval.
        inverse: whether x is y, and its inverse is wanted.

    Returns:
        y (or x), and log dy/dx there (of the spline itself, not of its inverse): both (...).

    Source: Durkan et al. 2019, https://arxiv.org/abs/1906.04032, eqs. 4-8; https://github.com/bayesiains/nsf.

    >>> y, log_slope = rational_quadratic(torch.zeros(2, 11), torch.tensor([0.5, 9.0]), bound=3.0)
    >>> torch.allclose(y, torch.tensor([0.5, 9.0])), log_slope.abs().max() < 1e-5
    (True, tensor(True))
    """
    bins = (parameters.size(-1) + 1) // 3
    widths, heights, slopes = parameters.split([bins, bins, bins - 1], -1)
    xs, ys = (_knots(each, bound) for each in (widths, heights))  # (..., K + 1)
    slopes = FLOOR + softplus(slopes + math.log(math.expm1(1 - FLOOR)))
    slopes = pad(slopes, (1, 1), value=1.0)  # (..., K + 1)
    inside = x.abs() < bound
    at = torch.where(inside, x, 0.0)  # where it is not used, a value that has finite gradients
    found = ((ys if inverse else xs)[..., 1:-1] <= at.unsqueeze(-1)).sum(-1, keepdim=True)  # bin 0 ... K - 1
    (x0, x1), (y0, y1), (d0, d1) = (
        (each.gather(-1, found).squeeze(-1), each.gather(-1, found + 1).squeeze(-1)) for each in (xs, ys, slopes)
    )
    s = (y1 - y0) / (x1 - x0)
    curve = d0 + d1 - 2 * s
    if inverse:  # eqs. 6-8, the root in the form that does not cancel
        rise = at - y0
        a = (y1 - y0) * (s - d0) + rise * curve
        b = (y1 - y0) * d0 - rise * curve
        c = -s * rise
        t = 2 * c / (-b - torch.sqrt((b.square() - 4 * a * c).clamp(min=0)))
        out = x0 + t * (x1 - x0)
    else:
        t = (at - x0) / (x1 - x0)
        out = y0 + (y1 - y0) * (s * t.square() + d0 * t * (1 - t)) / (s + curve * t * (1 - t))
    top = d1 * t.square() + 2 * s * t * (1 - t) + d0 * (1 - t).square()
    log_slope = 2 * torch.log(s) + torch.log(top) - 2 * torch.log(s + curve * t * (1 - t))
    return torch.where(inside, out, x), torch.where(inside, log_slope, 0.0)


def _knots(shares: Tensor, bound: float) -> Tensor:
    """K + 1 knots from -bound to bound, no two nearer than a share of `FLOOR`."""
    bins = shares.size(-1)
    inner = torch.cumsum(FLOOR + (1 - FLOOR * bins) * shares.softmax(-1), -1)[..., :-1]
    return pad(pad(bound * (2 * inner - 1), (1, 0), value=-bound), (0, 1), value=bound)
