"""What an estimate is: its value, its two errors, and what its importance weights say about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrovae.distributions import is_improper
from pyrovae.evaluation.pareto import HEAVY
from pyrovae.objectives import Term

__all__ = ["Estimate", "Moments", "estimate", "is_density", "with_error"]

LARGE = 0.1  # variance of a datum's estimate, nats^2: that of many samples of which ten are effective


@dataclass
class Estimate:
    """A Monte Carlo estimate of a mean over data, in nats per datum.

    Attributes:
        value: the mean.
        standard_error: Monte Carlo error of the mean, with the data fixed; NaN from a single sample.
        data_standard_error: error of the mean over data, the sd of the values per datum / sqrt(N); NaN for N = 1.
        per_datum: the values (N,), on the CPU.
        num_samples: K, of each datum.
        is_density: False where an observed site's distribution says that it is none, such as `CrossEntropy`, or where a
            latent has a flat prior: then the value is a score, and never stands beside log-likelihoods.
        ess: effective sample size (sum w)^2 / sum w^2 of each datum's K importance weights (N,), from 1 to K; None if
            there are no weights.
        pareto_k: k-hat of the largest weights of each datum (N,), see `pyrovae.evaluation.pareto`; NaN where these are
            fewer than five: from less than 21 samples, or where most weights are equal; None if there are no weights.
    """

    value: float
    standard_error: float
    data_standard_error: float
    per_datum: Tensor = field(repr=False)
    num_samples: int
    is_density: bool = True
    ess: Tensor | None = field(default=None, repr=False)
    pareto_k: Tensor | None = field(default=None, repr=False)

    @property
    def is_reliable(self) -> bool:
        """Whether most data have a variance 1/ess - 1/K of at most 0.1 nats^2, and a k-hat of at most 0.7.

        With many samples that is an effective sample size of 10. Where it is less, the largest weights have hardly been
        drawn: the estimate is too low, and so is its standard error. True without weights.
        """
        enough = self.ess is None or bool((1 / self.ess - 1 / self.num_samples).median() <= LARGE)
        return enough and 2 * self.heavy_tails <= len(self.per_datum)

    @property
    def heavy_tails(self) -> int:
        """How many data have a k-hat above 0.7, so that their standard error means little."""
        return 0 if self.pareto_k is None else int((self.pareto_k > HEAVY).sum())

    def __str__(self) -> str:
        text = f"{with_error(self.value, self.standard_error)} nats"
        text += "" if self.is_density else " (score, not a log-likelihood)"
        if not self.is_reliable:
            return f"{text} (too low: few samples have most of the weight; raise num_samples)"
        if self.heavy_tails:
            of = f"{self.heavy_tails} of {len(self.per_datum)} data"
            text += f" (Pareto k-hat above {HEAVY} for {of}, whose error is too small; raise num_samples)"
        return text


class Moments:
    """Running sums of importance weights and of their squares, per datum, relative to the largest weight so far.

    >>> weights = Moments()
    >>> for log_weight in (0.0, 1000.0, 1000.0):
    ...     weights.add(torch.tensor([[log_weight]]))
    >>> weights.log_mean(), weights.ess()  # log(2/3 exp(1000))
    (tensor([999.5945], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    def __init__(self) -> None:
        self.count = 0
        self.largest = self.first = self.second = torch.zeros(())

    def add(self, log_weights: Tensor) -> None:
        """Take up log-weights (K, B)."""
        log_weights = log_weights.double()
        if self.count == 0:
            self.first = self.second = log_weights.new_zeros(log_weights.size(1))
            self.largest = torch.full_like(self.first, -math.inf)
        largest = torch.maximum(self.largest, log_weights.amax(0))
        shift = torch.where(largest == -math.inf, 0.0, largest)  # else -inf - -inf
        weights, old = torch.exp(log_weights - shift), torch.exp(self.largest - shift)
        self.first = self.first * old + weights.sum(0)
        self.second = self.second * old.square() + weights.square().sum(0)
        self.largest = largest
        self.count += len(log_weights)

    def log_mean(self) -> Tensor:
        """log 1/K sum_k w_k, (B,)."""
        return self.largest + torch.log(self.first / self.count)

    def variance(self) -> Tensor:
        """Var(w) / (K E[w]^2), that of `log_mean` by the delta method, (B,); from one sample NaN."""
        if self.count == 1:
            return torch.full_like(self.first, math.nan)
        relative = self.count * self.second / self.first.square() - 1
        return relative.clamp(min=0) / (self.count - 1)  # of a sample: its variance has K - 1 below

    def ess(self) -> Tensor:
        """Effective sample size (sum w)^2 / sum w^2, (B,)."""
        return self.first.square() / self.second


def estimate(
    per_datum: Tensor,
    error: float,
    num_samples: int,
    is_density: bool = True,
    ess: Tensor | None = None,
    pareto_k: Tensor | None = None,
) -> Estimate:
    """The `Estimate` from the values per datum (N,) and the Monte Carlo error of their mean."""
    values = per_datum.double().cpu()
    on_cpu = (None if each is None else each.cpu() for each in (ess, pareto_k))
    over_data = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error, over_data, values, num_samples, is_density, *on_cpu)


def with_error(value: float, error: float) -> str:
    """A number with as many digits as its error has, one significant."""
    if not math.isfinite(error):
        return f"{value:.2f} +- unknown"
    digits = 2 if error < 1e-6 else max(0, -math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def is_density(terms: Sequence[Term]) -> bool:
    """Whether every observed site's distribution is a density, and no latent's prior a flat one; through wrappers."""
    if any(term.kind == "latent" and is_improper(term.site["fn"]) for term in terms):
        return False
    return all(_is_density(term.site["fn"]) for term in terms if term.kind == "observed")


def _is_density(distribution: Any) -> bool:
    """Of a distribution and all that it is made of: wrapped, mixed, emitted by hidden states, or column by column."""
    parts = [getattr(distribution, name, None) for name in ("base_dist", "component_distribution", "emission")]
    parts += getattr(distribution, "kinds", [])
    inside = all(_is_density(part) for part in parts if part is not None)
    return inside and getattr(distribution, "is_density", True)
