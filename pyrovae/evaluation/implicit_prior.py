r"""A pair under the implicit optimal prior: what its critic makes of p(z), estimated.

    p_T(z) = p(z) exp T(z) / Z,    Z = E_p(z) [exp T(z)],    T(z) ~ log q(z) / p(z)

The bare pair, which every other function here sees, has p(z) for its prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.data import Data, Split, match
from pyrovae.data.seeds import ORDER, seeded_generator
from pyrovae.evaluation.estimates import Estimate, Moments, estimate, with_error
from pyrovae.evaluation.likelihood import log_likelihood
from pyrovae.evaluation.predictive import reconstruct
from pyrovae.evaluation.running import BUDGET, check_counts, evaluating
from pyrovae.evaluation.surgery import distributions, draws, log_posteriors, log_prior, only_latent
from pyrovae.models.base import as_pair, evaluation_mode
from pyrovae.objectives.dreams import uncondition
from pyrovae.objectives.total_correlation import code_name

__all__ = ["ImplicitLikelihood", "TiltedPair", "generate_from_aggregate", "implicit_log_likelihood"]


class TiltedPair:
    r"""A pair whose model has one factor more: its p(x, z) is p(z) exp T(z) p(x | z), which does not integrate to 1.

    Everything that takes a pair takes it, and gives log p(x) + log Z in place of log p(x): `pyrovae.log_likelihood`,
    `pyrovae.ais`. What draws from the model still draws z from p(z), since a factor is no draw.

    Args:
        pair: see `pyrovae.as_pair`.
        critic: T, of z flattened to (..., L).
        site: name of the latent.
    """

    def __init__(self, pair: Any, critic: nn.Module, *, site: str = "z"):
        self.pair, self.critic, self.site = as_pair(pair), critic, site

    @property
    def model(self) -> Any:
        """The pair's model with its factor."""
        bare = self.pair.model

        @wraps(bare)  # data are matched to its arguments by name
        def model(*batch: Any) -> Any:
            with _Tilted(self.critic, self.site):
                return bare(*batch)

        return model

    @property
    def guide(self) -> Any:
        """The pair's guide."""
        return self.pair.guide


class _Tilted(Messenger):
    """Adds T as a factor right after a latent."""

    def __init__(self, critic: nn.Module, site: str):
        super().__init__()
        self.critic, self.site = critic, site

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            z, event_dim = msg["value"], msg["fn"].event_dim
            with evaluation_mode(self.critic):
                log_ratio = self.critic(z.flatten(z.dim() - event_dim) if event_dim else z[..., None])
            pyro.factor(f"{self.site}_log_ratio", log_ratio)


@dataclass
class ImplicitLikelihood(Estimate):
    """An estimated log-likelihood under the implicit optimal prior: log Z, an estimate too, is taken off.

    Attributes:
        log_normaliser: log Z, nats, with its Monte Carlo error, which `standard_error` includes. A T that is log q/p
            exactly has log Z = 0; it comes out too low where few draws of p(z) have most of the weight (`ess`), and the
            log-likelihood then too high.
    """

    log_normaliser: Estimate | None = None

    @property
    def is_reliable(self) -> bool:
        """Whether the weights of x and those of log Z are spread enough; see `Estimate`."""
        return super().is_reliable and (self.log_normaliser is None or self.log_normaliser.is_reliable)

    def __str__(self) -> str:
        text = super().__str__()
        z = self.log_normaliser
        return text if z is None else f"{text}, estimated: log Z = {with_error(z.value, z.standard_error)} is taken off"


