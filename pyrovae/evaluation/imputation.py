r"""Imputation: what is missing of x given what is observed, by any pair.

    p(x_mis | x_obs) = E_{p(z | x_obs)} p(x_mis | z)

for likelihoods whose elements are independent given z. `impute` takes z from q(z | x_obs, mask), as it is or resampled
by importance; `impute_by_gibbs` takes it from a Markov chain and needs no encoder that knows of masks. Both draw
several imputations and give the mean; `missing_log_likelihood` says how probable known values are.

Data have x and mask (see `pyrovae.data.masked`, `incomplete`), True where observed. What x holds elsewhere is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.data import Split
from pyrovae.data.masks import check_mask
from pyrovae.distributions import by_element, masked
from pyrovae.evaluation.chunks import check_support
from pyrovae.evaluation.estimates import Estimate, estimate, is_density
from pyrovae.evaluation.running import Evaluation, check_counts, evaluating
from pyrovae.evaluation.sites import observed_site
from pyrovae.models.base import Functions, PairLike, isolated_random_state, random_sites
from pyrovae.objectives import Ledger, ledger
from pyrovae.objectives.draws import Draw, one
from pyrovae.objectives.dreams import uncondition

__all__ = ["Imputation", "impute", "impute_by_gibbs", "missing_log_likelihood"]


@dataclass
class Imputation:
    """Completions of each datum.

    Attributes:
        x: M imputations (M, N, *event); observed elements are those of the data.
        mean: E[x | x_obs] (N, *event), averaged over all that was drawn, not only these M; NaN where the likelihood has
            no mean (classes). Of whole numbers x in torch's default dtype.
        mask: True where observed (N, *event).
        ess: effective sample size of each datum's importance weights (N,); None without weights.
        acceptance: share of accepted proposals of the chain; None without one.
    """

    x: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    ess: Tensor | None = field(default=None, repr=False)
    acceptance: float | None = None


def impute(
    pair: Any,
    data: Any,
    *,
    num_imputations: int = 10,
    num_samples: int | None = None,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Imputation:
    r"""Imputations by z ~ q(z | x_obs, mask) and x_mis ~ p(x_mis | z), or with sampling importance resampling.

    With num_samples K, z is drawn from K draws of q with probabilities proportional to

        w_k = p(x_obs | z_k) p(z_k) / q(z_k | x_obs, mask)

    so that as K grows imputations come from p(x_mis | x_obs) whatever the guide, and the mean is sum_k w_k E[x | z_k] /
    sum_k w_k. Without, they are as good as the guide is.

    Args:
        pair: one whose model and guide take x and mask, and whose guide reads of x what is observed only.
        data: with x and mask; what `pyrovae.data.match` takes. Of `Data` the test split.
        num_imputations: M.
        num_samples: K, of which M are taken with replacement. Default: no resampling.
        plate, seed, batch_size: as in `evaluating`.

    Returns:
        the `Imputation`.

    Raises:
        ValueError: for a pair that takes no mask, or whose guide reads what is missing; for data without a mask or with
            rows that have nothing observed; for likelihoods that are no product over the elements of x; and with
            num_samples for latents outside the data plate, which give a datum no weight of its own.

    Source: Mattei & Frellsen 2019, https://arxiv.org/abs/1812.02633, section 4: eqs. 12 and 13 for the mean, sampling
    importance resampling for multiple imputations; Rubin 1987.

    >>> from pyrovae.models import PartialVAE
    >>> x, mask = torch.rand(5, 4).round(), torch.tensor([True, True, False, False]).expand(5, 4)
    >>> found = impute(PartialVAE(4, 2), {"x": x, "mask": mask}, num_imputations=3, num_samples=20)
    >>> found.x.shape, found.mean.shape
    (torch.Size([3, 5, 4]), torch.Size([5, 4]))
    """
    check_counts(num_imputations=num_imputations, num_samples=num_samples)
    particles = num_samples or num_imputations
    with _with_masks(pair, data, plate, seed, batch_size, particles, reads_mask=True) as on:
        if num_samples is not None:
            on.known.refuse_shared()
        at = on.rows.names.index("x")
        parts = []
        for run, batch, x, mask in _batches(on):
            hidden = _hidden(run, batch, x, mask, on)
            drawn = ledger(run, *hidden, num_particles=particles, known=on.known)
            likelihood = _likelihood(drawn)
            values = _first(_sample(likelihood, particles), x, x.dtype)
            means = _first(_mean(likelihood, particles), x, _real(x))
            if num_samples is None:
                mean, ess = means.mean(0), means.new_full((len(x),), math.nan)
            else:
                log_w = _log_weights(drawn, masked(likelihood, mask).log_prob(hidden[at]))  # (K, B)
                share = log_w.softmax(0)
                chosen = torch.multinomial(share.T, num_imputations, replacement=True).T  # (M, B)
                values = values.gather(0, _like(chosen, values).expand(-1, *values.shape[1:]))
                mean, ess = (_like(share, means) * means).sum(0).to(means), 1 / share.square().sum(0)
            parts.append((torch.where(mask, x, values), torch.where(mask, x, mean), mask, ess))
        xs, centres, masks, sizes = zip(*parts, strict=True)
        return Imputation(on.join(xs, 1), on.join(centres), on.join(masks), on.join(sizes) if num_samples else None)


def impute_by_gibbs(
    pair: Any,
    data: Any,
    *,
    num_imputations: int = 10,
    num_steps: int = 100,
    num_warmup: int = 20,
    metropolis: bool = True,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Imputation:
    r"""Imputations by M independent Markov chains that draw z given all of x, and x_mis given z, by turns.

        z' ~ q(z | x_obs, x_mis)        x_mis ~ p(x_mis | z)

    Taking each z' is pseudo-Gibbs, whose chain leaves p(x_mis | x_obs) alone only if q(z | x) = p(z | x). With
    Metropolis correction z' is taken with probability

        min(1, p(x, z') q(z | x) / p(x, z) q(z' | x))

    and the chain converges to p(z, x_mis | x_obs) for any q that reaches all z. It begins with a draw of x_mis from the
    model's prior and `num_warmup` steps of pseudo-Gibbs, which find the region where proposals are taken. A guide that
    takes a mask and reads the observed part alone proposes from q(z | x_obs, mask): the ratio has p(x_obs, z) there.

    Args:
        pair: any pair with a site x, such as a plain VAE.
        data: with x and mask, as for `impute`.
        num_imputations: M, the chains of each datum; the last state of each is an imputation.
        num_steps: steps after the warm-up; the mean is over all of them.
        num_warmup: steps of pseudo-Gibbs before them.
        metropolis: False for pseudo-Gibbs throughout.
        plate, seed, batch_size: as in `evaluating`.

    Returns:
        the `Imputation`, with the share of accepted proposals.

    Raises:
        ValueError: as for `impute` with num_samples, but for pairs without a mask.

    Source: Rezende et al. 2014, https://arxiv.org/abs/1401.4082, appendix F (pseudo-Gibbs); Mattei & Frellsen 2018,
    https://arxiv.org/abs/1802.04826, algorithm 1 (Metropolis-within-Gibbs, and its start by pseudo-Gibbs).
    """
    check_counts(num_imputations=num_imputations, num_steps=num_steps)
    if isinstance(num_warmup, bool) or not isinstance(num_warmup, int) or num_warmup < 0:
        raise ValueError(f"num_warmup is {num_warmup!r}, a whole number of at least 0 is wanted; pass num_warmup=20")
    with _with_masks(pair, data, plate, seed, batch_size, num_imputations, reads_mask=False) as on:
        on.known.refuse_shared()
        # q(z | x_obs, mask) has no part in x_mis, which the ratio then leaves out: the chain has z alone.
        reads_all = "mask" not in on.rows.names or _reads_missing(on)
        parts, accepted = [], []
        for run, batch, x, mask in _batches(on):
            batch = tuple(_repeated(tensor, num_imputations) for tensor in batch)
            x_obs, seen = _repeated(x, num_imputations), _repeated(mask, num_imputations)
            batch = _hidden(run, batch, x_obs, seen, on)
            at = on.rows.names.index("x")
            scored = torch.ones_like(seen) if reads_all else seen
            z, total = None, torch.zeros_like(x_obs, dtype=_real(x))
            for step in range(num_warmup + num_steps):
                always = not metropolis or step < num_warmup
                z, drawn, mean, took = _move(run, batch, z, scored, on, always=always)
                batch = (*batch[:at], torch.where(seen, x_obs, drawn), *batch[at + 1 :])
                if step >= num_warmup:
                    total = total + mean
                    accepted.append(took)
            shape = (num_imputations, *x.shape)
            mean = (total / num_steps).reshape(shape).mean(0)
            parts.append((batch[at].reshape(shape), torch.where(mask, x, mean), mask))
        xs, centres, masks = zip(*parts, strict=True)
        rate = float(torch.cat(accepted).double().mean())
        return Imputation(on.join(xs, 1), on.join(centres), on.join(masks), acceptance=rate)


def missing_log_likelihood(
    pair: Any,
    data: Any,
    *,
    num_samples: int = 1000,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Estimate:
    r"""log p(x_mis | x_obs) of each datum, where the data know what is hidden.

        log (1/K sum_k w_k p(x_mis | z_k)) - log (1/K sum_k w_k),    w_k = p(x_obs | z_k) p(z_k) / q(z_k | x_obs, mask)

    The two have the same z_k ~ q(z | x_obs, mask). As K grows it tends to log p(x_mis | x_obs) whatever the guide; it
    is no bound. The density is that of all hidden elements together.

    Args:
        pair, plate, seed, batch_size: as for `impute`.
        data: with x, all of it true, and mask.
        num_samples: K.

    Returns:
        the `Estimate`, in nats per datum; its error by the delta method for a ratio.

    Source: Mattei & Frellsen 2019, https://arxiv.org/abs/1812.02633, eq. 12 with h(x_mis) = p(x_mis | z).
    """
    check_counts(num_samples=num_samples)
    with _with_masks(pair, data, plate, seed, batch_size, num_samples, reads_mask=True) as on:
        on.known.refuse_shared()
        at = on.rows.names.index("x")
        values, variances, density = [], [], True
        for run, batch, x, mask in _batches(on):
            check_support(on, batch)
            hidden = _hidden(run, batch, x, mask, on)
            drawn = ledger(run, *hidden, num_particles=num_samples, known=on.known)
            likelihood = _likelihood(drawn)
            log_w = _log_weights(drawn, masked(likelihood, mask).log_prob(hidden[at])).double()
            log_all = log_w + masked(likelihood, ~mask).log_prob(x)
            values.append(log_all.logsumexp(0) - log_w.logsumexp(0))
            variances.append((log_all.softmax(0) - log_w.softmax(0)).square().sum(0))
            density = is_density(drawn.terms)
        # The variance of a sample has K - 1 below: from a single draw there is none.
        below = num_samples / (num_samples - 1) if num_samples > 1 else math.nan
        error = math.sqrt(float(on.join(variances).sum()) * below) / len(on.rows)
        return estimate(on.join(values), error, num_samples, density)


@contextmanager
def _with_masks(
    pair: Any,
    data: Any,
    plate: str | None,
    seed: int,
    batch_size: int | None,
    particles: int,
    *,
    reads_mask: bool,
) -> Iterator[Evaluation]:
    """The pair on data with x and mask, whatever they hold where x is missing; see `_batches`."""
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size, particles=particles) as on:
        rows = on.rows
        on.known.refuse_improper()
        if not isinstance(rows, Split) or not {"x", "mask"} <= set(rows.fields) or "x" not in rows.names:
            raise ValueError(
                f"data hold {', '.join(rows.fields)} and the model takes {', '.join(rows.names)}; both need x, and the "
                "data in memory a mask: pass {'x': x, 'mask': mask}, or pyrovae.data.incomplete(x)"
            )
        if reads_mask and "mask" not in rows.names:
            raise ValueError(
                "the model takes no mask, so that its guide would take what is missing for data; use impute_by_gibbs, "
                "or a pair of x and mask such as PartialVAE"
            )
        if on.known.enumerated or on.known.subsampled:
            raise ValueError(
                "the pair enumerates sites or subsamples its data, for which there is no imputation yet; sample its "
                "discrete sites, and pass the rows to impute as the data"
            )
        check_mask(rows["x"], rows["mask"])
        if reads_mask and _reads_missing(on):
            raise ValueError(
                "the guide reads x where the mask says that it is missing, so that it knows what is to be imputed; "
                "pass a pair whose guide reads the observed part alone, such as PosteriorMatching's partial_vae()"
            )
        yield on


def _batches(on: Evaluation) -> Iterator[tuple[PairLike, tuple[Tensor, ...], Tensor, Tensor]]:
    """The pair and its batches, each with x and the mask of its rows."""
    assert isinstance(on.rows, Split)
    both = on.rows.select("x", "mask").sequential(on.batch_size)
    for (run, batch, _), (x, mask) in zip(on, both, strict=True):
        x, mask = on._moved((x, mask.bool()))
        yield run, batch, x, mask


def _reads_missing(on: Evaluation) -> bool:
    """Whether the guide is another one where x holds another value in the place of what is missing, in any batch."""
    with isolated_random_state(0):
        for run, batch, x, mask in _batches(on):
            traces = []
            for _ in range(2):
                filled = _hidden(run, batch, x, mask, on)
                with isolated_random_state(0):
                    traces.append(poutine.trace(run.guide).get_trace(*filled))
            first, second = ({site["name"]: site["value"] for site in random_sites(trace)} for trace in traces)
            if any(not torch.equal(value, second[name]) for name, value in first.items()):
                return True
    return False


def _hidden(run: PairLike, batch: tuple[Tensor, ...], x: Tensor, mask: Tensor, on: Evaluation) -> tuple[Tensor, ...]:
    """The batch with a draw from the model in place of what is missing: true values must not reach the guide.

    Nor need what the data hold there be a value that the likelihood can give; what is observed has to be one.
    """
    site = observed_site(on.known, "x")
    trace = poutine.trace(uncondition(run.model)).get_trace(*batch)
    drawn = trace.nodes[site]["value"].to(x.dtype).reshape(x.shape)
    at = on.rows.names.index("x")
    filled = (*batch[:at], torch.where(mask, x, drawn), *batch[at + 1 :])
    check_support(on, filled)
    return filled


def _likelihood(drawn: Ledger) -> TorchDistribution:
    """p(x | z) at the particles, of batch shape (K, B) or (B,), without a mask."""
    if len(drawn.draws) > 1:
        raise ValueError("the pair's networks take no leading dims, so that imputation has no particles; flatten them")
    term = next(term for term in drawn.terms if term.name == "x" and term.kind == "observed")
    base, dims = by_element(term.site["fn"])
    return base.to_event(dims)


def _log_weights(drawn: Ledger, log_likelihood: Tensor) -> Tensor:
    """log p(x, z) - log q(z), (K, B), with another log p(x | z) than the model's."""
    draw = drawn.draws[0]
    terms = [
        replace(term, log_prob=log_likelihood, unmasked=log_likelihood) if term.name == "x" else term
        for term in draw.terms
    ]
    return Draw(terms, draw.known, draw.num_particles, draw.plate_to_symbol).log_weights(one, keep_guide=True)


