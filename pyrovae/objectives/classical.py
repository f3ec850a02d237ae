r"""Exact and classical inference, for models whose latent sites can all be summed over: the E-step of EM.

With c the discrete sites of a model and q any distribution of them given x (Neal & Hinton 1998),

    F(q, theta) = E_q [log p(x, c; theta)] + H[q] = log p(x; theta) - KL(q(c) || p(c | x; theta)).

EM climbs F: the E-step takes the best q, which is p(c | x; theta) or, among products of one factor per site, what
coordinate ascent finds; the M-step climbs in theta with q held fixed. `pyrovae.fit_em` alternates them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from pyrovae.models.base import Functions, Structure, as_pair, isolated_random_state, random_sites, structure
from pyrovae.objectives.base import Objective
from pyrovae.objectives.mean_field import mean_field, probabilities
from pyrovae.objectives.weights import Ledger, ledger

__all__ = ["MarginalLikelihood", "Posterior", "exact_posterior", "log_marginal", "mean_field_posterior", "summed"]


class MarginalLikelihood(Objective):
    r"""The exact log marginal likelihood, for a pair that samples nothing.

        log p(x) = log sum_c p(x, c)

    Every latent site is enumerated (or there is none), so that value and gradient are exact, and maximising it is
    maximum likelihood. It is what `ELBO` gives too for a pair without sampled sites, and refuses any other.

    Args:
        num_particles: without effect, all particles are alike.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: where the guide samples a site.
    """

    def per_datum(self, drawn: Ledger) -> Tensor:
        """log p(x), (B,)."""
        if drawn_sites := [t.name for t in drawn.terms if t.kind == "guide" and not t.enumerated]:
            raise ValueError(
                f"the guide samples {drawn_sites}, so that log p(x) is not a sum over enumerated values; leave "
                'discrete sites to the model, marked infer={"enumerate": "parallel"}, or pass objective=IWAE(50)'
            )
        return drawn.common_scale() * drawn.log_weights()[0]


def log_marginal(pair: Any, *batch: Any, plate: str | None = None) -> Tensor:
    """log p(x) of each datum, exactly, by enumerating every latent site of the model; the guide is not run.

    Args:
        pair: see `pyrovae.as_pair`.
        batch: what the model is called with.
        plate: name of the data plate, where it is not plain.

    Returns:
        shape (B,), nats, differentiable.

    Raises:
        ValueError: where a latent site is not discrete.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         c = pyro.sample("c", dist.Bernoulli(0.5))
    ...         pyro.sample("x", dist.Normal(2 * c, 1.0), obs=x)
    >>> x = torch.tensor([0.0, 1.0])
    >>> by_hand = 0.5 * (dist.Normal(0.0, 1.0).log_prob(x).exp() + dist.Normal(2.0, 1.0).log_prob(x).exp())
    >>> torch.allclose(log_marginal((model, lambda x: None), x), by_hand.log())
    True
    """
    enumerated, known = summed(pair, *batch, plate=plate)
    return ledger(enumerated, *batch, known=known).log_weights()[0]


class Posterior:
    """q(c | x) of a model's discrete sites on one batch, held fixed: what an E-step leaves to the M-step.

    Attributes:
        responsibilities: q(c_i = k | x) of each site i, (nested plates..., B, C).
    """

    def __init__(
        self, pair: Functions, batch: tuple[Any, ...], drawn: Ledger, shares: Sequence[Tensor], entropy: Tensor
    ):
        self.pair, self.batch, self.known = pair, batch, drawn.known
        self._shares, self._entropy = shares, entropy
        self.responsibilities = probabilities(drawn.draws[0], shares)

    def per_datum(self) -> Tensor:
        """F(q, theta) at the model's present parameters, (B,) in nats, differentiable in them."""
        return self._per_datum(ledger(self.pair, *self.batch, known=self.known))

    def mean(self) -> Tensor:
        """The mean of `per_datum`; terms outside the data plate, such as log-priors, count once for all N data."""
        drawn = ledger(self.pair, *self.batch, known=self.known)
        value, shared = self._per_datum(drawn).mean(), drawn.global_elbo()
        return value + shared.mean() / drawn.size if isinstance(shared, Tensor) else value

    def _per_datum(self, drawn: Ledger) -> Tensor:
        return drawn.common_scale() * sum(drawn.draws[0].spent(self._shares), self._entropy)[0]


