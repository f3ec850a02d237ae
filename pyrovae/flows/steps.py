"""Bijections with few parameters, each with a closed form or one root: affine, planar, radial."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["ActNorm", "Affine", "Planar", "Radial"]


class Affine:
    """y = loc + scale x, number by number.

    Args:
        loc, scale: (..., D), scale positive.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det dy/dx|, of the shape of the parameters."""
        return self.loc + self.scale * x, self.scale.log().sum(-1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|det dy/dx|."""
        return (y - self.loc) / self.scale, self.scale.log().sum(-1)


class ActNorm(nn.Module):
    """y_j = exp(c_j) x_j + b_j with learned b and c, the identity at first.

    It is Glow's layer without its initialisation from a first batch, which would make the parameters depend on which
    data come first and on how many processes share them.

    Args:
        length: D.

    Source: Kingma & Dhariwal 2018, https://arxiv.org/abs/1807.03039, section 3.1.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(length))
        self.log_scale = nn.Parameter(torch.zeros(length))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det dy/dx| = sum c, a scalar."""
        return Affine(self.loc, self.log_scale.exp()).forward(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|det dy/dx|."""
        return Affine(self.loc, self.log_scale.exp()).inverse(y)


class Planar:
    r"""A planar flow.

        y = x + u^ tanh(w.x + b),    u^ = u + (m(w.u) - w.u) w / |w|^2,    m(t) = softplus(t + log(e - 1)) - 1

    m is above -1, which makes it a bijection, and m(0) = 0, so that u = 0 is the identity (the paper's softplus(t) - 1
    is not 0 there). The inverse takes one root: a = w.x solves a + w.u^ tanh(a + b) = w.y, whose left side rises.

    Args:
        w, u: (..., D).
        b: (..., 1).

    Source: Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770, eqs. 10 to 12 and appendix A.1.
    """

    def __init__(self, w: Tensor, u: Tensor, b: Tensor) -> None:
        along = (w * u).sum(-1, keepdim=True)
        bounded = softplus(along + math.log(math.expm1(1.0))) - 1
        self.w, self.b = w, b
        self.u = u + (bounded - along) * w / (w * w).sum(-1, keepdim=True).clamp(min=1e-12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det dy/dx| = log(1 + w.u^ tanh'(w.x + b))."""
        act = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        along = (self.w * self.u).sum(-1, keepdim=True)
        return x + self.u * act, _log_det_of_rank_one(along, act)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|det dy/dx| there."""
        target = (self.w * y).sum(-1, keepdim=True)
        along = (self.w * self.u).sum(-1, keepdim=True)
        with torch.no_grad():
            low, high = target - along.abs(), target + along.abs()
            for _ in range(1 - round(math.log2(torch.finfo(y.dtype).eps))):  # to what the dtype tells apart
                a = (low + high) / 2
                below = a + along * torch.tanh(a + self.b) < target
                low, high = torch.where(below, a, low), torch.where(below, high, a)
            a = (low + high) / 2
            slope = 1 + along * (1 - torch.tanh(a + self.b) ** 2)
        # One step of Newton's from the root has the root's derivatives.
        a = a - (a + along * torch.tanh(a + self.b) - target) / slope
        act = torch.tanh(a + self.b)
        return y - self.u * act, _log_det_of_rank_one(along, act)


class Radial:
    r"""A radial flow.

        y = x + beta (x - c) / (alpha + r),    r = |x - c|,    alpha > 0,    beta > -alpha

    The distance of y from c is r + beta r / (alpha + r), a quadratic equation for r, so that the inverse is closed.

    Args:
        centre: c, (..., D).
        alpha, beta: (..., 1).

    Source: Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770, eq. 14 and appendix A.2.
    """

    def __init__(self, centre: Tensor, alpha: Tensor, beta: Tensor) -> None:
        self.centre, self.alpha, self.beta = centre, alpha, beta

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det dy/dx| = (D - 1) log(1 + beta h) + log(1 + beta h + beta h' r), with h = 1 / (alpha + r)."""
        away = x - self.centre
        r = away.norm(dim=-1, keepdim=True)
        return x + self.beta * away / (self.alpha + r), self._log_det(r, x.size(-1))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|det dy/dx| there."""
        away = y - self.centre
        distance = away.norm(dim=-1, keepdim=True)
        half = distance - self.alpha - self.beta
        root = (half**2 + 4 * self.alpha * distance).clamp(min=torch.finfo(y.dtype).tiny).sqrt()
        # The form that subtracts no two near numbers.
        r = torch.where(half > 0, (half + root) / 2, 2 * self.alpha * distance / (root - half.clamp(max=0)))
        return self.centre + away / (1 + self.beta / (self.alpha + r)), self._log_det(r, y.size(-1))

    def _log_det(self, r: Tensor, length: int) -> Tensor:
        h = 1 / (self.alpha + r)
        across, along = torch.log1p(self.beta * h), torch.log1p(self.alpha * self.beta * h**2)
        return ((length - 1) * across + along).squeeze(-1)


def _log_det_of_rank_one(along: Tensor, act: Tensor) -> Tensor:
    return torch.log1p(along * (1 - act**2)).squeeze(-1)
