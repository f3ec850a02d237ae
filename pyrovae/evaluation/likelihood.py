r"""How well a pair explains data: its ELBO and the parts of it, an importance-weighted log-likelihood.

All are sums over the weights and the site ledger of `pyrovae.objectives`, in nats per datum. Two errors are kept apart:
the Monte Carlo error of a mean over these data, and the error that comes from having these data and not others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pyrovae.evaluation.chunks import check_support, chunks
from pyrovae.evaluation.compiled import LogWeights
from pyrovae.evaluation.estimates import Estimate, Moments, estimate, is_density
from pyrovae.evaluation.pareto import Tail
from pyrovae.evaluation.running import check_counts, evaluating
from pyrovae.objectives import Ledger, Term, ledger

__all__ = ["ElboParts", "elbo", "log_likelihood"]


def log_likelihood(
    pair: Any,
    data: Any,
    *,
    num_samples: int = 1000,
    proposal: Literal["guide", "prior"] = "guide",
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    chunk: int | None = None,
    compile: bool | str = "auto",
    progress: bool = False,
) -> Estimate:
    r"""Importance-weighted log-likelihood of each datum, and its mean.

        log 1/K sum_k w_k,    w_k = p(x, z_k) / q(z_k | x),    z_k ~ q(z | x)

    With proposal "prior" z_k ~ p(z) and w_k = p(x | z_k): naive Monte Carlo, which shows what the guide is good for.

    It is below log p(x) in expectation, by about half the variance of the logarithm, Var(w) / (2 K E[w]^2), which is
    also the square of the standard error of that datum (delta method). Enumerated sites are summed in each weight.

    The K samples are drawn in chunks, of which only running sums are kept. The same arguments give the same value; with
    another `batch_size` or `chunk` the draws differ, and the value by its standard error.

    Args:
        pair: see `pyrovae.as_pair`.
        data: what `pyrovae.data.match` takes; of `Data` the test split, else the validation split, else the training
            split. The transform of a Split is applied once, drawn from `seed`.
        num_samples: K.
        proposal: where z is drawn from, "guide" or "prior".
        plate: name of the data plate, where it is not plain.
        seed: of all draws.
        batch_size: rows at once. Default: at most 128.
        chunk: samples at once. Default: as many as keep batch x chunk x (numbers in the sites of one datum, for each
            enumerated value) below 2^22; the activations of networks come on top.
        compile: whether weights are computed by a graph captured from the pair and compiled, as `fit` does its steps,
            with the same random numbers. "auto": on a CPU, where that saves more than the 10 to 30 s it takes: two
            million samples of an MNIST VAE, say. What can't be goes on as ever, with a warning that says why.
        progress: show a bar.

    Returns:
        the `Estimate`, with effective sample size and Pareto k-hat of each datum.

    Raises:
        ValueError: for another `proposal` or `compile`, for latent sites outside the data plate, whose data have no
            weights of their own, for those with a flat prior, and for data that the likelihood cannot give.

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
        values, variances, ess, k_hat = [], [], [], []
        log_weights = LogWeights(on, num_samples, compile)
        for particles in chunks(on, num_samples, proposal=proposal, chunk=chunk, progress=progress):
            weights, tail = Moments(), Tail(num_samples)
            for each in particles:
                weights.add(log_w := log_weights(each))
                tail.add(log_w)
            values.append(weights.log_mean())
            variances.append(weights.variance())
            ess.append(weights.ess())
            k_hat.append(tail.k_hat())
        error = float(on.join(variances).sum().sqrt()) / len(on.rows)
        return estimate(on.join(values), error, num_samples, log_weights.density, on.join(ess), on.join(k_hat))


