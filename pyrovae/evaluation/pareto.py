r"""How heavy the tail of importance weights is: the shape k of a generalised Pareto distribution.

    P(W > u + y | W > u) = (1 + k y / sigma)^(-1/k)

Of weights with shape k, moments of order below 1/k exist: with k < 1/2 the variance is finite and the central limit
theorem holds; above 0.7 a mean over any practical number of samples, and its standard error, mean little.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["HEAVY", "Tail", "generalised_pareto"]

HEAVY = 0.7  # k-hat above which an estimate is not to be trusted
EVEN = 1e-4  # nats: log-weights that differ by less have no tail but float32's rounding


def generalised_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape k and scale sigma of a generalised Pareto distribution, fitted to samples above its threshold.

    The profile likelihood of b = -k / sigma is averaged over a grid under a weak prior: no iteration, no failure.

    Args:
        excess: (M, ...), each at least 0; along dim 0 the samples, each other entry a fit of its own.

    Returns:
        k and sigma, (...). The paper's k has the opposite sign.

    Source: Zhang & Stephens 2009, Technometrics 51(3), sections 2 and 3.
    """
    x = excess.double().sort(0).values  # (M, ...)
    count = len(x)
    points = 30 + math.isqrt(count)
    grid = 1 - torch.sqrt(points / (torch.arange(1, points + 1, dtype=x.dtype, device=x.device) - 0.5))
    quartile = x[int(count / 4 + 0.5) - 1].clamp(min=torch.finfo(x.dtype).eps * x[-1])
    b = grid.reshape(-1, *[1] * (x.dim() - 1)) / (3 * quartile) + 1 / x[-1]  # (points, ...)
    shapes = torch.log1p(-b.unsqueeze(1) * x).mean(1)
    log_profile = count * (torch.log(-b / shapes) - shapes - 1)
    mean = (torch.softmax(log_profile, 0) * b).sum(0)
    shape = torch.log1p(-mean * x).mean(0)
    return shape, -shape / mean


class Tail:
    r"""The largest of K importance weights of each datum, and their k-hat.

    The largest M = min(K/5, 3 sqrt(K)) weights are fitted above the next largest; those that equal it, as weights of
    discrete latents do, are no part of the tail, and make M less. Few of them say little, so that k-hat is drawn to 1/2
    by as much as ten more would do: (M k + 5) / (M + 10).

    Args:
        num_samples: K, of all log-weights that will be added.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024, https://arxiv.org/abs/1507.02646, section 3 and appendix G.

    >>> tail = Tail(1000)
    >>> tail.add(torch.zeros(1000, 2))
    >>> tail.k_hat()  # equal weights have no tail
    tensor([-inf, -inf], dtype=torch.float64)
    """

    def __init__(self, num_samples: int):
        self.size = math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))
        self.largest: Tensor | None = None

    def add(self, log_weights: Tensor) -> None:
        """Take up log-weights (K, B)."""
        known = log_weights.double() if self.largest is None else torch.cat([self.largest, log_weights.double()])
        self.largest = known.topk(min(self.size + 1, len(known)), 0).values

    def k_hat(self) -> Tensor:
        """The shape of each datum's tail, (B,); NaN with fewer than five weights in it, -inf where all are equal."""
        if self.largest is None:
            raise ValueError("there are no weights yet; add some")
        top, cutoff = self.largest[0], self.largest[-1]
        if self.size < 5 or len(self.largest) <= self.size:
            return torch.full_like(top, math.nan)
        excess = torch.exp(self.largest[:-1] - top) - torch.exp(cutoff - top)
        above = (self.largest[:-1] > cutoff).sum(0)  # by their logarithms: the differences of tiny weights underflow
        k = torch.full_like(top, math.nan)
        for count in above.unique().tolist():  # one, the size, where nothing ties
            if count >= 5:
                data = above == count
                k[data] = (count * generalised_pareto(excess[:count, data])[0] + 5) / (count + 10)
        return torch.where(top - cutoff < EVEN, -math.inf, k)