def _move(
    run: PairLike, batch: Sequence[Tensor], z: Trace | None, scored: Tensor, on: Evaluation, *, always: bool
) -> tuple[Trace, Tensor, Tensor, Tensor]:
    """The next z, a draw of x and the mean of x given it, and for each row whether the proposal was taken."""
    x = batch[on.rows.names.index("x")]

    def given(drawn: Ledger) -> tuple[Tensor, Tensor]:
        likelihood = _likelihood(drawn)
        return likelihood.sample().to(x.dtype).reshape(x.shape), _mean_of(likelihood).to(_real(x)).reshape(x.shape)

    proposed = ledger(run, *batch, known=on.known)
    new, (draw, mean) = _guide_trace(proposed), given(proposed)
    if always or z is None:
        return new, draw, mean, torch.ones(len(x), dtype=torch.bool, device=x.device)
    now = ledger(Functions(run.model, poutine.replay(run.guide, trace=z)), *batch, known=on.known)
    log_w, log_w_now = (
        _log_weights(each, masked(_likelihood(each), scored).log_prob(x))[0] for each in (proposed, now)
    )
    took = torch.rand_like(log_w).log() < log_w - log_w_now
    for name, site in new.nodes.items():
        rows = took.reshape(len(took), *(1,) * site["fn"].event_dim)  # against (nested plates..., B, *event)
        site["value"] = torch.where(rows, site["value"], z.nodes[name]["value"])
    rows = took.reshape(len(took), *(1,) * (x.dim() - 1))
    return new, *(torch.where(rows, a, b) for a, b in zip((draw, mean), given(now), strict=True)), took


