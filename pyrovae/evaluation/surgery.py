r"""What the KL of an ELBO is made of: index-code information, total correlation, and the rest.

    1/N sum_n KL(q(z | x_n) || p(z)) = I(n; z) + KL(q(z) || p(z)),    q(z) = 1/N sum_n q(z | x_n)
    KL(q(z) || p(z)) = KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j))    for a prior prod_j p(z_j)

The aggregate q(z) is that of the data at hand, and is used exactly: a mixture of N posteriors, with no mini-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from tqdm import tqdm

from pyrovae.distributions import pairwise_log_prob
from pyrovae.distributions.products import masks
from pyrovae.evaluation.estimates import with_error
from pyrovae.evaluation.running import BUDGET, Evaluation, check_counts, evaluating
from pyrovae.evaluation.sites import is_discrete
from pyrovae.evaluation.units import ActiveUnits, active_units
from pyrovae.models.base import random_sites
from pyrovae.models.traces import is_point
from pyrovae.objectives.draws import density, scoring

__all__ = ["Surgery", "surgery"]

TABLE = 4096  # values of a discrete latent up to which sums are exact


@dataclass
class Surgery:
    """The average KL of a latent in its parts, nats per datum: kl = information + marginal_kl.

    Attributes:
        kl: average KL(q(z | x_n) || p(z)).
        information: mutual information of a datum's index and its code, from 0 to log N.
        marginal_kl: KL(q(z) || p(z)).
        total_correlation: KL(q(z) || prod_j q(z_j)); None for a latent that is one number, or whose q(z_j | x) are not
            known.
        dimension_kl: KL(q(z_j) || p(z_j)) of each dimension (L,); None too where the prior does not factorise.
        standard_errors: Monte Carlo error of each of these by name, with the data fixed; 0 for a discrete latent whose
            values are summed.
        site: the latent.
        rows: N.
        units: which dimensions the data make use of; None for latents that have no such dimensions.
    """

    kl: float
    information: float
    marginal_kl: float
    total_correlation: float | None
    dimension_kl: Tensor | None = field(repr=False)
    standard_errors: dict[str, Any] = field(repr=False)
    site: str
    rows: int
    units: ActiveUnits | None = None

    @property
    def inactive(self) -> list[int]:
        """Dimensions that have collapsed to the prior: their mean does not depend on the datum."""
        if self.units is None:
            return []
        return (self.units.variance <= self.units.threshold).nonzero().flatten().tolist()

    def __str__(self) -> str:
        rows = {"average KL": "kl", "  index-code information": "information", "  marginal KL": "marginal_kl"}
        if self.total_correlation is not None:
            rows["    total correlation"] = "total_correlation"
        lines = [f"{label:<26}{with_error(getattr(self, n), self.standard_errors[n])}" for label, n in rows.items()]
        if self.dimension_kl is not None:
            error = self.standard_errors["dimension_kl_sum"]
            lines.append(f"{'    dimension-wise KL':<26}{with_error(float(self.dimension_kl.sum()), error)}")
        lines[0] += f" nats; at most log N = {math.log(self.rows):.2f} of it is information"
        if self.units is not None:
            lines.append(f"{self.units}" + (f"; collapsed: {self.inactive}" if self.inactive else ""))
        return "\n".join(lines)


def surgery(
    pair: Any,
    data: Any,
    *,
    num_samples: int = 2000,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Surgery:
    """The average KL of an ELBO as index-code information, total correlation and dimension-wise KL.

    Discrete latents of up to 4096 values are summed exactly; otherwise z is drawn from q(z | x_n) of random n, and
    every log q(z) is the exact one over all N data, in time num_samples x N.

    Args:
        pair, data, plate, seed, batch_size: see `pyrovae.log_likelihood`. The guide has one latent for each datum, and
            the model the same one, with a density that does not depend on the datum.
        num_samples: S draws of z in all.
        progress: show a bar.

    Returns:
        the `Surgery`.

    Raises:
        ValueError: for another number of latents, a prior that depends on the datum, or a latent that a mask hides.

    Source: Hoffman & Johnson 2016, "ELBO surgery", eq. 7; Chen et al. 2018, https://arxiv.org/abs/1802.04942, eq. 2.
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = only_latent(on)
        posteriors, prior = distributions(on, name)
        total = len(on.rows)
        values = _all_values(posteriors[0])
        if values is None:
            chosen = torch.randint(total, (num_samples,), device=on.device).sort().values
            z = draws(posteriors, chosen)
        else:
            z, chosen = values, None
        pieces = _scores(on, name, posteriors, prior, z, chosen, progress)
    result = _summed(pieces, name, total)
    try:
        result.units = active_units(pair, data, site=name, plate=plate, seed=seed, batch_size=batch_size)
    except ValueError:  # no vector of continuous numbers, or one row
        result.units = None
    return result


