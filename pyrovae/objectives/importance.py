r"""Importance-weighted bounds: functions of the K log-weights of each datum.

    w_k = p(x, z_k) / q(z_k | x),    z_k ~ q(z | x)

Sites that the guide enumerates are averaged outside of the function, E_q(y|x) [f(w(x, y)) - log q(y | x)], so that
q(y | x) keeps its gradient; sites that the model enumerates are summed inside each weight.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from pyrovae.objectives.base import Objective, number
from pyrovae.objectives.weights import Ledger

__all__ = ["CIWAE", "IWAE", "MIWAE", "Renyi", "WeightBound"]

NEAR = 0.1  # powers below which power means of weights are in float64


class WeightBound(Objective):
    """Base class of the bounds that are functions of the log-weights of each datum."""

    @abstractmethod
    def reduce(self, log_weights: Tensor) -> Tensor:
        """The function: (..., K, B) to (..., 1, B), nats."""

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The function of each datum's log-weights, (B,)."""
        return drawn.common_scale() * drawn.bound(self.reduce)


class IWAE(WeightBound):
    r"""The importance-weighted bound of K particles.

        E [log 1/K sum_k w_k]

    A lower bound on log p(x) that rises with K; K = 1 is the ELBO. Its gradient is sum_k w~_k grad log w_k, where
    w~_k = w_k / sum_j w_j; look at them by `ledger(pair, x, num_particles=K).normalized_weights()`.

    Args:
        num_particles: K.
        plate: name of the data plate, where it is not plain.

    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8.

    >>> IWAE(50).num_particles
    50
    """

    def __init__(self, num_particles: int = 5, *, plate: str | None = None):
        super().__init__(num_particles, plate=plate)

    def reduce(self, log_weights: Tensor) -> Tensor:
        """log of the mean weight."""
        return _log_mean_exp(log_weights, -2)


class Renyi(WeightBound):
    r"""The variational Renyi bound of order alpha, of K particles.

        E [1 / (1 - alpha) log 1/K sum_k w_k^(1 - alpha)]

    It falls with alpha: alpha = 0 is IWAE, alpha = 1 (the limit) the ELBO, whatever K. With alpha of at least 0 it is a
    lower bound on log p(x). Below 0 it is one for no K in particular: with K to infinity it is an upper bound, with
    K = 1 it is the ELBO.

    Args:
        alpha: the order.
        num_particles: K.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for an alpha that is not finite.

    Source: Li & Turner 2016, https://arxiv.org/abs/1602.02311.

    >>> Renyi(0.5, num_particles=8).is_bound, Renyi(-1.0).is_bound
    (True, False)
    """

    def __init__(self, alpha: float = 0.5, num_particles: int = 5, *, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        self.alpha = _order(alpha)

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether it is a lower bound on log p(x), whatever K."""
        return self.alpha >= 0

    def reduce(self, log_weights: Tensor) -> Tensor:
        """log of the power mean of the weights, with exponent 1 - alpha."""
        return _log_power_mean(log_weights, 1 - self.alpha)


class MIWAE(WeightBound):
    r"""The mean of M importance-weighted bounds of K / M particles each.

        1/M sum_m E [log M/K sum_k w_mk]

    Its gradient for the guide has less noise than IWAE's, the bound is looser. M = 1 is IWAE, M = K the ELBO.

    Args:
        num_particles: K, in all groups together.
        num_groups: M, which divides K.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: where the groups can't be equal.

    Source: Rainforth et al. 2018, https://arxiv.org/abs/1802.04537 (their K is our K / M).
    """

    def __init__(self, num_particles: int = 64, *, num_groups: int = 8, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        self.num_groups = _groups(num_groups, num_particles)

    def reduce(self, log_weights: Tensor) -> Tensor:
        """Mean over groups of the log of the mean weight."""
        return _log_mean_exp(log_weights.unflatten(-2, (self.num_groups, -1)), -2).mean(-3)


class CIWAE(WeightBound):
    r"""A convex combination of the ELBO and the importance-weighted bound of the same K particles.

        beta ELBO + (1 - beta) IWAE_K

    Args:
        num_particles: K.
        beta: weight of the ELBO, in [0, 1].
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for another beta.

    Source: Rainforth et al. 2018, https://arxiv.org/abs/1802.04537.
    """

    def __init__(self, num_particles: int = 64, *, beta: float = 0.5, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        if number("beta", beta) > 1:
            raise ValueError(f"beta is {beta}, the weight of the ELBO is between 0 and 1; pass beta=0.5")
        self.beta = beta

    def reduce(self, log_weights: Tensor) -> Tensor:
        """The mean of log-weights and the log of the mean weight, combined."""
        elbo = log_weights.mean(-2, keepdim=True)
        return self.beta * elbo + (1 - self.beta) * _log_mean_exp(log_weights, -2)


def _log_mean_exp(values: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(values, dim, keepdim=True) - math.log(values.size(dim))


def _log_power_mean(log_weights: Tensor, power: float) -> Tensor:
    if power == 0:  # the geometric mean
        return log_weights.mean(-2, keepdim=True)
    # The log of a mean near 1 has float32's rounding of 1, which a small power would blow up.
    wide = log_weights.double() if abs(power) < NEAR else log_weights
    return (_log_mean_exp(power * wide, -2) / power).to(log_weights.dtype)


def _order(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}, a finite number is wanted; pass alpha=0.5, say")
    return alpha


def _groups(num_groups: int, num_particles: int) -> int:
    if not isinstance(num_groups, int) or num_groups < 1 or num_particles % num_groups:
        raise ValueError(
            f"num_groups is {num_groups!r} for {num_particles} particles, which it has to divide; "
            f"pass num_groups=1 or num_particles={8 * max(1, int(num_groups))}, say"
        )
    return num_groups
