r"""Gradient estimators: bounds whose gradient is not the derivative of their value, but has the same mean.

The derivative of log w_k = log p(x, z_k) - log q(z_k | x) has three parts: what the model's parameters do to log p,
what the guide's do by moving z_k (the path), and what they do to log q at a fixed z_k (the score), whose mean is zero.

    sum_k  a_k d log p(x, z_k)  +  b_k (d log w_k / d z_k) d z_k  -  c_k d log q(z_k | x) at fixed z_k

Derivatives and estimators differ in the weights a, b, c alone. To have the parts apart, each value that the guide
draws is cut off from what it was computed from; log q then knows no path, and the path is put together again from the
derivatives at the cuts. It needs no copy of a distribution with stopped parameters, so that every reparametrised guide
will do, hierarchical ones too, as long as its log q can be computed at a value that it did not just draw.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.objectives.draws import Draw, Term, one
from pyrovae.objectives.importance import WeightBound, _groups, _log_mean_exp, _log_power_mean, _order
from pyrovae.objectives.particles import without_autocast
from pyrovae.objectives.weights import Ledger

__all__ = ["PIWAE", "STL", "DReG", "PathGradient"]


class PathGradient(WeightBound):
    """Base class of the bounds with a gradient of their own: a subclass says the weights of its parts."""

    @abstractmethod
    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """a, b and c of the module's formula, each (K, B), from log-weights (K, B); None for zero."""

    def draw(self, pair: Any, *batch: Any, known: Any) -> Ledger:
        """K particles, each value of which is cut off from its path."""
        with _Cut():
            return super().draw(pair, *batch, known=known)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The bound of each datum, (B,), with the estimator as its gradient.

        Raises:
            ValueError: where the guide enumerates sites, or the ledger does not come from `draw`.
        """
        if enumerated := [term.name for term in drawn.terms if term.kind == "guide" and term.enumerated]:
            raise ValueError(
                f"the guide enumerates {enumerated}, and {type(self).__name__} has no gradient for what is enumerated; "
                "enumerate it in the model instead, or pass objective=IWAE(K)"
            )
        value = super().per_datum(drawn)
        if not torch.is_grad_enabled() or not value.requires_grad:
            return value
        a, b, c = self.weights(drawn.log_weights().detach())
        steps = [1 if len(drawn.draws) > 1 else len(a)] * len(drawn.draws)
        parts = [part if part is None else part.split(steps) for part in (a, b, c)]
        surrogate = torch.zeros_like(value)
        for index, draw in enumerate(drawn.draws):
            model, path, score = (None if part is None else part[index] for part in parts)
            assert model is not None
            assert path is not None
            surrogate = surrogate + (model * _without(draw, "guide").log_weights(one, keep_guide=False)).sum(0)
            surrogate = surrogate + _path(draw, path)
            if score is not None:
                log_q = -_without(draw, "latent", "observed").log_weights(one, keep_guide=False)
                surrogate = surrogate - (score * log_q).sum(0)
        return value.detach() + drawn.common_scale() * (surrogate - surrogate.detach())


class DReG(PathGradient):
    r"""The importance-weighted bound, its gradient doubly reparametrised.

        guide:  sum_k (alpha w~_k + (1 - alpha) w~_k^2) (d log w_k / d z_k) d z_k
        model:  sum_k w~_k d log p(x, z_k),    w~_k proportional to w_k^(1 - alpha)

    The gradient of the same bound as IWAE (alpha = 0) or `Renyi`, without bias. That of IWAE has a signal-to-noise
    ratio that falls like 1 / sqrt(K) for the guide's parameters; that of this one rises.

    Args:
        num_particles: K.
        alpha: order of the Renyi bound.
        plate: name of the data plate, where it is not plain.

    Source: Tucker et al. 2019, https://arxiv.org/abs/1810.04152.

    >>> DReG(64).is_bound
    True
    """

    def __init__(self, num_particles: int = 5, *, alpha: float = 0.0, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        self.alpha = _order(alpha)

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether it is a lower bound on log p(x), whatever K."""
        return self.alpha >= 0

    def reduce(self, log_weights: Tensor) -> Tensor:
        """log of the power mean of the weights."""
        return _log_power_mean(log_weights, 1 - self.alpha)

    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor, None]:
        """The normalised weights for the model, their squares for the guide."""
        normalized = torch.softmax((1 - self.alpha) * log_weights, 0)
        return normalized, self.alpha * normalized + (1 - self.alpha) * normalized**2, None

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The bound of each datum, (B,), with the estimator as its gradient."""
        drawn.refuse_points()  # w~^2 for w~ is right by an identity of the score
        return super().per_datum(drawn)


class STL(PathGradient):
    r"""The ELBO, its gradient without the score: "sticking the landing".

        1/K sum_k [d log p(x, z_k) + d/dz_k (log p(x, z_k) - log q(z_k | x)) d z_k]

    Its noise vanishes where the guide is the exact posterior. For K importance-weighted particles the same idea is
    biased, `DReG` is not.

    Args:
        num_particles: K, averaged.
        plate: name of the data plate, where it is not plain.

    Source: Roeder, Wu & Duvenaud 2017, https://arxiv.org/abs/1703.09194.
    """

    def reduce(self, log_weights: Tensor) -> Tensor:
        """The mean of the log-weights."""
        return log_weights.mean(-2, keepdim=True)

    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor, None]:
        """1/K for the model and for the path."""
        share = torch.full_like(log_weights, 1 / len(log_weights))
        return share, share, None

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The bound of each datum, (B,), with the estimator as its gradient."""
        drawn.refuse_points(of_value=False)  # a log_density that parameters move is no score, and would be left out
        return super().per_datum(drawn)