def implicit_log_likelihood(
    pair: Any,
    critic: nn.Module,
    data: Any,
    *,
    num_samples: int = 1000,
    prior_samples: int = 100_000,
    aggregate: Any = None,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> ImplicitLikelihood:
    r"""Log-likelihood under the prior p(z) exp T(z) / Z, importance-weighted by the guide.

        log 1/K sum_k p(x | z_k) p(z_k) exp T(z_k) / q(z_k | x) - log 1/S sum_s exp T(z_s)

        z_k ~ q(z | x),    z_s ~ p(z)

    The first part is below its limit in expectation, and so is what is taken off: no bound. p(z) is the same for all
    data. The authors leave Z out, as if T were exact.

    With more than a few latents no draw of p(z) comes to where q(z) and exp T(z) are large, and log Z comes out too low
    by many nats, which nothing in the draws tells. With `aggregate`, half of the z_s are drawn from the aggregate
    posterior of these rows instead and all are weighted, so that Z has its mass and its error is honest:

        Z = E_r(z) [p(z) exp T(z) / r(z)],    r(z) = p(z) / 2 + q(z) / 2,    q(z) = 1/N sum_n q(z | x_n)

    Args:
        pair, data, num_samples, plate, seed, batch_size: see `pyrovae.log_likelihood`.
        critic: T, of z flattened to (..., L): `objective.critic` of a trained `ImplicitPrior`.
        prior_samples: S.
        aggregate: rows whose posteriors make up q(z), of `Data` the training split, say; None draws from p(z) alone.
            It takes S x N densities.

    Returns:
        the estimate, its error that of both parts.

    Source: Takahashi et al. 2019, https://arxiv.org/abs/1809.05284, but for Z.

    >>> from pyrovae import VAE, DensityRatio
    >>> print(implicit_log_likelihood(VAE(4, 2, hidden=(8,)), DensityRatio(2), torch.ones(3, 4)).log_normaliser is None)
    False
    """
    check_counts(prior_samples=prior_samples)
    if aggregate is None:
        site, log_z = _log_normaliser(pair, critic, data, prior_samples, plate, seed)
    else:
        rows = aggregate.train if isinstance(aggregate, Data) else aggregate
        site, log_z = _log_normaliser_by_aggregate(pair, critic, rows, prior_samples, plate, seed)
    tilted = TiltedPair(pair, critic, site=site)
    of_x = log_likelihood(tilted, data, num_samples=num_samples, plate=plate, seed=seed, batch_size=batch_size)
    values = {field.name: getattr(of_x, field.name) for field in fields(Estimate)}
    values["value"] -= log_z.value
    values["per_datum"] = of_x.per_datum - log_z.value
    values["standard_error"] = math.hypot(of_x.standard_error, log_z.standard_error)
    return ImplicitLikelihood(**values, log_normaliser=log_z)


def _log_normaliser(
    pair: Any, critic: nn.Module, data: Any, samples: int, plate: str | None, seed: int
) -> tuple[str, Estimate]:
    """The latent's name, and log E_p(z) [exp T(z)]."""
    with evaluating(pair, data, plate=plate, seed=seed) as on, evaluation_mode(critic):
        on.known.refuse_improper()
        run, batch, _ = next(iter(on))
        name = code_name(on.known)
        fn = poutine.trace(uncondition(run.model)).get_trace(*batch).nodes[name]["fn"]
        weights, rows = Moments(), fn.batch_shape.numel()
        for start in range(0, samples, _AT_ONCE):
            count = min(_AT_ONCE, samples - start)
            z: Tensor = fn.sample((-(-count // rows),)).reshape(-1, fn.event_shape.numel())[:count]
            weights.add(critic(z)[:, None])
        return name, estimate(weights.log_mean(), float(weights.variance().sqrt()), samples, ess=weights.ess())


def _log_normaliser_by_aggregate(
    pair: Any, critic: nn.Module, data: Any, samples: int, plate: str | None, seed: int
) -> tuple[str, Estimate]:
    """The latent's name, and log E_r(z) [p(z) exp T(z) / r(z)], r being half p(z) and half q(z)."""
    with evaluating(pair, data, plate=plate, seed=seed) as on, evaluation_mode(critic):
        name, weights = only_latent(on), Moments()
        posteriors, prior = distributions(on, name)
        total, at_once = len(on.rows), max(2, BUDGET // len(on.rows))
        for start in range(0, samples, at_once):
            count = min(at_once, samples - start)
            chosen = torch.randint(total, (count // 2,), device=on.device).sort().values
            of_prior = prior.sample((-(-count // prior.batch_shape.numel()),)).flatten(0, 1)[: count - count // 2]
            z = torch.cat([of_prior, draws(posteriors, chosen)]) if len(chosen) else of_prior
            log_q = torch.logsumexp(log_posteriors(name, posteriors, z), 1) - math.log(total)
            log_p = log_prior(prior, z)
            log_r = torch.logaddexp(log_p, log_q) - math.log(2)
            weights.add((log_p + critic(z.flatten(1)).double() - log_r)[:, None])
        return name, estimate(weights.log_mean(), float(weights.variance().sqrt()), samples, ess=weights.ess())


_AT_ONCE = 10_000  # draws of p(z)


def generate_from_aggregate(
    pair: Any,
    num_samples: int,
    *,
    data: Any,
    site: str | None = None,
    sample: bool = False,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """What a pair with the aggregate posterior for its prior generates: z ~ q(z | x_i) at random i, x from p(x | z).

    Args:
        pair, site, plate, seed, batch_size: see `pyrovae.evaluation.reconstruct`.
        num_samples: how many, n.
        data: rows in memory that q(z) is the aggregate over; of `Data` the training split.
        sample: draw x instead of its mean given z.

    Returns:
        (n, *event).

    Raises:
        TypeError: for a torch Dataset.

    >>> from pyrovae import VAE
    >>> generate_from_aggregate(VAE(4, 2, hidden=(8,)), 10, data=torch.ones(3, 4)).shape
    torch.Size([10, 4])
    """
    check_counts(num_samples=num_samples)
    rows = match(data.train if isinstance(data, Data) else data, as_pair(pair).model)
    if not isinstance(rows, Split):
        raise TypeError(f"data is a {type(rows).__name__}, rows in memory are wanted; pass a tensor of some of them")
    generator = seeded_generator("cpu", seed, ORDER)
    chosen = rows.fixed(seed).subset(torch.randint(len(rows), (num_samples,), generator=generator))
    return reconstruct(pair, chosen, site=site, sample=sample, plate=plate, seed=seed, batch_size=batch_size)