def _guide_trace(drawn: Ledger) -> Trace:
    trace = Trace()
    for term in drawn.terms:
        if term.kind == "guide":
            trace.add_node(term.name, **{**term.site})
    return trace


def _sample(d: TorchDistribution, particles: int) -> Tensor:
    """(K, B, *event)."""
    return d.sample() if len(d.batch_shape) > 1 else d.sample()[None].expand(particles, *d.batch_shape, *d.event_shape)


def _mean(d: TorchDistribution, particles: int) -> Tensor:
    mean = _mean_of(d)
    return mean if len(d.batch_shape) > 1 else mean[None].expand(particles, *mean.shape)


def _mean_of(d: TorchDistribution) -> Tensor:
    """The mean of each element, NaN where there is none."""
    try:
        return d.mean
    except (AttributeError, NotImplementedError):
        return torch.full_like(d.sample(), math.nan, dtype=torch.get_default_dtype())


def _first(values: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).reshape(len(values), *x.shape)


def _real(x: Tensor) -> torch.dtype:
    """What a mean of x is in: that of counts is no whole number, and that of classes is NaN."""
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _like(weights: Tensor, values: Tensor) -> Tensor:
    """(K, B) as (K, B, 1...)."""
    return weights.reshape(*weights.shape, *(1,) * (values.dim() - 2))


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """(B, ...) as (times B, ...), all rows, then all again."""
    return tensor.repeat(times, *(1,) * (tensor.dim() - 1))
