r"""Bijections of vectors, each with an inverse and its derivatives, and without a value that Python reads.

Pyro has them all; these are for what its own can't do. `Planar` and `Radial` have no inverse there, so that a density
at a point that was not just drawn (wake-sleep, STL, annealing, an aggregate) is an error, and no parameter near zero
makes `Planar` the identity. `AffineAutoregressive` inverts in float32 only, and its and the splines' Python reads the
values of tensors, which a captured step can't follow.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions.constraints as constraints
import torch
from torch import Tensor
from torch.distributions.transforms import Transform, _InverseTransform
from torch.nn.functional import softplus

__all__ = ["Affine", "AffineElements", "Autoregressive", "Planar", "Radial", "SplineElements", "inverse_softplus"]

BISECTIONS = 48  # to 4e-15 of the bracket, before Newton's step


class _Bijection(Transform):
    """Of vectors; remembers its last point, so that the density of a draw takes no inverse."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)

    @property
    def inv(self) -> Transform:
        """The inverse. A new object each time: kept, it would be a cycle that holds a step's graph until collected."""
        return _InverseTransform(self)


class Affine(_Bijection):
    """y = loc + scale x."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.scale = loc, scale

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of log scale."""
        return self.scale.log().sum(-1)


class Planar(_Bijection):
    r"""A planar flow.

        y = x + u^ tanh(w.x + b),    u^ = u + (m(w.u) - w.u) w / |w|^2,    m(t) = softplus(t + log(e - 1)) - 1

    m is above -1, which makes it a bijection, and m(0) = 0, so that u = 0 is the identity (the paper's softplus(t) - 1
    is not 0 there). The inverse takes one root: a = w.x solves a + w.u^ tanh(a + b) = w.y, whose left side rises.

    Args:
        w, u: (..., L).
        b: (..., 1).

    Source: Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770, eqs. 10 to 12 and appendix A.1.
    """

    def __init__(self, w: Tensor, u: Tensor, b: Tensor) -> None:
        super().__init__()
        along = (w * u).sum(-1, keepdim=True)
        bounded = softplus(along + inverse_softplus(1.0)) - 1
        self.w, self.b = w, b
        self.u = u + (bounded - along) * w / (w * w).sum(-1, keepdim=True).clamp(min=1e-12)

    def _call(self, x: Tensor) -> Tensor:
        return x + self.u * torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)

    def _inverse(self, y: Tensor) -> Tensor:
        target = (self.w * y).sum(-1, keepdim=True)
        along = (self.w * self.u).sum(-1, keepdim=True)
        with torch.no_grad():
            low, high = target - along.abs(), target + along.abs()
            for _ in range(BISECTIONS):
                a = (low + high) / 2
                below = a + along * torch.tanh(a + self.b) < target
                low, high = torch.where(below, a, low), torch.where(below, high, a)
            a = (low + high) / 2
            slope = 1 + along * (1 - torch.tanh(a + self.b) ** 2)
        # One step of Newton's from the root has the root's derivatives.
        a = a - (a + along * torch.tanh(a + self.b) - target) / slope
        return y - self.u * torch.tanh(a + self.b)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log(1 + w.u^ tanh'(w.x + b))."""
        act = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        return torch.log1p((self.w * self.u).sum(-1, keepdim=True) * (1 - act**2)).squeeze(-1)


class Radial(_Bijection):
    r"""A radial flow.

        y = x + beta (x - c) / (alpha + r),    r = |x - c|,    alpha > 0,    beta > -alpha

    The distance of y from c is r + beta r / (alpha + r), a quadratic equation for r, so that the inverse is closed.

    Args:
        centre: c, (..., L).
        alpha, beta: (..., 1).

    Source: Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770, eq. 14 and appendix A.2.
    """

    def __init__(self, centre: Tensor, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.centre, self.alpha, self.beta = centre, alpha, beta

    def _call(self, x: Tensor) -> Tensor:
        away = x - self.centre
        return x + self.beta * away / (self.alpha + away.norm(dim=-1, keepdim=True))

    def _inverse(self, y: Tensor) -> Tensor:
        away = y - self.centre
        distance = away.norm(dim=-1, keepdim=True)
        half = distance - self.alpha - self.beta
        root = (half**2 + 4 * self.alpha * distance).clamp(min=torch.finfo(y.dtype).tiny).sqrt()
        # The form that subtracts no two near numbers.
        r = torch.where(half > 0, (half + root) / 2, 2 * self.alpha * distance / (root - half.clamp(max=0)))
        return self.centre + away / (1 + self.beta / (self.alpha + r))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """(L - 1) log(1 + beta h) + log(1 + beta h + beta h' r), with h = 1 / (alpha + r)."""
        r = (x - self.centre).norm(dim=-1, keepdim=True)
        h = 1 / (self.alpha + r)
        across, along = torch.log1p(self.beta * h), torch.log1p(self.alpha * self.beta * h**2)
        return ((x.size(-1) - 1) * across + along).squeeze(-1)


class AffineElements:
    """y = exp(s) x + m with s = 3 tanh(gate / 3): zeros leave x as it is, and no step scales by more than e^3 = 20."""

    def forward(self, x: Tensor, shift: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx of each element."""
        log_scale = 3 * torch.tanh(gate / 3)
        return log_scale.exp() * x + shift, log_scale

    def inverse(self, y: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        """x."""
        return (y - shift) * torch.exp(-3 * torch.tanh(gate / 3))


class SplineElements:
    r"""A monotone rational-quadratic spline on [-bound, bound], the identity outside; what zeros leave as it is.

    Args:
        bound: B.

    Source: Durkan, Bekasov, Murray & Papamakarios 2019, https://arxiv.org/abs/1906.04032, eqs. 4 to 8 and their floors.
    """

    floor = 1e-3

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx of each element, of x (..., L) and parameters (..., bins or bins - 1, L)."""
        inside = x.abs() < self.bound
        at = x.clamp(-self.bound, self.bound)
        x_knots, y_knots, slopes = self._knots(*parameters)
        left, width, bottom, height, first, last = self._bin(at, x_knots, x_knots, y_knots, slopes)
        mean = height / width
        t = (at - left) / width
        across = t * (1 - t)
        below = mean + (first + last - 2 * mean) * across
        y = bottom + height * (mean * t**2 + first * across) / below
        slope = mean**2 * (last * t**2 + 2 * mean * across + first * (1 - t) ** 2)
        return torch.where(inside, y, x), torch.where(inside, slope.log() - 2 * below.log(), 0.0)

    def inverse(self, y: Tensor, *parameters: Tensor) -> Tensor:
        """x."""
        inside = y.abs() < self.bound
        at = y.clamp(-self.bound, self.bound)
        x_knots, y_knots, slopes = self._knots(*parameters)
        left, width, bottom, height, first, last = self._bin(at, y_knots, x_knots, y_knots, slopes)
        mean = height / width
        bend = (at - bottom) * (first + last - 2 * mean)
        a, b, c = height * (mean - first) + bend, height * first - bend, -mean * (at - bottom)
        discriminant = (b**2 - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny)
        return torch.where(inside, left + width * 2 * c / (-b - discriminant.sqrt()), y)

    def _knots(self, widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Knots (..., bins + 1, L) of x and y, and the slopes there, 1 at the ends."""
        bins = widths.size(-2)
        ends = torch.full_like(slopes[..., :1, :], self.bound)
        knots = []
        for parts in (widths, heights):
            share = self.floor + (1 - self.floor * bins) * parts.softmax(-2)
            inner = self.bound * (2 * share.cumsum(-2)[..., :-1, :] - 1)
            knots.append(torch.cat([-ends, inner, ends], -2))
        one = torch.ones_like(ends)
        inner = self.floor + softplus(slopes + inverse_softplus(1 - self.floor))
        return knots[0], knots[1], torch.cat([one, inner, one], -2)

    def _bin(self, at: Tensor, by: Tensor, *knots: Tensor) -> tuple[Tensor, ...]:
        """Left and width, bottom and height, first and last slope of the bin that each element is in."""
        index = (at.unsqueeze(-2) >= by[..., 1:-1, :]).sum(-2, keepdim=True)  # (..., 1, L)
        x, y, slope = ((k.gather(-2, index).squeeze(-2), k.gather(-2, index + 1).squeeze(-2)) for k in knots)
        return x[0], x[1] - x[0], y[0], y[1] - y[0], *slope


class Autoregressive(_Bijection):
    r"""y_i = g(x_i; parameters(x)_i), where parameters(x)_i depends on the elements of x before i, in some order.

    y takes one pass of the network, the inverse L of them, an element after the other.

    Args:
        network: x (..., L) to parameters (..., L), such as Pyro's `ConditionalAutoRegressiveNN` on a context.
        elements: g, an `AffineElements` or a `SplineElements`.
        order: the elements, each after those that its parameters depend on.

    Source: Kingma et al. 2016, https://arxiv.org/abs/1606.04934.
    """

    def __init__(
        self, network: Callable[[Tensor], Any], elements: AffineElements | SplineElements, order: Sequence[int]
    ) -> None:
        super().__init__()
        self.network, self.elements, self.order = network, elements, order
        self._last: tuple[Tensor, Tensor] | None = None

    def _call(self, x: Tensor) -> Tensor:
        y, log_slope = self.elements.forward(x, *self.network(x))
        self._last = x, log_slope.sum(-1)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        found = list(torch.zeros_like(y).unbind(-1))
        for i in self.order:
            # Of one element only: those whose turn has not come may overflow, and a mask's 0 times that is NaN.
            parameters = [parameter[..., i : i + 1] for parameter in self.network(torch.stack(found, -1))]
            found[i] = self.elements.inverse(y[..., i : i + 1], *parameters).squeeze(-1)
            found = list(torch.broadcast_tensors(*found))
        return torch.stack(found, -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of the log-slopes of g."""
        if self._last is None or self._last[0] is not x:
            self._call(x)
        assert self._last is not None
        return self._last[1]


def inverse_softplus(value: float) -> float:
    """t with softplus(t) = value."""
    return math.log(math.expm1(value))