@dataclass
class _Pieces:
    """Log-densities at S points: of their own posterior (S,), or of all at each value, and of all the aggregates."""

    weight: Tensor  # (S,), or for exact sums q(z) of each value
    cross: Tensor | None  # sum_n q(z | x_n) / N log q(z | x_n) / q(z), of each value, for exact sums
    own: Tensor | None
    aggregate: Tensor
    prior: Tensor
    marginals: Tensor | None  # log q(z_j), (S, L)
    prior_marginals: Tensor | None


def only_latent(on: Evaluation) -> str:
    trace = poutine.trace(on.pair.guide).get_trace(*on.batch())
    names = [site["name"] for site in random_sites(trace) if not site["is_observed"]]
    on.known.refuse_improper()
    if len(names) != 1 or on.known.global_latent or len(on.known.latent) != 1:
        raise ValueError(
            f"the guide samples {names} and the model {list(on.known.latent)}; the KL is taken apart for one latent of "
            "each datum, in guide and model: condition on the others, or sum them into its density"
        )
    if trace.nodes[names[0]]["fn"].batch_shape != torch.Size([on.known.rows]):
        raise ValueError(f"latent {names[0]!r} lies in nested plates; make them dims of its event, with .to_event")
    return names[0]


def distributions(on: Evaluation, name: str) -> tuple[list[Distribution], Distribution]:
    """q(z | x) of each batch, and p(z)."""
    if on.subsamples:
        raise ValueError("the model subsamples its data by itself; take out subsample_size to sum over all of them")
    posteriors, prior = [], None
    for run, batch, _ in on:
        trace = poutine.trace(run.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(run.model, trace=trace)).get_trace(*batch)
        _refuse_masks(trace.nodes[name], model.nodes[name])
        posteriors.append(trace.nodes[name]["fn"])
        if is_point(posteriors[-1]):
            raise ValueError(f"the guide puts {name!r} on a point (Delta), and points have no aggregate density q(z)")
        p = model.nodes[name]["fn"]
        if prior is None:
            prior, z = p, trace.nodes[name]["value"][:1]
            expected = density(name, p, z.expand(p.shape()))[0]
        at_first = density(name, p, z.expand(p.shape()))  # one z for all batches: each could have a prior of its own
        if not torch.allclose(at_first, expected.expand_as(at_first), rtol=1e-5, atol=1e-5):
            raise ValueError(f"the prior of {name!r} depends on the datum, so that there is no one p(z) for q(z)")
    assert prior is not None
    return posteriors, prior


def _refuse_masks(*sites: dict[str, Any]) -> None:
    """Both of a latent's sites have a density in each row."""
    for site in sites:
        hiding = [site["mask"], *masks(site["fn"], site["fn"].event_dim)]
        if not all(mask is None or torch.as_tensor(mask).all() for mask in hiding):
            raise ValueError(
                f"a mask hides latent {site['name']!r} in some rows, which then have no KL to take apart; "
                "pass the rows where it is true, or take the mask out"
            )


def _batch(q: Distribution) -> range:
    return range(q.batch_shape[0])


def draws(posteriors: Sequence[Distribution], chosen: Tensor) -> Tensor:
    """One draw of q(z | x_n) for each of these rows of all data, in ascending order: (S, *event)."""
    drawn, start = [], 0
    for q in posteriors:
        count = len(_batch(q))
        rows = chosen[(chosen >= start) & (chosen < start + count)] - start
        if len(rows):
            drawn.append(_draw(q, rows))
        start += count
    return torch.cat(drawn)


def _draw(q: Distribution, rows: Tensor) -> Tensor:
    """One draw of q(z | x_n) for each of these rows, which may repeat: as often as the most frequent row is drawn."""
    counts = torch.bincount(rows, minlength=q.batch_shape[0])
    z = q.sample(torch.Size([int(counts.max())]))  # (times, B, *event)
    before = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    return z[before, rows]


def _all_values(q: Distribution) -> Tensor | None:
    """All values that a discrete latent takes, (C, *event); None where there are too many, or it is continuous."""
    if not is_discrete({"fn": q}):
        return None
    base = q.base_dist if isinstance(q, Independent) else q
    if not base.has_enumerate_support or len(q.event_shape) > 1:
        return None
    if base.event_shape:  # one vector, such as a one-hot: its numbers are not free of each other
        each = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
        return each if len(each) <= TABLE else None
    each = base.enumerate_support(expand=False).flatten()
    numbers = q.event_shape.numel()
    if len(each) ** numbers > TABLE:
        return None
    return each if not q.event_shape else torch.cartesian_prod(*[each] * numbers).reshape(-1, numbers)


def _per_dimension(q: Distribution) -> Distribution | None:
    """The distributions of the single numbers of a vector, with one more batch dim; None where they are not known."""
    if isinstance(q, Independent) and len(q.event_shape) == 1 and not q.base_dist.event_shape:
        return q.base_dist
    if isinstance(q, MultivariateNormal):
        return Normal(q.mean, q.variance.sqrt())
    return None


