"""The importance-weighted bound for guides whose samples let no gradient by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.objectives.base import Objective
from pyrovae.objectives.weights import Ledger

__all__ = ["VIMCO"]


class VIMCO(Objective):
    r"""The importance-weighted bound with leave-one-out control variates: unbiased gradients for discrete guides.

        L = log 1/K sum_k w_k,    L_-k = log 1/K (sum_{j != k} w_j + exp(1/(K-1) sum_{j != k} log w_j))

        grad = sum_k (L - L_-k) grad log q(z_k | x) + sum_k w~_k grad log w_k,    w~_k = w_k / sum_j w_j

    L_-k puts the geometric mean of the other weights for w_k. It does not depend on z_k, so that it leaves the mean of
    the gradient alone and takes out of its variance what the particles have in common. The value is the bound.

    Only sites that can't be reparametrised have the first sum; the gradient of the others goes through their samples.
    Sites that the model enumerates are summed inside the weights. Memory: K x K numbers for each datum.

    Args:
        num_particles: K, at least 2.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a K below 2.

    Source: Mnih & Rezende 2016, https://arxiv.org/abs/1602.06725, with the geometric mean.

    >>> VIMCO(10).num_particles
    10
    """

    reparametrised = False

    def __init__(self, num_particles: int = 5, *, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        if num_particles < 2:
            raise ValueError("num_particles is 1, which leaves nothing out of one; pass num_particles=5, say")

    def per_datum(self, drawn: Ledger) -> Tensor:
        """log of the mean weight of each datum, (B,), with the gradient of the class docstring."""
        drawn.refuse_enumerated_guide()
        log_weights = drawn.log_weights()  # (K, B)
        bound = torch.logsumexp(log_weights, 0) - math.log(self.num_particles)
        log_q = drawn.log_q(lambda term: not term.site["fn"].has_rsample)
        score = (self._signal(log_weights.detach()) * log_q).sum(0)
        return drawn.common_scale() * (bound + (score - score.detach()))

    def _signal(self, log_weights: Tensor) -> Tensor:
        """L - L_-k, (K, B)."""
        left_out = torch.eye(self.num_particles, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)
        others = torch.where(left_out, 0.0, log_weights).sum(1, keepdim=True) / (self.num_particles - 1)  # (K, 1, B)
        replaced = torch.where(left_out, others, log_weights)  # (K, K, B): row k has the mean of the others at k
        return torch.logsumexp(log_weights, 0) - torch.logsumexp(replaced, 1)
