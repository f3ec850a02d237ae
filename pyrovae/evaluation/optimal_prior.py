r"""What another prior would do for a trained pair, and how far each is from the best there is.

    1/N sum_n ELBO_n = 1/N sum_n E_q log p(x_n | z)  -  I(n; z)  -  KL(q(z) || p(z)),    q(z) = 1/N sum_n q(z | x_n)

Only the last term knows the prior. It is 0 for p(z) = q(z), the aggregated posterior, and positive for all others: with
q(z | x) and p(x | z) as they are, no prior has a higher ELBO on these data, and each loses KL(q(z) || p(z)) to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from pyrovae.evaluation.chunks import check_support
from pyrovae.evaluation.estimates import Estimate, estimate, is_density, with_error
from pyrovae.evaluation.running import BUDGET, check_counts, evaluating
from pyrovae.evaluation.surgery import distributions, log_posteriors, log_prior, only_latent
from pyrovae.models.base import evaluation_mode
from pyrovae.objectives import ledger

__all__ = ["PriorComparison", "compare_priors"]

OWN, OPTIMAL = "the pair's own", "aggregated posterior"


@dataclass
class PriorComparison:
    """A pair's ELBO under several priors, nats per datum: elbo = reconstruction - information - marginal_kl.

    All are means over the same draws of z, so that differences have less noise than values: that of two priors' ELBOs
    is that of their marginal KLs, exactly.

    Attributes:
        elbo: the mean ELBO under each prior by name, with its Monte Carlo error and its error over data.
        marginal_kl: KL(q(z) || p(z)) of each, with its Monte Carlo error; 0 for the aggregated posterior, which comes
            last. `per_datum` is each datum's share, which is negative where q(z) is low, and depends on all data.
        reconstruction: E_q log p(x | z).
        information: I(n; z), index-code information, from 0 to log N.
        site: the latent.
        rows: N.
    """

    elbo: dict[str, Estimate]
    marginal_kl: dict[str, Estimate]
    reconstruction: Estimate
    information: Estimate
    site: str
    rows: int

    def __str__(self) -> str:
        width = max(len("prior"), *map(len, self.elbo)) + 2
        lines = [f"{'prior':<{width}}{'KL(q(z) || p(z))':>20}{'mean ELBO':>20}{'over data':>12}"]
        for name, value in self.elbo.items():
            texts = [with_error(each.value, each.standard_error) for each in (self.marginal_kl[name], value)]
            lines.append(f"{name:<{width}}{texts[0]:>20}{texts[1]:>20}{f'+- {value.data_standard_error:.2g}':>12}")
        parts = [with_error(each.value, each.standard_error) for each in (self.reconstruction, self.information)]
        lines.append(f"mean ELBO = reconstruction {parts[0]} - index-code information {parts[1]} - KL(q(z) || p(z))")
        lines.append(f"nats per datum, {self.rows} rows; log N = {math.log(self.rows):.2f} is the most information")
        return "\n".join(lines)


def compare_priors(
    pair: Any,
    data: Any,
    priors: Mapping[str, Callable[[], Distribution] | Distribution] | None = None,
    *,
    num_particles: int = 8,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> PriorComparison:
    """The ELBO and KL(q(z) || p(z)) of a pair under its own prior, under others, and under the best there is.

    Guide and likelihood stay as they are: nothing is trained. The best, the aggregated posterior over these N rows, is
    the optimum for them and for no others: a prior that learned other rows can't reach it, and it would overfit. Its
    log q(z) is exact, over all N data, in time num_particles x N x N.

    Args:
        pair, data, plate, seed, batch_size, progress: see `pyrovae.surgery`, as to which pairs have a q(z).
        priors: by name, modules called as `prior()`, or the Distributions of an event shape like z themselves.
        num_particles: K draws of z for each datum, at least 2.

    Returns:
        the `PriorComparison`: the pair's own prior first, the aggregated posterior last.

    Raises:
        TypeError: for what is no prior.
        ValueError: for a prior of another event shape, or whose support lacks some draws of z; a name that is taken;
            fewer than two particles; see `surgery`.

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Tomczak & Welling 2018, https://arxiv.org/abs/1705.07120, eq. 7.

    >>> from pyrovae.models.vae import VAE
    >>> found = compare_priors(VAE(4, latent_dim=2, hidden=(8,)), torch.ones(5, 4), num_particles=3)
    >>> list(found.elbo), found.marginal_kl["aggregated posterior"].value
    (["the pair's own", 'aggregated posterior'], 0.0)
    """
    check_counts(num_particles=num_particles)
    if num_particles < 2:
        raise ValueError("num_particles is 1, from which no error can be told; pass num_particles=8")
    given = dict(priors or {})
    if taken := {OWN, OPTIMAL} & set(given):
        raise ValueError(f"priors has {sorted(taken)}, the names of rows that are always there; rename them")
    with (
        evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size, particles=num_particles) as on,
        evaluation_mode(*given.values()),
    ):
        name = only_latent(on)
        posteriors, own_prior = distributions(on, name)
        drawn_z, fitted, density = [], [], True
        for run, batch, _ in on:
            check_support(on, batch)
            drawn = ledger(run, *batch, num_particles=num_particles, known=on.known)
            log_p = drawn.entries()[0]
            fitted.append(torch.stack([log_p[site] for site in on.known.observed]).double().sum(0))
            drawn_z.append(drawn.values[name])
            density = is_density(drawn.terms)
        z = on.join(drawn_z, 1)  # (K, N, *event)
        others = {key: _distribution(key, prior, z) for key, prior in given.items()}
        total, event = z.size(1), z.shape[2:]
        chunk = max(1, BUDGET // max(total, event.numel() * max(q.batch_shape[0] for q in posteriors)))
        flat, rows = z.flatten(0, 1), torch.arange(total, device=z.device).repeat(num_particles)
        scores: dict[str, list[Tensor]] = {key: [] for key in ("own", OPTIMAL, OWN, *others)}
        with tqdm(total=len(flat), desc="priors", unit="draw", disable=not progress) as bar:
            for points, row in zip(flat.split(chunk), rows.split(chunk), strict=True):
                log_q = log_posteriors(name, posteriors, points)  # (S, N)
                scores["own"].append(log_q.gather(1, row.unsqueeze(1)).squeeze(1))
                scores[OPTIMAL].append(torch.logsumexp(log_q, 1) - math.log(total))
                scores[OWN].append(log_prior(own_prior, points))
                for key, prior in others.items():
                    scores[key].append(prior.log_prob(points).double())
                bar.update(len(points))
        log = {key: torch.cat(parts).reshape(num_particles, total) for key, parts in scores.items()}
    own, aggregate, reconstruction = log.pop("own"), log.pop(OPTIMAL), on.join(fitted, 1)
    log[OPTIMAL] = aggregate

    def mean(values: Tensor, density: bool = True) -> Estimate:
        error = float((values.var(0) / num_particles).sum().sqrt()) / total
        return estimate(values.mean(0), error, num_particles, density)

    return PriorComparison(
        elbo={key: mean(reconstruction - own + p, density) for key, p in log.items()},
        marginal_kl={key: mean(aggregate - p) for key, p in log.items()},
        reconstruction=mean(reconstruction, density),
        information=mean(own - aggregate),
        site=name,
        rows=total,
    )


def _distribution(name: str, prior: Any, z: Tensor) -> Distribution:
    p = prior if isinstance(prior, Distribution) else prior() if callable(prior) else None
    if not isinstance(p, Distribution):
        raise TypeError(f"priors[{name!r}] is {prior!r}, which gives no Distribution; pass a module called as prior()")
    if p.event_shape != z.shape[2:] or p.batch_shape.numel() != 1:
        raise ValueError(
            f"priors[{name!r}] has batch shape {tuple(p.batch_shape)} and event shape {tuple(p.event_shape)}, z has "
            f"event shape {tuple(z.shape[2:])}; pass one density of it, with .to_event for independent dimensions"
        )
    if outside := _outside(p, z):
        raise ValueError(
            f"priors[{name!r}] has support {p.support}, and {outside} of the {z.shape[:2].numel()} draws of z lie "
            "outside of it, where no ELBO is finite; pass a prior of all values that the guide draws"
        )
    return p


def _outside(p: Distribution, z: Tensor) -> int:
    """How many of z (K, N, *event) are no values of a distribution that says which it has."""
    try:
        return int((~p.support.check(z)).sum())  # type: ignore[union-attr]
    except NotImplementedError:
        return 0