def _scores(
    on: Evaluation,
    name: str,
    posteriors: Sequence[Distribution],
    prior: Distribution,
    z: Tensor,
    chosen: Tensor | None,
    progress: bool,
) -> _Pieces:
    """Log-densities at z (S, *event); with `chosen` these are draws from the posteriors of those rows."""
    total, numbers = sum(len(_batch(q)) for q in posteriors), max(1, z[0].numel())
    singles = [_per_dimension(q) for q in posteriors]
    single_prior = _per_dimension(prior)
    wide = len(z.shape) == 2 and all(single is not None for single in singles)
    # The largest tensors have a number for each point and datum, or one for each number of z and datum of a batch.
    chunk = max(1, BUDGET // max(total, numbers * max(len(_batch(q)) for q in posteriors)))
    parts: list[list[Tensor]] = [[], [], [], []]
    with tqdm(total=len(z), desc="surgery", unit="draw", disable=not progress) as bar:
        for start in range(0, len(z), chunk):
            points = z[start : start + chunk]
            log_q = log_posteriors(name, posteriors, points)  # (S, N)
            aggregate = torch.logsumexp(log_q, 1) - math.log(total)
            parts[0].append(aggregate)
            if chosen is None:
                ratio = torch.where(log_q == -math.inf, 0.0, log_q - aggregate.unsqueeze(1))
                parts[1].append((log_q.exp() * ratio).mean(1))
            else:
                parts[1].append(log_q.gather(1, chosen[start : start + chunk].unsqueeze(1)).squeeze(1))
            parts[2].append(log_prior(prior, points))
            if wide:
                sums = [_log_sum(single, points) for single in singles if single is not None]
                parts[3].append(reduce(torch.logaddexp, sums) - math.log(total))  # (S, L)
            bar.update(len(points))
    aggregate, second, p, *_ = (torch.cat(part) if part else torch.empty(0) for part in parts)
    p_single = None
    if wide and single_prior is not None and isinstance(prior, Independent):
        p_single = log_prior(single_prior, z)
    marginals = torch.cat(parts[3]) if wide else None
    if chosen is None:
        return _Pieces(aggregate.exp(), second, None, aggregate, p, marginals, p_single)
    even = torch.full_like(aggregate, 1 / len(aggregate))
    return _Pieces(even, None, second, aggregate, p, marginals, p_single)


def _log_sum(single: Distribution, points: Tensor) -> Tensor:
    """log sum_n q(z_j | x_n) over a batch, of each number of points (S, L)."""
    return torch.logsumexp(single.log_prob(points.unsqueeze(1)).double(), 1)


def log_posteriors(name: str, posteriors: Sequence[Distribution], points: Tensor) -> Tensor:
    """log q(z | x_n) of points (S, *event) for all data, (S, N)."""
    scores = []
    for q in posteriors:
        with scoring(name, q):
            scores.append(pairwise_log_prob(q, points).double())
    return torch.cat(scores, 1)


def log_prior(prior: Distribution, points: Tensor) -> Tensor:
    """log p(z) of points (S, *event), (S,); the prior has a batch of B equal rows, over which these are laid.

    With a batch shape (B, L) of single numbers, log p(z_j), (S, L). Each point at each row would cost B times as much,
    which a prior of many components has no memory for.
    """
    rows = prior.batch_shape[0]
    missing = -len(points) % rows
    laid = torch.cat([points, points[:1].expand(missing, *points.shape[1:])]).unflatten(0, (-1, rows))
    return prior.log_prob(laid).flatten(0, 1)[: len(points)].double()


def _summed(pieces: _Pieces, name: str, total: int) -> Surgery:
    errors: dict[str, Any] = {}

    def mean(label: str, of: Tensor) -> Tensor:
        of = torch.where(_wide(pieces.weight, of) > 0, of, 0.0)
        value = (_wide(pieces.weight, of) * of).sum(0)
        error = of.std(0) / math.sqrt(len(of)) if pieces.cross is None else torch.zeros_like(value)
        errors[label] = float(error) if error.dim() == 0 else error.cpu()
        return value.cpu()

    marginal = mean("marginal_kl", pieces.aggregate - pieces.prior)
    if pieces.cross is None:
        assert pieces.own is not None
        information = mean("information", pieces.own - pieces.aggregate)
        kl = mean("kl", pieces.own - pieces.prior)
    else:
        information = pieces.cross.sum().cpu()
        kl = information + marginal
        errors |= {"information": 0.0, "kl": 0.0}
    correlation = dimension = None
    if pieces.marginals is not None:
        correlation = float(mean("total_correlation", pieces.aggregate - pieces.marginals.sum(1)))
        if pieces.prior_marginals is not None:
            dimension = mean("dimension_kl", pieces.marginals - pieces.prior_marginals)
            mean("dimension_kl_sum", (pieces.marginals - pieces.prior_marginals).sum(1))
    return Surgery(float(kl), float(information), float(marginal), correlation, dimension, errors, name, total)


def _wide(weight: Tensor, of: Tensor) -> Tensor:
    return weight.reshape(-1, *[1] * (of.dim() - 1))