@dataclass
class ElboParts:
    """The evidence lower bound and what it is made of: elbo = sum of reconstruction - sum of kl, nats per datum.

    Where a latent has a flat prior, as the code of an auto-encoder has, there is no p(x) and no bound on it: then that
    latent has no KL, and `elbo` is what is left, the reconstruction.

    Attributes:
        elbo: the bound; a reconstruction where `is_bound` is False.
        reconstruction: E_q log p of each observed site.
        kl: KL(q || p) of each latent site, in closed form where that is valid, else E_q[log q - log p]. Of discrete
            sites summed in the model, E_q KL(p(c | x, z) || p(c)); several share one entry, for their posterior is
            joint. Of sites outside the data plate, their KL over N.
        is_bound: whether `elbo` is one, on log p(x).
    """

    elbo: Estimate
    reconstruction: dict[str, float]
    kl: dict[str, float]
    is_bound: bool = True

    def __str__(self) -> str:
        parts = {f"reconstruction {site}": value for site, value in self.reconstruction.items()}
        parts |= {f"KL {site}": value for site, value in self.kl.items()}
        width = max(len(name) for name in parts)
        value, _, rest = str(self.elbo).partition(" ")
        digits = len(value.partition(".")[2])
        whole = "ELBO" if self.is_bound else "reconstruction"
        numbers = {whole: value} | {name: f"{part:.{digits}f}" for name, part in parts.items()}
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
        values, variances, parts, density, total = [], [], [], True, len(on.rows)
        counted = partial(_is_none_of, on.known.improper)
        one_part = False  # all particles of a datum have the same part of a nested plate, whose error none shows
        together = bool(on.known.global_latent or on.known.global_auxiliary)
        for run, batch, _ in on:
            check_support(on, batch)
            drawn = ledger(run, *batch, num_particles=num_particles, known=on.known)
            size = drawn.size if on.known.subsampled else total
            value = drawn.elbo(counted).double()  # (K, B)
            shared = drawn.global_elbo(counted)
            value = value + shared[:, None] / size if isinstance(shared, Tensor) else value
            independent = value.sum(1, keepdim=True) if together else value  # rows share global draws
            variances.append(independent.var(0) / num_particles if num_particles > 1 else math.nan * independent[0])
            values.append(value.mean(0))
            parts.append(_parts(drawn, size))
            one_part |= any(_subsamples(term, on.known.plate) for term in drawn.terms)
            density = is_density(drawn.terms)
        variance = torch.cat(variances) if together else on.join(variances)
        error = math.nan if one_part else float(variance.sum().sqrt()) / total
        bound = estimate(on.join(values), error, num_particles, density)
        means = [
            {site: float(on.join([part[kind][site] for part in parts]).mean()) for site in parts[0][kind]}
            for kind in (0, 1)
        ]
        kl = {site: value for site, value in means[1].items() if site not in on.known.improper}
        return ElboParts(bound, means[0], kl, not on.known.improper)


def _parts(drawn: Ledger, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reconstruction and KL of each site, (B,); sites outside the data plate have a share of 1/size in each datum."""
    log_p, log_q, entropy = drawn.entries()
    closed = drawn.closed_form_kl()

    def shared(site: str) -> Tensor:
        share = torch.as_tensor(drawn.global_elbo(partial(_is_named, site))).mean() / size
        return share.expand(drawn.rows)

    def spent(site: str) -> Tensor:
        if site in closed:
            return closed[site].mean(0)
        if site in log_q:
            return (log_q[site] - log_p.get(site, 0.0)).mean(0)
        return -shared(site)

    observed = dict.fromkeys(term.name for term in drawn.terms if term.kind == "observed")
    # Some of Pyro's guides have the observed sites too.
    reconstruction = {
        site: (log_p[site] - log_q.get(site, 0.0)).mean(0) if site in log_p else shared(site) for site in observed
    }
    groups = drawn.together
    summed = [site for site in groups if site in log_p and site not in log_q]
    kl = {
        name: torch.stack([spent(site) for site in sites]).sum(0)
        for name, sites in groups.items()
        if name not in summed
    }
    if summed:
        kl[", ".join(summed)] = -(sum(log_p[name] for name in summed) + entropy).mean(0)
    return {k: v.double() for k, v in reconstruction.items()}, {k: v.double() for k, v in kl.items()}


def _subsamples(term: Term, plate: str) -> bool:
    """Whether a site is in a nested plate that takes a part of its rows."""
    return any(f.name != plate and f.full_size not in (None, f.size) for f in term.site["cond_indep_stack"])


def _is_named(name: str, term: Term) -> float:
    return float(term.name == name)


def _is_none_of(names: Sequence[str], term: Term) -> float:
    return float(term.name not in names)
