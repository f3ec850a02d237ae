"""Posterior expectations of any function of the latents, by self-normalised importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pyrovae.evaluation.chunks import chunks
from pyrovae.evaluation.pareto import HEAVY, Tail
from pyrovae.evaluation.running import check_counts, evaluating
from pyrovae.objectives.draws import Draw, one

__all__ = ["Expectation", "expectation"]


@dataclass
class Expectation:
    """A posterior expectation of each datum, with its Monte Carlo error; all on the CPU.

    Attributes:
        value: E[f(z) | x], (N, ...).
        standard_error: of each, the same shape; NaN from a single sample. Zero where f was the same in all samples, so
            of a tail that no sample reached it says nothing.
        ess: effective sample size of each datum's weights (N,), from 1 to K.
        pareto_k: k-hat of each datum's weights (N,), see `pyrovae.evaluation.pareto`.
        num_samples: K.
    """

    value: Tensor
    standard_error: Tensor
    ess: Tensor = field(repr=False)
    pareto_k: Tensor = field(repr=False)
    num_samples: int

    def __str__(self) -> str:
        text = f"{tuple(self.value.shape)} posterior expectations, median error {self.standard_error.median():.2g}"
        heavy = int((self.pareto_k > HEAVY).sum())
        if heavy:
            text += f" (Pareto k-hat above {HEAVY} for {heavy} of {len(self.value)} data; raise num_samples)"
        return text


def expectation(
    pair: Any,
    data: Any,
    f: Callable[[dict[str, Tensor]], Tensor],
    *,
    num_samples: int = 1000,
    proposal: Literal["guide", "prior"] = "guide",
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    chunk: int | None = None,
    progress: bool = False,
) -> Expectation:
    r"""E[f(z) | x] under the model's posterior of each datum, whatever the guide.

        sum_k w_k f(z_k) / sum_k w_k,    w_k = p(x, z_k) / q(z_k | x),    z_k ~ q(z | x)

    Its standard error is the delta method's, [sum_k w_k^2 (f(z_k) - E)^2]^(1/2) / sum_k w_k. The estimate is consistent
    and biased of order 1/K. A tail probability is the expectation of a condition, such as `z["z"].norm(dim=-1) > 3`.

    Args:
        pair, data, num_samples, proposal, plate, seed, batch_size, chunk, progress: see `pyrovae.log_likelihood`.
        f: takes the guide's latents by name, each (S, B, nested plates..., *event), and gives (S, B, ...): a number, a
            condition, or any tensor for each. S is samples times the values of sites that the guide enumerates. Sites
            that the model enumerates are summed out and not among them.

    Returns:
        the `Expectation`.

    Raises:
        ValueError: where f asks for a latent that is not there, or gives another shape; and see `log_likelihood`.

    Source: Owen 2013, Monte Carlo theory, methods and examples, eq. 9.6 and 9.9.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2 + 0.2, 1.0))
    >>> x = torch.tensor([2.0, 4.0])
    >>> expectation((model, guide), x, lambda z: z["z"], num_samples=10000).value.round(decimals=1)  # x / 2
    tensor([1., 2.], dtype=torch.float64)
    """
    check_counts(num_samples=num_samples, chunk=chunk)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        on.known.refuse_shared()
        parts = []
        for particles in chunks(on, num_samples, proposal=proposal, chunk=chunk, progress=progress):
            sums, tail = _Sums(), Tail(num_samples)
            for draw in (draw for each in particles for draw in each.ledger().draws):
                log_w = draw.log_weights(one, keep_guide=True).double()  # (C..., K, B), summed over the model's sites
                leading = log_w.shape[:-1]
                log_w = log_w.flatten(0, -3) if log_w.dim() > 2 else log_w.unsqueeze(0)
                asked = _asked(f, _values(draw, leading), log_w)
                tail.add(sums.add(log_w, asked))
            parts.append((*sums.result(), tail.k_hat()))
        value, error, ess, k_hat = (on.join(each).cpu() for each in zip(*parts, strict=True))
        return Expectation(value, error, ess, k_hat, num_samples)


def _values(draw: Draw, leading: Sequence[int]) -> dict[str, Tensor]:
    """The guide's latents, (S, B, nested plates..., *event), from (enumerated dims..., K, nested plates..., B, *event).

    Args:
        draw: where they were drawn.
        leading: sizes of the enumerated dims and K.
    """
    values = {}
    nesting = draw.known.max_plate_nesting
    for term in draw.terms:
        if term.kind != "guide":
            continue
        value, event = term.site["value"], tuple(term.site["fn"].event_shape)
        batch = tuple(value.shape[: value.dim() - len(event)])
        batch = (1,) * (len(leading) + nesting - len(batch)) + batch
        own = {frame.dim for frame in term.site["cond_indep_stack"]}
        nested = tuple(batch[dim] for dim in range(-nesting, -1) if dim in own)  # the others have size 1
        value = value.reshape(batch[: len(leading)] + nested + batch[-1:] + event)
        value = value.expand(*leading, *nested, draw.rows, *event).flatten(0, len(leading) - 1)
        values[term.name] = value.movedim(1 + len(nested), 1)
    return values


class _Known(dict[str, Tensor]):
    """Says which latents there are, when another one is asked for."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"f asks for latent {name!r}, which the guide does not sample; use one of {list(self)}, or let the guide "
            "sample or enumerate it"
        )


