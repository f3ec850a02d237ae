"""Monotone maps of single numbers, with parameters that a network gives: tensors to tensors."""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from pyrovae.nets import as_size

__all__ = ["AffineElements", "Elements", "SplineElements"]

FLOOR = 1e-3  # of each bin's share of the interval and of each slope, those of Durkan et al.


class Elements(Protocol):
    """y = g(x; parameters) of each number by itself; zeros for all parameters are the identity.

    Parameters stand before the numbers, (..., P, D) beside (..., D), which keeps the loops over bins long and fast.
    """

    num_parameters: int

    def forward(self, x: Tensor, parameters: Tensor, /) -> tuple[Tensor, Tensor]:
        """y and log dy/dx of numbers x (..., D) and parameters (..., num_parameters, D), which broadcast."""
        ...

    def inverse(self, y: Tensor, parameters: Tensor, /) -> tuple[Tensor, Tensor]:
        """x and log dy/dx there."""
        ...


class AffineElements:
    """y = exp(s) x + t with s = 3 tanh(gate / 3), so that no map scales by more than e^3 = 20, or less than 1/20.

    >>> AffineElements().forward(torch.tensor([2.0]), torch.tensor([[1.0], [0.0]]))  # t and the gate
    (tensor([3.]), tensor([0.]))
    """

    num_parameters = 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx = s of x (..., D) and parameters (..., 2, D)."""
        shift, log_scale = self._read(parameters)
        return log_scale.exp() * x + shift, log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx = s."""
        shift, log_scale = self._read(parameters)
        return (y - shift) * torch.exp(-log_scale), log_scale

    def _read(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, gate = parameters.unbind(-2)
        return shift, 3 * torch.tanh(gate / 3)


class SplineElements:
    r"""A monotone spline: a ratio of quadratics between K + 1 knots in [-bound, bound], the identity outside.

    With w and h the width and height of the bin of x, s = h / w, d_k and d_k+1 the slopes at its ends and t in [0, 1]
    the place of x in it,

        y = y_k + h (s t^2 + d_k t (1 - t)) / (s + (d_k + d_k+1 - 2 s) t (1 - t))

    Widths and heights are at least 1/1000 of the whole, slopes at least 1/1000. Slopes are 1 at both ends, so that the
    density of a transformed variable has no step. The parameters of a number are K widths, K heights (both before a
    softmax) and the slopes at the K - 1 inner knots (before a softplus).

    Args:
        num_bins: K, at least 2.
        bound: half the width of the interval.

    Raises:
        TypeError, ValueError: for a number of bins that is no whole number from 2 to 500, or a bound that is not
            positive.

    Source: Durkan, Bekasov, Murray & Papamakarios 2019, https://arxiv.org/abs/1906.04032, eqs. 4 to 8 and their floors.

    >>> spline = SplineElements(num_bins=4, bound=3.0)
    >>> y, log_slope = spline.forward(torch.tensor([-5.0, 0.5, 2.0]), torch.zeros(spline.num_parameters, 3))
    >>> y, log_slope.abs().max() < 1e-5
    (tensor([-5.0000,  0.5000,  2.0000]), tensor(True))
    """

    def __init__(self, *, num_bins: int = 8, bound: float = 3.0) -> None:
        num_bins = as_size(num_bins, "num_bins")
        if not 2 <= num_bins <= 500:
            raise ValueError(f"num_bins is {num_bins}, expected 2 to 500 pieces; pass num_bins=8")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound is {bound}, expected a positive number; pass bound=3.0")
        self.num_bins, self.bound, self.num_parameters = num_bins, float(bound), 3 * num_bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx of x (..., D) and parameters (..., 3 K - 1, D)."""
        inside, at, (x0, width, y0, height, s, d0, d1) = self._bin(x, parameters, inverse=False)
        t = (at - x0) / width
        curve = s + (d0 + d1 - 2 * s) * t * (1 - t)
        y = y0 + height * (s * t.square() + d0 * t * (1 - t)) / curve
        return torch.where(inside, y, x), torch.where(inside, _log_slope(t, s, d0, d1), 0.0)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx there."""
        inside, at, (x0, width, y0, height, s, d0, d1) = self._bin(y, parameters, inverse=True)
        rise = at - y0
        bend = rise * (d0 + d1 - 2 * s)
        a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * rise
        discriminant = (b.square() - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny)  # positive, but for rounding
        t = 2 * c / (-b - discriminant.sqrt())  # the form of the root that does not cancel
        t = t + (t.clamp(0, 1) - t).detach()  # rounding may lead out of the bin; dx/dy is still the root's
        return torch.where(inside, x0 + t * width, y), torch.where(inside, _log_slope(t, s, d0, d1), 0.0)

    def _bin(self, value: Tensor, parameters: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Which values are inside, those values, and of the bin of each x_k, w, y_k, h, s, d_k and d_k+1."""
        widths, heights, slopes = parameters.split([self.num_bins, self.num_bins, self.num_bins - 1], -2)
        xs, ys = self._knots(widths), self._knots(heights)  # (..., K + 1, D)
        ds = pad(FLOOR + softplus(slopes + math.log(math.expm1(1 - FLOOR))), (0, 0, 1, 1), value=1.0)
        inside = value.abs() < self.bound
        at = torch.where(inside, value, 0.0)  # where it is not used, a value that has finite gradients
        index = ((ys if inverse else xs)[..., 1:-1, :] <= at.unsqueeze(-2)).sum(-2, keepdim=True)  # bin 0 ... K - 1
        (x0, x1), (y0, y1), (d0, d1) = (
            (each.gather(-2, index).squeeze(-2), each.gather(-2, index + 1).squeeze(-2))
            for each in (knots.expand(*index.shape[:-2], -1, index.size(-1)) for knots in (xs, ys, ds))
        )
        width, height = x1 - x0, y1 - y0
        return inside, at, (x0, width, y0, height, height / width, d0, d1)

    def _knots(self, shares: Tensor) -> Tensor:
        shares = FLOOR + (1 - FLOOR * self.num_bins) * shares.softmax(-2)
        inner = self.bound * (2 * shares.cumsum(-2)[..., :-1, :] - 1)
        # The ends are written, not summed up: what lies beyond them is the identity.
        return pad(pad(inner, (0, 0, 1, 0), value=-self.bound), (0, 0, 0, 1), value=self.bound)


def _log_slope(t: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    top = d1 * t.square() + 2 * s * t * (1 - t) + d0 * (1 - t).square()
    return 2 * torch.log(s) + torch.log(top) - 2 * torch.log(s + (d0 + d1 - 2 * s) * t * (1 - t))
