r"""log p(x) by annealed importance sampling, and the sandwich of bounds on data that the model made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.poutine.util import site_is_factor
from torch import Tensor
from tqdm import tqdm

from pyrovae.evaluation.chunks import check_support
from pyrovae.evaluation.estimates import Estimate, Moments, estimate, is_density, with_error
from pyrovae.evaluation.joint import Joint
from pyrovae.evaluation.running import Evaluation, check_counts, evaluating
from pyrovae.models.base import Functions, random_sites
from pyrovae.models.traces import is_point
from pyrovae.objectives import ledger
from pyrovae.objectives.dreams import dreamt_batch, uncondition, why_not
from pyrovae.objectives.unscored import unscored

__all__ = ["Sandwich", "ais", "bdmc"]

ACCEPTED = 0.65  # share of accepted proposals that step sizes aim at
PILOTS = 16  # chains of the pilot run


def ais(
    pair: Any,
    data: Any,
    *,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_leapfrog: int = 10,
    start: Literal["prior", "guide"] = "prior",
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Estimate:
    r"""Log-likelihood of each datum by annealed importance sampling, independent of how good the guide is.

        f_t(z) = p0(z)^(1 - beta_t) p(x, z)^beta_t,    0 = beta_0 < ... < beta_T = 1
        w = prod_t f_t(z_{t-1}) / f_{t-1}(z_{t-1}),    z_0 ~ p0,    z_t ~ one Hamiltonian step that leaves f_t as it is

    E[w] = p(x), so that log 1/K sum_k w_k is below log p(x) in expectation, as for `log_likelihood`, by half the square
    of its standard error. Continuous latents move in unconstrained coordinates, discrete ones are summed in each
    density; with discrete latents only the sum is log p(x) itself, without error. beta follows a sigmoid.

    A pilot run of its own random numbers adapts the step size of each datum at each temperature towards an acceptance
    of 0.65; then they are fixed, without which E[w] would not be p(x). Steps vary by 20 % at random, against
    trajectories that come back to where they began.

    Args:
        pair, data, plate, seed, batch_size: see `pyrovae.log_likelihood`.
        num_chains: K for each datum, all moved at once.
        num_temperatures: T.
        num_leapfrog: leapfrog steps of one Hamiltonian step; each takes one gradient of the model.
        start: p0, the "prior" p(z), or the "guide" q(z | x).
        progress: show a bar.

    Returns:
        the `Estimate`, whose `num_samples` is K.

    Raises:
        ValueError: see `pyrovae.evaluation.joint.Joint`.

    Source: Neal 2001, https://arxiv.org/abs/physics/9803008; for decoders, with this path and schedule, Wu, Burda,
    Salakhutdinov & Grosse 2017, https://arxiv.org/abs/1611.04273, section 3.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(0.0, 1.0).expand(x.shape))
    >>> x = torch.tensor([0.0, 2.0])
    >>> estimate = ais((model, guide), x, num_temperatures=20, num_leapfrog=5)
    >>> abs(estimate.value - -1.7655) < 4 * estimate.standard_error  # log N(x; 0, 2)
    True
    """
    check_counts(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size, particles=num_chains) as on:
        values, variances, ess, density = [], [], [], True
        with tqdm(total=2 * len(on.rows) * num_temperatures, desc="AIS", disable=not progress) as bar:
            for run, batch, covered in on:
                check_support(on, batch)
                terms = ledger(unscored(run), *batch, known=on.known).terms
                if points := [t.name for t in terms if t.kind == "observed" and is_point(t.site["fn"])]:
                    raise ValueError(
                        f"observed {points} are points given z (Delta), and no path leads to where they have density; "
                        "use log_likelihood, which is exact for a flow"
                    )
                density = is_density(terms)
                joint = Joint(run, batch, on.known, start=start)
                path = _Path(joint, num_temperatures, num_leapfrog, _counter(bar, covered.stop - covered.start))
                weights = Moments()
                weights.add(path.forward(num_chains))
                values.append(weights.log_mean())
                variances.append(weights.variance() if joint.size else torch.zeros_like(values[-1]))
                # With nothing to anneal, one sum is log p(x) itself.
                ess.append(weights.ess() if joint.size else torch.full_like(values[-1], num_chains))
        error = float(on.join(variances).sum().sqrt()) / len(on.rows)
        return estimate(on.join(values), error, num_chains, density, on.join(ess))


@dataclass
class Sandwich:
    """Bounds on the mean log p(x) of data that the model made, in nats per datum.

    Attributes:
        lower: from annealing forward, as `ais` gives it.
        upper: from annealing backward, from the z that made x; the chains of a datum share it, which its Monte Carlo
            error leaves out.
        gap: upper - lower: how far `ais`, with these settings, can be from log p(x) on such data, in expectation.
        gap_error: the error of the gap over data; NaN for one.
    """

    lower: Estimate
    upper: Estimate
    gap: float
    gap_error: float

    def __str__(self) -> str:
        ends = f"{self.lower.value:.3f} <= log p(x) <= {self.upper.value:.3f}"
        return f"{ends} nats, a gap of {with_error(self.gap, self.gap_error)}"


def bdmc(
    pair: Any,
    data: Any,
    *,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_leapfrog: int = 10,
    start: Literal["prior", "guide"] = "prior",
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Sandwich:
    """Bidirectional Monte Carlo: how far annealed importance sampling is from log p(x), on data from the model.

    For z, x drawn from the model z is an exact sample of p(z | x). Chains that go the path backward from there have
    E[1/w] = 1 / p(x), so that -log 1/K sum_k 1/w_k is above log p(x) in expectation; forward ones are below.

    Args:
        pair, num_chains, num_temperatures, num_leapfrog, start, plate, seed, batch_size, progress: see `ais`.
        data: as many are made; inputs of the model that it does not observe are taken from them.

    Returns:
        the `Sandwich`.

    Raises:
        ValueError: see `ais`; also for a `pyro.factor`, and with start "guide" where the observed site's value is not
            what the guide is given.

    Source: Grosse, Ghahramani & Adams 2015, https://arxiv.org/abs/1511.02543, section 3; Wu et al. 2017, section 3.
    """
    check_counts(num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size, particles=num_chains) as on:
        bounds: list[list[Tensor]] = [[], []]
        variances: list[list[Tensor]] = [[], []]
        density = True
        with tqdm(total=3 * len(on.rows) * num_temperatures, desc="BDMC", disable=not progress) as bar:
            for run, batch, covered in on:
                model, batch, made = _simulated(on, run, batch, start)
                simulated = Functions(model, run.guide)
                density = is_density(ledger(unscored(simulated), *batch, known=on.known).terms)
                joint = Joint(simulated, batch, on.known, start=start)
                path = _Path(joint, num_temperatures, num_leapfrog, _counter(bar, covered.stop - covered.start))
                truth = joint.coordinates(poutine.condition(model, data=made), num_chains)
                for side, log_w in enumerate((path.forward(num_chains), -path.backward(truth))):
                    weights = Moments()
                    weights.add(log_w)
                    bounds[side].append((1 - 2 * side) * weights.log_mean())
                    variances[side].append(weights.variance() if joint.size else torch.zeros_like(bounds[side][-1]))
        lower, upper = (
            estimate(on.join(bounds[s]), float(on.join(variances[s]).sum().sqrt()) / len(on.rows), num_chains, density)
            for s in (0, 1)
        )
        gaps = upper.per_datum - lower.per_datum
        error = float(gaps.std()) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        return Sandwich(lower, upper, float(gaps.mean()), error)


def _simulated(on: Evaluation, run: Any, batch: tuple[Tensor, ...], start: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """A model that observes data of its own, what to call it with, and the latents that made these data."""
    trace = poutine.trace(uncondition(run.model)).get_trace(*batch)
    if factors := [site["name"] for site in random_sites(trace) if site_is_factor(site)]:
        raise ValueError(
            f"the model has the factors {factors}, which can't be drawn from, so that it makes no data to bound; "
            "pass data of your own to ais"
        )
    x = {name: _in_dtype_of_data(trace.nodes[name]) for name in on.known.observed}
    z = {s["name"]: s["value"] for s in random_sites(trace) if s["name"] in on.known.latent}
    if start == "guide":
        if why := why_not(trace, on.known):
            raise ValueError(f'{why}; pass start="prior"')
        batch = tuple(dreamt_batch(trace, batch, on.known))
    model = poutine.condition(uncondition(run.model), data=x)
    return model, batch, z


def _in_dtype_of_data(site: dict[str, Any]) -> Tensor:
    """What a site drew, as exact as what it observed: a model may draw in float32 what it is given in float64."""
    dtype = site["infer"]["obs"].dtype
    return site["value"].to(dtype if dtype.is_floating_point else None)


def _counter(bar: Any, rows: int) -> Any:
    return lambda: bar.update(rows)


class _Path:
    """The ladder of densities from the start to the posterior, with a Hamiltonian step at each."""

    def __init__(self, joint: Joint, num_temperatures: int, num_leapfrog: int, tick: Any):
        self.joint, self.num_leapfrog, self.tick = joint, num_leapfrog, tick
        ladder = torch.sigmoid(torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64))
        self.betas = ((ladder - ladder[0]) / (ladder[-1] - ladder[0])).tolist()
        self.steps: list[Tensor] = []
        if joint.size:
            self.steps = list(self._pilot())

    def _pilot(self) -> Iterator[Tensor]:
        """Step sizes (B,) at each temperature but the last, at which nothing moves."""
        points = self.joint.draw(PILOTS)
        log_step = torch.full_like(points[0, :, 0], math.log(0.3))
        for _ in range(30):  # to the scale of the start
            points, accepted, _ = self._move(points, self.betas[1], log_step.exp())
            log_step = log_step + (accepted - ACCEPTED)
        for beta in self.betas[1:-1]:
            points, accepted, _ = self._move(points, beta, log_step.exp())
            log_step = log_step + 0.3 * (accepted - ACCEPTED)
            yield log_step.exp()
            self.tick()

    def forward(self, num_chains: int) -> Tensor:
        """Log-weights (K, B) from the start to the posterior: E[w] = p(x)."""
        points = self.joint.draw(num_chains)
        start, joint = self.joint.at(points)
        if not self.joint.size:
            return joint
        log_w = (self.betas[1] - self.betas[0]) * (joint - start)
        for t, step in enumerate(self.steps, 1):
            points, _, ratio = self._move(points, self.betas[t], step)
            log_w = log_w + (self.betas[t + 1] - self.betas[t]) * ratio
            self.tick()
        return log_w

    def backward(self, points: Tensor) -> Tensor:
        """Log-weights (K, B) from the posterior, points (K, B, D) of it, to the start: E[1/w] = 1 / p(x)."""
        start, joint = self.joint.at(points)
        if not self.joint.size:
            return joint
        log_w = (self.betas[-1] - self.betas[-2]) * (joint - start)
        for t in range(len(self.steps), 0, -1):
            points, _, ratio = self._move(points, self.betas[t], self.steps[t - 1])
            log_w = log_w + (self.betas[t] - self.betas[t - 1]) * ratio
            self.tick()
        return log_w

    def _move(self, points: Tensor, beta: float, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One Hamiltonian step: new points, the mean acceptance of each datum (B,), log p(x, z) - log p0(z) there."""
        momentum = torch.randn_like(points)
        jitter = 0.8 + 0.4 * torch.rand_like(points[..., :1])
        size = step.unsqueeze(-1) * jitter  # (K, B, 1)
        value, ratio, gradient = self._gradient(points, beta)
        energy = 0.5 * momentum.square().sum(-1) - value
        moved = points
        momentum = momentum + 0.5 * size * gradient
        for leap in range(self.num_leapfrog):
            moved = moved + size * momentum
            new_value, new_ratio, gradient = self._gradient(moved, beta)
            momentum = momentum + (size if leap < self.num_leapfrog - 1 else 0.5 * size) * gradient
        log_accept = energy - (0.5 * momentum.square().sum(-1) - new_value)
        log_accept = torch.where(log_accept.isnan(), -math.inf, log_accept)
        accept = torch.log(torch.rand_like(log_accept)) < log_accept
        points = torch.where(accept.unsqueeze(-1), moved, points)
        return points, log_accept.clamp(max=0).exp().mean(0).to(step), torch.where(accept, new_ratio, ratio)

    def _gradient(self, points: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            start, joint = self.joint.at(points)
            value = (1 - beta) * start + beta * joint
            (gradient,) = torch.autograd.grad(value.sum(), points)
        return value.detach(), (joint - start).detach(), gradient