class PIWAE(PathGradient):
    r"""Partially importance-weighted: the model's gradient is IWAE's of all K particles, the guide's that of `MIWAE`.

    Its value is IWAE's.

    Args:
        num_particles: K, in all groups together.
        num_groups: M, which divides K.
        plate: name of the data plate, where it is not plain.

    Source: Rainforth et al. 2018, https://arxiv.org/abs/1802.04537.
    """

    def __init__(self, num_particles: int = 64, *, num_groups: int = 8, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        self.num_groups = _groups(num_groups, num_particles)

    def reduce(self, log_weights: Tensor) -> Tensor:
        """log of the mean weight."""
        return _log_mean_exp(log_weights, -2)

    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised over all particles for the model, within each group for the guide."""
        grouped = torch.softmax(log_weights.unflatten(0, (self.num_groups, -1)), 1) / self.num_groups
        return torch.softmax(log_weights, 0), grouped.flatten(0, 1), grouped.flatten(0, 1)


_DRAWN = "_drawn"  # what a site's value was, with its path, before it was cut off


class _Cut(Messenger):
    """Cuts each value that a program draws off from what it was computed from, while gradients are on."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        # A replayed value has been cut in the guide already.
        if not msg["is_observed"] and isinstance(value, Tensor) and value.grad_fn is not None:
            msg["infer"][_DRAWN] = value
            msg["value"] = value.detach().requires_grad_()


def _without(draw: Draw, *kinds: str) -> Draw:
    """The same draw, where terms of these kinds have no gradient."""
    terms = [
        replace(t, log_prob=t.log_prob.detach(), unmasked=t.unmasked.detach()) if t.kind in kinds else t
        for t in draw.terms
    ]
    return Draw(terms, draw.known, draw.num_particles, draw.plate_to_symbol)


def _path(draw: Draw, weight: Tensor) -> Tensor:
    """What has the gradient sum_k weight_k (d log w_k / d z_k) d z_k for what z_k was computed from, (B,)."""
    sampled = [term for term in draw.terms if term.kind == "guide" and not term.site["is_observed"]]
    if uncut := [t.name for t in sampled if t.site["value"].grad_fn is not None]:
        raise ValueError(f"the values of {uncut} still have their path; draw them by the objective's `draw(pair, x)`")
    cut = [term for term in sampled if _DRAWN in term.site["infer"]]
    total = torch.zeros_like(weight[0])
    if not cut:
        return total
    log_weights = draw.log_weights(one, keep_guide=False)
    with without_autocast(log_weights):
        gradients = _gradients(log_weights, cut, weight)
        for index, term in reversed(list(enumerate(cut))):
            if (gradient := gradients[index]) is None:
                continue
            value = term.site["infer"][_DRAWN]
            for earlier, more in enumerate(_gradients(value, cut[:index], gradient)):  # sites that it was drawn given
                if more is not None:
                    before = gradients[earlier]
                    gradients[earlier] = more if before is None else before + more
            moved = sum_rightmost(gradient * value, term.site["fn"].event_dim)
            total = total + draw._per_datum(moved, term.site["cond_indep_stack"], rescale=False).sum(0)
    return total


def _gradients(of: Tensor, cut: Sequence[Term], weight: Tensor) -> list[Tensor | None]:
    at = [term.site["value"] for term in cut]
    if not at or not of.requires_grad:
        return [None] * len(at)
    return list(torch.autograd.grad(of, at, weight.to(of), retain_graph=True, allow_unused=True))
