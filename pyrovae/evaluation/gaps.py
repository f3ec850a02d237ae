r"""Where an ELBO loses to log p(x): to the family of its guide, or to the network that gives its parameters.

    log p(x) - L(q_x) = [log p(x) - L(q*_x)] + [L(q*_x) - L(q_x)]
                         approximation gap      amortisation gap

q_x is what the guide gives, q*_x the best of its family for the datum x alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from pyrovae.evaluation.chunks import check_support
from pyrovae.evaluation.estimates import Estimate, Moments, estimate, is_density, with_error
from pyrovae.evaluation.running import Evaluation, check_counts, evaluating
from pyrovae.models.base import Functions, PairLike, Structure, random_sites, structure
from pyrovae.objectives import ledger

__all__ = ["Gaps", "gaps"]


@dataclass
class Gaps:
    """The inference gap in its two parts, nats per datum.

    Attributes:
        log_likelihood: the tightest of the lower bounds at hand on log p(x), in the mean over data.
        bound: which one that is: "importance", with the guide; "refined", with the refined one; or "ais".
        refined: the ELBO with the best parameters of the guide's family for each datum.
        amortised: the ELBO with what the guide gives.
        approximation: log_likelihood - refined. A lower bound on the gap, as far as log_likelihood is below log p(x).
        approximation_error: its Monte Carlo error.
        amortisation: refined - amortised; not below 0 by more than its error and what the ascent left undone.
        amortisation_error: its Monte Carlo error.
    """

    log_likelihood: Estimate
    bound: str
    refined: Estimate
    amortised: Estimate
    approximation: float
    approximation_error: float
    amortisation: float
    amortisation_error: float

    def __str__(self) -> str:
        lines = {
            f"log p(x) ({self.bound})": with_error(self.log_likelihood.value, self.log_likelihood.standard_error),
            "  approximation gap": with_error(self.approximation, self.approximation_error),
            "refined ELBO": with_error(self.refined.value, self.refined.standard_error),
            "  amortisation gap": with_error(self.amortisation, self.amortisation_error),
            "amortised ELBO": with_error(self.amortised.value, self.amortised.standard_error),
        }
        return "\n".join(f"{name:<24}{value}" for name, value in lines.items())


def gaps(
    pair: Any,
    data: Any,
    *,
    steps: int = 300,
    learning_rate: float = 0.05,
    num_particles: int = 8,
    num_samples: int = 1000,
    annealed: Estimate | None = None,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Gaps:
    """The gap between log p(x) and the ELBO, as that of the guide's family and that of its amortisation.

    Mean and scale of each datum's Normal ascend its own ELBO from where the guide has them: Adam, a step size that
    falls to zero as a cosine, and gradients without the score term, whose variance vanishes at an exact posterior.
    log p(x) is the importance-weighted bound with the guide or the refined one, or `annealed`: whichever is largest.

    Args:
        pair, data, plate, seed, batch_size, progress: see `pyrovae.log_likelihood`. The guide has one latent for each
            datum, Normal in each dimension or MultivariateNormal.
        steps: of the ascent.
        learning_rate: at its start; of means in units of the guide's scale, and of log-scales.
        num_particles: draws of each gradient.
        num_samples: draws of each bound at the end.
        annealed: log p(x) of the same data by `pyrovae.ais`, as another bound.

    Returns:
        the `Gaps`.

    Raises:
        TypeError: for `annealed` that is no Estimate.
        ValueError: for other guides; and see `log_likelihood`.

    Source: Cremer, Li & Duvenaud 2018, https://arxiv.org/abs/1801.03558, section 3; the gradient: Roeder, Wu & Duvenaud
    2017, https://arxiv.org/abs/1703.09194.
    """
    check_counts(steps=steps, num_particles=num_particles, num_samples=num_samples)
    if annealed is not None and not isinstance(annealed, Estimate):
        raise TypeError(f"annealed is {annealed!r}, an Estimate is wanted; pass annealed=ais(pair, data)")
    columns: list[list[Tensor]] = [[] for _ in range(10)]
    density = True
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size, particles=num_particles) as on:
        on.known.refuse_improper()
        with tqdm(total=len(on.rows) * steps, desc="gaps", disable=not progress) as bar:
            for run, batch, covered in on:
                check_support(on, batch)
                density = is_density(ledger(run, *batch, known=on.known).terms)
                local = _Local(on, run, batch)
                for _ in local.ascent(steps, learning_rate, num_particles):
                    bar.update(covered.stop - covered.start)
                found = [
                    bound for one in (run, local.pair()) for bound in _bounds(one, batch, num_samples, local.known)
                ]
                for column, each in zip(columns, found, strict=True):
                    column.append(each)
        joined = [on.join(column) for column in columns]
    total, bounds = len(joined[0]), []
    for start in (0, 5):
        elbo, variance, weighted, spread, ess = joined[start : start + 5]
        low = estimate(elbo, float(variance.sum().sqrt()) / total, num_samples, density)
        bounds += [low, estimate(weighted, float(spread.sum().sqrt()) / total, num_samples, density, ess)]
    amortised, importance, refined, tighter = bounds
    candidates = {"importance": importance, "refined": tighter}
    if annealed is not None:
        if len(annealed.per_datum) != total:
            raise ValueError(
                f"annealed is of {len(annealed.per_datum)} rows, data have {total}; pass both the same data"
            )
        candidates["ais"] = annealed
    best = max(candidates, key=lambda name: candidates[name].value)
    top = candidates[best]
    return Gaps(
        top, best, refined, amortised,
        top.value - refined.value, math.hypot(top.standard_error, refined.standard_error),
        refined.value - amortised.value, math.hypot(refined.standard_error, amortised.standard_error),
    )  # fmt: skip


def _bounds(pair: PairLike, batch: tuple[Tensor, ...], num_samples: int, known: Structure) -> tuple[Tensor, ...]:
    """ELBO and importance-weighted bound, each with its variance, and the effective sample size: all (B,)."""
    log_w = []
    for start in range(0, num_samples, 50):
        size = min(50, num_samples - start)
        log_w.append(ledger(pair, *batch, num_particles=size, known=known).log_weights().double())
    drawn = torch.cat(log_w)
    weights = Moments()
    weights.add(drawn)
    return drawn.mean(0), drawn.var(0) / len(drawn), weights.log_mean(), weights.variance(), weights.ess()


class _Local:
    """Normal parameters of each datum: loc = loc_0 + scale_0 a, and log-scales or a triangle from the guide's.

    Args:
        on: the pair on data.
        run: the pair.
        batch: the data.
    """

    def __init__(self, on: Evaluation, run: PairLike, batch: tuple[Tensor, ...]):
        self.run, self.batch, self.plate = run, batch, on.known.plate
        trace = poutine.trace(run.guide).get_trace(*batch)
        sites = [site for site in random_sites(trace) if not site["is_observed"]]
        names = [site["name"] for site in sites]
        if on.known.subsampled:
            raise ValueError(f"plate {self.plate!r} subsamples, so rows have no parameters of their own; pass all data")
        if len(sites) != 1 or on.known.global_latent or len(sites[0]["fn"].batch_shape) != 1:
            raise ValueError(f"the guide samples {names}; only one latent of each datum can be refined")
        self.name, q = names[0], sites[0]["fn"]
        base = q
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        self.full = isinstance(base, torch.distributions.MultivariateNormal)
        if not self.full and not isinstance(base, torch.distributions.Normal):
            raise ValueError(
                f"guide site {names[0]!r} is {type(base).__name__}; only Normal and MultivariateNormal can be refined"
            )
        self.event_dim = q.event_dim
        self.loc = base.mean.detach().expand(q.shape()).clone()
        if self.full:
            self.scale = base.scale_tril.detach().expand(*q.shape(), q.event_shape[-1]).clone()
        else:
            self.scale = base.scale.detach().expand(q.shape()).clone()
        self.shift = torch.zeros_like(self.loc)
        self.change = torch.zeros_like(self.scale)
        self.known = structure(self.pair(), *batch, plate=self.plate)

    def _distribution(self) -> Any:
        shift, change = self.shift, self.change
        if not self.full:
            return dist.Normal(self.loc + self.scale * shift, self.scale * change.exp()).to_event(self.event_dim)
        grown = torch.tril(change, -1) + torch.diag_embed(change.diagonal(dim1=-2, dim2=-1).exp())
        loc = self.loc + (self.scale @ shift.unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, scale_tril=self.scale @ grown)

    def pair(self) -> PairLike:
        """The model, with these parameters for a guide."""

        def guide(*batch: Any) -> None:
            with pyro.plate(self.plate, len(self.loc), dim=-1):
                pyro.sample(self.name, self._distribution())

        return Functions(self.run.model, guide)

    def ascent(self, steps: int, learning_rate: float, num_particles: int) -> Iterator[None]:
        """One step of all data at a time: the gradient of each datum's ELBO is its own."""
        pair, parameters = self.pair(), [self.shift.requires_grad_(), self.change.requires_grad_()]
        optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            with torch.enable_grad():
                drawn = ledger(pair, *self.batch, num_particles=num_particles, known=self.known)
                z = drawn.values[self.name].detach()
                # The density of a z that stays where it is takes the score out of the gradient.
                value = drawn.log_weights().mean(0).sum() + self._distribution().log_prob(z).sum() / num_particles
                gradients = torch.autograd.grad(value, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = -gradient
            optimizer.step()
            yield
        self.shift, self.change = self.shift.detach(), self.change.detach()