def exact_posterior(pair: Any, *batch: Any, plate: str | None = None, known: Structure | None = None) -> Posterior:
    """p(c | x; theta) of all latent sites together, which are enumerated: the E-step of EM.

    Then F is log p(x; theta). The probabilities are derivatives of the log-sum by its terms.

    Args:
        pair, batch, plate: as for `log_marginal`.
        known: as `summed` gives it, where it has been found already.

    Raises:
        ValueError: where a latent site is not discrete.

    Source: Dempster, Laird & Rubin 1977; derivatives: Darwiche 2003.
    """
    enumerated, known = summed(pair, *batch, plate=plate, known=known)
    with torch.no_grad():
        drawn = ledger(enumerated, *batch, known=known)
        log_marginal, shares = drawn.draws[0].shares()
        return Posterior(enumerated, batch, drawn, shares, log_marginal - sum(drawn.draws[0].spent(shares)))


def mean_field_posterior(
    pair: Any,
    *batch: Any,
    sweeps: int = 10,
    start: Mapping[str, Tensor] | None = None,
    plate: str | None = None,
    known: Structure | None = None,
) -> Posterior:
    r"""The best product of one factor per discrete site, by coordinate ascent: the E-step of variational EM.

        q(c) = prod_i q_i(c_i),    q_i(c_i) = softmax over c_i of E_q(c without c_i) [log p(x, c)]

    Each update maximises F over its factor, so that no sweep lowers F. E_q [log p(x, c)] is linear in the
    probabilities of one factor, and its derivative by them is the expectation wanted. The cost is that of the model's
    largest term, where the exact posterior may pay for all sites together.

    Args:
        pair, batch, plate, known: as for `exact_posterior`.
        sweeps: updates of each factor, in the order of the model.
        start: probabilities to start from, the `responsibilities` of an earlier result; by default uniform.

    Raises:
        ValueError: where a latent site is not discrete, or depends on others in a nested plate that subsamples.

    Source: Bishop 2006, eq. 10.9; Jordan et al. 1999.
    """
    if not isinstance(sweeps, int) or sweeps < 1:
        raise ValueError(f"sweeps is {sweeps!r}; pass a whole number of at least 1")
    enumerated, known = summed(pair, *batch, plate=plate, known=known)
    with torch.no_grad():
        drawn = ledger(enumerated, *batch, known=known)
        shares, entropy = mean_field(drawn.draws[0], sweeps, start or {})
        return Posterior(enumerated, batch, drawn, shares, entropy)


def summed(
    pair: Any, *batch: Any, plate: str | None = None, known: Structure | None = None
) -> tuple[Functions, Structure]:
    """The model with every latent site enumerated and an empty guide, and its structure.

    Raises:
        ValueError: where a latent site is not discrete.
    """
    model = as_pair(pair).model
    enumerated = Functions(config_enumerate(model, "parallel"), _nothing)
    if known is not None:
        return enumerated, known
    prior = poutine.block(model, hide_fn=lambda site: bool(site.get("is_observed")))
    structure(Functions(model, prior), *batch, plate=plate)  # says what is wrong with pair and batch
    with isolated_random_state(), torch.no_grad():
        sites = list(random_sites(poutine.trace(model).get_trace(*batch)))
    for site in sites:
        if not site["is_observed"] and not site["fn"].has_enumerate_support:
            raise ValueError(
                f"latent site {site['name']!r} ({type(site['fn']).__name__}) has no finite list of values to sum over; "
                "use objective=ELBO() or IWAE(50) with a guide, or fit_em(e_step=Ascent()) or MonteCarlo()"
            )
    return enumerated, structure(enumerated, *batch, plate=plate)


def _nothing(*_: Any) -> None:
    """The guide of a pair that samples nothing."""
