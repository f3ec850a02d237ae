"""Importance-weighted bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.objectives.base import Objective
from pyrovae.objectives.weights import Ledger

__all__ = ["IWAE"]


class IWAE(Objective):
    r"""The importance-weighted bound of K particles.

        E [log 1/K sum_k w_k],    w_k = p(x, z_k) / q(z_k | x)

    A lower bound on log p(x) that rises with K; K = 1 is the ELBO. Sites that the guide enumerates are averaged
    outside the logarithm, E_q(y|x) [IWAE_K(x, y) - log q(y | x)], so that q(y | x) keeps its gradient.

    Args:
        num_particles: K.
        plate: name of the data plate, where it is not plain.

    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8.

    >>> IWAE(50).num_particles
    50
    """

    def __init__(self, num_particles: int = 5, *, plate: str | None = None):
        super().__init__(num_particles, plate=plate)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """log of the mean weight of each datum, (B,)."""
        log_particles = math.log(self.num_particles)
        bound = drawn.bound(lambda log_weights: torch.logsumexp(log_weights, -2, keepdim=True) - log_particles)
        return drawn.common_scale() * bound