def _asked(f: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor], log_w: Tensor) -> Tensor:
    """What f gives, (C, K, B, ...), for log-weights (C, K, B)."""
    samples = log_w.size(0) * log_w.size(1)
    given = f(_Known(values))
    if not isinstance(given, Tensor) or tuple(given.shape[:2]) != (samples, log_w.size(2)):
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"f gives {got} for {samples} samples of {log_w.size(2)} data; return a tensor of shape "
            f"({samples}, {log_w.size(2)}, ...), reducing over the last dims only"
        )
    return given.double().unflatten(0, log_w.shape[:2])


class _Sums:
    """Running sums over particles of w, w^2, w f, w^2 f and w^2 f^2, relative to the largest weight so far."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = torch.zeros(())
        self.sums: list[Tensor] = []

    def add(self, log_w: Tensor, f: Tensor) -> Tensor:
        """Take up log-weights (C, K, B) and f (C, K, B, ...); gives the log-weights summed over C, (K, B)."""
        total = torch.logsumexp(log_w, 0)
        share = torch.exp(log_w - torch.where(total == -math.inf, 0.0, total))
        f = (_like(share, f) * f).sum(0)  # (K, B, ...)
        if self.count == 0:
            self.largest = torch.full_like(total[0], -math.inf)
        largest = torch.maximum(self.largest, total.amax(0))
        shift = torch.where(largest == -math.inf, 0.0, largest)  # else -inf - -inf
        w, old = torch.exp(total - shift), torch.exp(self.largest - shift)
        wide = _like(w, f)
        new = [w, w**2, wide * f, wide**2 * f, wide**2 * f**2]
        sums = [each.sum(0) for each in new]
        if self.count:
            rescaled = zip(self.sums, (1, 2, 1, 2, 2), strict=True)
            sums = [s + t * _like(old, t) ** power for s, (t, power) in zip(sums, rescaled, strict=True)]
        self.sums, self.largest, self.count = sums, largest, self.count + len(w)
        return total

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean (B, ...), its standard error (B, ...) and the effective sample size (B,)."""
        w, w2, wf, w2f, w2f2 = self.sums
        mean = wf / _like(w, wf)
        squares = w2f2 - 2 * mean * w2f + mean**2 * _like(w2, wf)
        unbiased = self.count / (self.count - 1) if self.count > 1 else math.nan
        return mean, (unbiased * squares.clamp(min=0)).sqrt() / _like(w, wf), w**2 / w2


def _like(weights: Tensor, f: Tensor) -> Tensor:
    return weights.reshape(*weights.shape, *[1] * (f.dim() - weights.dim()))
