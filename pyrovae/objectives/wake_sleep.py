"""Wake-sleep: the model follows a bound, the guide the forward divergence KL(p(z | x) || q(z | x))."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.models.base import Structure
from pyrovae.objectives.base import Objective
from pyrovae.objectives.dreams import dream_log_q
from pyrovae.objectives.weights import Ledger, ledger

__all__ = ["ReweightedWakeSleep", "WakeSleep"]


class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep: a forward-KL guide for an importance-weighted model, with weights of each datum's own.

        z_k ~ q(z | x),    w_k = p(x, z_k) / q(z_k | x),    w~_k = w_k / sum_j w_j

        model:   sum_k w~_k grad log p(x, z_k)        the gradient of log 1/K sum_k w_k
        guide:   insomnia       sum_k w~_k grad log q(z_k | x)              wake: KL(p(z | x) || q) at the data
              + (1 - insomnia)  grad log q(z' | x'),  (x', z') ~ p(x, z)    sleep: the same at the model's dreams

    The value is the bound E log 1/K sum_k w_k of IWAE, with samples that carry no gradient; what its gradients
    are is said above, and they are those of no one function. So discrete latents that nobody enumerates need no
    relaxation and no baseline. The wake phase of the guide is biased, by O(1/K); its fixed point is exact for any K
    where the guide can reach p(z | x). Sleep is not biased, but follows p(x) and not the data. Sites that the model
    enumerates are summed inside the weights.

    Pyro's own `ReweightedWakeSleep` takes one weight for a whole batch; per datum, the weights of a batch of any size
    are as even as those of one datum.

    Args:
        num_particles: K, at least 2 where the guide is awake at all.
        insomnia: the share of wake in the guide's gradient, in [0, 1]; 0.5 is the sum of both, halved. One dream per
            row of the batch; its terms and limits are those of `dream_log_q`.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for an insomnia outside [0, 1], and K below 2 with an insomnia above 0.

    Source: Bornschein & Bengio 2015, https://arxiv.org/abs/1406.2751; insomnia: `pyro.infer.ReweightedWakeSleep`.

    >>> ReweightedWakeSleep(10, insomnia=0.5)
    ReweightedWakeSleep(num_particles=10, insomnia=0.5, plate=None)
    """

    reparametrised = False

    def __init__(self, num_particles: int = 5, *, insomnia: float = 1.0, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        if not 0 <= insomnia <= 1:
            raise ValueError(f"insomnia is {insomnia}; it is the share of the wake phase, pass a number in [0, 1]")
        if insomnia > 0 and num_particles < 2:
            raise ValueError("num_particles is 1, whose weight is always 1; pass num_particles=5, say, or insomnia=0")
        self.insomnia = insomnia

    def draw(self, pair: Any, *batch: Any, known: Structure) -> Ledger:
        """K particles that carry no gradient."""
        return _detached(self, pair, *batch, known=known)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """log of the mean weight of each datum, (B,), with the gradients of the class docstring."""
        log_weights, log_q = _of_model(drawn), drawn.log_q()
        bound = torch.logsumexp(log_weights, 0) - math.log(self.num_particles)
        followed = self.insomnia * (log_weights.detach().softmax(0) * log_q).sum(0)
        if self.insomnia < 1 and torch.is_grad_enabled():
            followed = followed + (1 - self.insomnia) * dream_log_q(drawn.pair, drawn.batch, drawn.known)
        return drawn.common_scale() * (bound + (followed - followed.detach()))


class WakeSleep(Objective):
    r"""Wake-sleep: the model learns on what the guide draws, the guide on what the model dreams.

        model:   1/K sum_k grad log p(x, z_k),    z_k ~ q(z | x)       the gradient of the ELBO
        guide:   grad log q(z' | x'),    (x', z') ~ p(x, z)            that of -KL(p(z | x) || q(z | x)), x ~ p(x)

    The value is the ELBO at the data, with samples that carry no gradient. With one particle it is
    `ReweightedWakeSleep(1, insomnia=0)`.

    Args:
        num_particles: K; one dream per row of the batch, whatever K.
        plate: name of the data plate, where it is not plain.

    Source: Hinton, Dayan, Frey & Neal 1995, the wake-sleep algorithm, Science 268.

    >>> WakeSleep().is_bound
    True
    """

    reparametrised = False

    def draw(self, pair: Any, *batch: Any, known: Structure) -> Ledger:
        """K particles that carry no gradient."""
        return _detached(self, pair, *batch, known=known)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean log-weight of each datum, (B,), with the gradients of the class docstring."""
        value = _of_model(drawn).mean(0)
        if torch.is_grad_enabled():
            followed = dream_log_q(drawn.pair, drawn.batch, drawn.known)
            value = value + (followed - followed.detach())
        return drawn.common_scale() * value


def _detached(objective: Objective, pair: Any, *batch: Any, known: Structure) -> Ledger:
    return ledger(pair, *batch, num_particles=objective.num_particles, known=known, detached=True)


def _of_model(drawn: Ledger) -> Tensor:
    """Log-weights (K, B) whose gradient is that of log p alone."""
    drawn.refuse_enumerated_guide()
    drawn.refuse_points()
    log_q = drawn.log_q()
    return drawn.log_weights() + (log_q - log_q.detach())
