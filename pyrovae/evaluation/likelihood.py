r"""How well a pair explains data: its ELBO and the parts of it, an importance-weighted log-likelihood, active units.

All are sums over the weights and the site ledger of `pyrovae.objectives`, in nats per datum. Two errors are kept apart:
the Monte Carlo error of a mean over these data, and the error that comes from having these data and not others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent, kl_divergence
from tqdm import tqdm

from pyrovae.evaluation.running import BUDGET, Evaluation, check_counts, evaluating
from pyrovae.evaluation.sites import guide_traces, latent_site, mean_of, rows_first
from pyrovae.models.base import random_sites
from pyrovae.objectives import Ledger, Term, ledger
from pyrovae.objectives.draws import one

__all__ = ["ActiveUnits", "ElboParts", "Estimate", "active_units", "elbo", "log_likelihood"]

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
        is_density: False where an observed site's distribution says that it is none, such as `CrossEntropy`: then the
            value is a score, and never stands beside log-likelihoods.
        ess: effective sample size (sum w)^2 / sum w^2 of each datum's K importance weights (N,), from 1 to K; None if
            there are no weights.
    """

    value: float
    standard_error: float
    data_standard_error: float
    per_datum: Tensor = field(repr=False)
    num_samples: int
    is_density: bool = True
    ess: Tensor | None = field(default=None, repr=False)

    @property
    def is_reliable(self) -> bool:
        """Whether half of the data or more have a variance 1/ess - 1/K of at most 0.1 nats^2; True without weights.

        With many samples that is an effective sample size of 10. Where it is larger, the largest weights have hardly
        been drawn: the estimate is too low, and so is its standard error.
        """
        return self.ess is None or bool((1 / self.ess - 1 / self.num_samples).median() <= LARGE)

    def __str__(self) -> str:
        text = f"{_with_error(self.value, self.standard_error)} nats"
        text += "" if self.is_density else " (score, not a log-likelihood)"
        return text if self.is_reliable else f"{text} (too low: few samples have most of the weight; raise num_samples)"


def log_likelihood(
    pair: Any,
    data: Any,
    *,
    num_samples: int = 1000,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    chunk: int | None = None,
    progress: bool = False,
) -> Estimate:
    r"""Importance-weighted log-likelihood of each datum, and its mean.

        log 1/K sum_k w_k,    w_k = p(x, z_k) / q(z_k | x),    z_k ~ q(z | x)

    It is below log p(x) in expectation, by about half the variance of the logarithm, Var(w) / (2 K E[w]^2), which is
    also the square of the standard error of that datum (delta method). Enumerated sites are summed in each weight.

    The K samples are drawn in chunks, of which only running sums are kept. The same arguments give the same value; with
    another `batch_size` or `chunk` the draws differ, and the value by its standard error.

    Args:
        pair: see `pyrovae.as_pair`.
        data: what `pyrovae.data.match` takes; of `Data` the test split, else the validation split, else the training
            split. The transform of a Split is applied once, drawn from `seed`.
        num_samples: K.
        plate: name of the data plate, where it is not plain.
        seed: of all draws.
        batch_size: rows at once. Default: at most 128.
        chunk: samples at once. Default: as many as keep batch x chunk x (numbers in the sites of one datum, for each
            enumerated value) below 2^22; the activations of networks come on top.
        progress: show a bar.

    Returns:
        the `Estimate`.

    Raises:
        ValueError: for latent sites outside the data plate, whose data have no weights of their own, and for data that
            the likelihood cannot give.

    Source: Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, eq. 8.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> x = torch.tensor([0.0, 2.0])
    >>> print(log_likelihood((model, guide), x, num_samples=50))  # the guide is the posterior
    -1.77 +- 0.00 nats
    >>> dist.Normal(0.0, 2**0.5).log_prob(x).mean()
    tensor(-1.7655)
    """
    check_counts(num_samples=num_samples, chunk=chunk)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        values: list[Tensor] = []
        variances, ess, is_density = [], [], True
        with tqdm(total=len(on.rows), desc="log-likelihood", unit="datum", disable=not progress) as bar:
            for run, batch, covered in on:
                _check_support(on, batch)
                if not values:
                    first = ledger(run, *batch, known=on.known)
                    is_density = _is_density(first.terms)
                    chunk = chunk or max(1, BUDGET // (first.rows * _numbers(first)))
                weights = Moments()
                while weights.count < num_samples:
                    size = min(chunk or 1, num_samples - weights.count)
                    weights.add(ledger(run, *batch, num_particles=size, known=on.known).log_weights())
                values.append(weights.log_mean())
                variances.append(weights.variance())
                ess.append(weights.ess())
                bar.update(covered.stop - bar.n)
        error = float(on.join(variances).sum().sqrt()) / len(on.rows)
        return _estimate(on.join(values), error, num_samples, is_density, on.join(ess).cpu())


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


@dataclass
class ElboParts:
    """The evidence lower bound and what it is made of: elbo = sum of reconstruction - sum of kl, nats per datum.

    Attributes:
        elbo: the bound.
        reconstruction: E_q log p of each observed site.
        kl: KL(q || p) of each latent site, in closed form where that is valid, else E_q[log q - log p]. Of discrete
            sites summed in the model, E_q KL(p(c | x, z) || p(c)); several share one entry, for their posterior is
            joint. Of sites outside the data plate, their KL over N.
    """

    elbo: Estimate
    reconstruction: dict[str, float]
    kl: dict[str, float]

    def __str__(self) -> str:
        parts = {f"reconstruction {site}": value for site, value in self.reconstruction.items()}
        parts |= {f"KL {site}": value for site, value in self.kl.items()}
        width = max(len(name) for name in parts)
        value, _, rest = str(self.elbo).partition(" ")
        digits = len(value.partition(".")[2])
        numbers = {"ELBO": value} | {name: f"{part:.{digits}f}" for name, part in parts.items()}
        across = max(len(number) for number in numbers.values())
        lines = [f"{name:<{width}}  {number:>{across}}" for name, number in numbers.items()]
        return "\n".join([f"{lines[0]} {rest}", *lines[1:]])


def elbo(
    pair: Any,
    data: Any,
    *,
    num_particles: int = 16,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> ElboParts:
    """The evidence lower bound, split into reconstruction and KL per site.

    Densities count as they are: without `poutine.scale`, whatever the objective weighed.

    Args:
        pair, data, plate, seed: see `log_likelihood`.
        num_particles: K draws of z for each datum.
        batch_size: rows at once. Default: at most 128, and batch x K x (numbers in x) below 2^22.

    Returns:
        the `ElboParts`.

    >>> from pyrovae.models.vae import VAE
    >>> parts = elbo(VAE(4, latent_dim=2, hidden=(8,)), torch.ones(3, 4))
    >>> abs(parts.elbo.value - (parts.reconstruction["x"] - parts.kl["z"])) < 1e-5
    True
    """
    check_counts(num_particles=num_particles)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size, particles=num_particles) as on:
        values, variances, parts, is_density, total = [], [], [], True, len(on.rows)
        for run, batch, _ in on:
            _check_support(on, batch)
            drawn = ledger(run, *batch, num_particles=num_particles, known=on.known)
            size = drawn.size if on.known.subsampled else total
            value = drawn.elbo(one).double()  # (K, B)
            shared = drawn.global_elbo(one)
            value = value + shared[:, None] / size if isinstance(shared, Tensor) else value
            independent = value.sum(1, keepdim=True) if on.known.global_latent else value  # rows share global draws
            variances.append(independent.var(0) / num_particles if num_particles > 1 else math.nan * independent[0])
            values.append(value.mean(0))
            parts.append(_parts(drawn, size))
            is_density = _is_density(drawn.terms)
        variance = torch.cat(variances) if on.known.global_latent else on.join(variances)
        estimate = _estimate(on.join(values), float(variance.sum().sqrt()) / total, num_particles, is_density)
        means = [
            {site: float(on.join([part[kind][site] for part in parts]).mean()) for site in parts[0][kind]}
            for kind in (0, 1)
        ]
        return ElboParts(estimate, *means)


def _parts(drawn: Ledger, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reconstruction and KL of each site, (B,); sites outside the data plate have a share of 1/size in each datum."""
    log_p, log_q, entropy = drawn.entries()
    closed = drawn.closed_form_kl()
    observed = {term.name for term in drawn.terms if term.kind == "observed"}
    reconstruction = {site: value.mean(0) for site, value in log_p.items() if site in observed}
    latent = dict.fromkeys([*(site for site in log_p if site not in observed), *log_q])
    summed = [site for site in latent if site not in log_q]
    kl = {}
    for site in latent:
        if site in closed:
            kl[site] = closed[site].mean(0)
        elif site in log_q:
            kl[site] = (log_q[site] - log_p.get(site, 0.0)).mean(0)
        elif site == summed[0]:
            kl[", ".join(summed)] = -(sum(log_p[name] for name in summed) + entropy).mean(0)
    for name in dict.fromkeys(term.name for term in drawn.terms if term.name not in {**log_p, **log_q}):
        share = torch.as_tensor(drawn.global_elbo(partial(_is_named, name))).mean() / size
        into, sign = (reconstruction, 1) if name in observed else (kl, -1)
        into[name] = (sign * share).expand(drawn.rows)
    return {k: v.double() for k, v in reconstruction.items()}, {k: v.double() for k, v in kl.items()}


def _is_named(name: str, term: Term) -> float:
    return float(term.name == name)


@dataclass
class ActiveUnits:
    """How many dimensions of a latent the data make use of.

    Attributes:
        count: how many have a variance above the threshold.
        variance: Var_x(E_q[z_u | x]) of each dimension (L,).
        kl: mean over data of KL(q(z_u | x) || p(z_u)) of each dimension (L,), nats; None where the KL has no closed
            form that is a sum over dimensions.
        site: the latent.
        threshold: of the variance.
    """

    count: int
    variance: Tensor = field(repr=False)
    kl: Tensor | None = field(repr=False)
    site: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.count} of {len(self.variance)} units of {self.site} active"


def active_units(
    pair: Any,
    data: Any,
    *,
    site: str | None = None,
    threshold: float = 0.01,
    num_samples: int = 100,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> ActiveUnits:
    r"""Which dimensions of a latent depend on the data: A_u = Var_x(E_q[z_u | x]) > threshold.

    Where E_q[z_u | x] is a mean over `num_samples` draws, as it is for a latent that depends on others, their variance
    is subtracted: without that a dead unit of variance 1 has A_u = 1 / num_samples.

    Args:
        pair, data, plate, seed, batch_size: see `log_likelihood`.
        site: a latent whose event is a vector. Default: the first continuous one, in the model's order.
        threshold: of the variance; the paper's.
        num_samples: as for `pyrovae.evaluation.encode`.

    Returns:
        the `ActiveUnits`, on the CPU.

    Raises:
        ValueError: if there is no such site, or fewer than two data.

    Source: Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, section 5.2.
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        if len(on.rows) < 2:
            raise ValueError("data has one row, a variance over data takes two; pass more rows")
        name = latent_site(on, site, vector=True)["name"]
        means, errors, kls = [], [], []
        for run, batch, _ in on:
            values, kl = [], []
            for trace in guide_traces(run, batch, name, num_samples):
                q = trace.nodes[name]
                mean = mean_of(q)
                values.append(rows_first(q["value"] if mean is None else mean, q).double())
                kl.append(_kl_per_unit(run, batch, trace, name))
            drawn = torch.stack(values)  # (1 or num_samples, B, ..., L)
            means.append(drawn.mean(0))
            errors.append(drawn.var(0) / len(drawn) if len(drawn) > 1 else torch.zeros_like(drawn[0]))
            kls.append([each for each in kl if each is not None])
        excess = on.join(means).var(0) - on.join(errors).mean(0)  # (nested plates..., L)
        variance = excess.reshape(-1, excess.size(-1)).mean(0).clamp(min=0).cpu()
        per_unit = None
        if all(kls):
            per_unit = on.join([torch.stack(each).mean(0) for each in kls]).flatten(0, -2).mean(0).cpu()
        return ActiveUnits(int((variance > threshold).sum()), variance, per_unit, name, threshold)


def _kl_per_unit(run: Any, batch: Sequence[Any], guide_trace: Any, name: str) -> Tensor | None:
    """KL(q || p) of each number of a vector, (B, ..., L), where it is known, valid and a sum over these.

    Valid: where all latents that come before the site in the model come before it in the guide.
    """
    trace = poutine.trace(poutine.replay(run.model, trace=guide_trace)).get_trace(*batch)
    before = [[s["name"] for s in random_sites(t) if not s["is_observed"]] for t in (trace, guide_trace)]
    in_model, in_guide = (names[: names.index(name)] for names in before)
    p, q = trace.nodes[name], guide_trace.nodes[name]
    factorises = isinstance(p["fn"], Independent) and isinstance(q["fn"], Independent)
    if not factorises or not set(in_model) <= set(in_guide) or p["mask"] is not q["mask"]:
        return None
    if q["fn"].base_dist.event_shape or p["fn"].base_dist.event_shape:
        return None
    try:
        kl = kl_divergence(q["fn"].base_dist, p["fn"].base_dist)
    except NotImplementedError:
        return None
    return rows_first(kl.expand(q["fn"].shape()), q).double()


def _estimate(per_datum: Tensor, error: float, num_samples: int, is_density: bool, ess: Any = None) -> Estimate:
    values = per_datum.double().cpu()
    over_data = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error, over_data, values, num_samples, is_density, ess)


def _with_error(value: float, error: float) -> str:
    """A number with as many digits as its error has, one significant."""
    if not math.isfinite(error):
        return f"{value:.2f} +- unknown"
    digits = 2 if error < 1e-6 else max(0, -math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def _numbers(drawn: Ledger) -> int:
    """How many numbers the sites of one particle of one datum take, enumerated values counted each."""
    each = (term.log_prob.numel() * max(1, term.site["fn"].event_shape.numel()) for term in drawn.terms)
    return max(1, sum(each) // (drawn.rows * drawn.draws[0].num_particles))


def _is_density(terms: Sequence[Term]) -> bool:
    """Whether every observed site's distribution is a density; a wrapper is what it wraps."""
    for term in terms:
        inner = term.site["fn"] if term.kind == "observed" else None
        while inner is not None:
            if not getattr(inner, "is_density", True):
                return False
            inner = getattr(inner, "base_dist", None) or getattr(inner, "component_distribution", None)
    return True


def _check_support(on: Evaluation, batch: Sequence[Tensor]) -> None:
    """Every observed value is one that its likelihood can give."""
    for site, (position, support) in on.known.supports.items():
        try:
            valid = support.check(batch[position])
        except (NotImplementedError, RuntimeError):  # supports that depend on parameters, or on other rows
            continue
        if not valid.all():
            name, low, high = on.rows.names[position], batch[position].min().item(), batch[position].max().item()
            raise ValueError(
                f"{name} has values that the likelihood at site {site!r} cannot give: they lie in [{low:g}, {high:g}], "
                f"its support is {support}; scale or binarise the data as for training"
            )
