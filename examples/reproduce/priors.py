"""Priors on dynamically binarised MNIST (Takahashi et al. 2019, table 1; Tomczak & Welling 2018), one after the other.

Two hidden layers of 300 tanh units, 40 latents, the same for all; KL warm-up over a tenth of the epochs. The implicit
prior's likelihood is estimated: its normaliser is a Monte Carlo mean over draws of prior and aggregated posterior, and
`ais` checks the rest on the first 50 rows of the test set. Its critic is smaller than the authors' (200-200, 3 steps,
against 500-500-500 and 10). No source of the paper's own figures has been seen, so that none is quoted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyrovae as pv
from examples.reproduce.runner import Cell, Result, Schedule, negative
from pyrovae.data import Data
from pyrovae.priors import RealNVP, StandardNormal, VampPrior

LATENT_DIM = 40


def vae(prior: Callable[..., Any]) -> Callable[[Data], pv.VAE]:
    def make(data: Data) -> pv.VAE:
        pair = pv.VAE(data.event_shape, latent_dim=LATENT_DIM, hidden=(300, 300), prior=prior)
        pair.likelihood.initialise_(data.train["x"].mean(0))
        return pair

    return make


def warm_up(schedule: Schedule) -> pv.schedules.Linear:
    return pv.schedules.Linear(0.0, 1.0, epochs=schedule.epochs / 10)


def bound(data: Data, schedule: Schedule) -> pv.ELBO:
    return pv.ELBO(beta=warm_up(schedule))


def implicit(data: Data, schedule: Schedule) -> pv.ImplicitPrior:
    return pv.ImplicitPrior(pv.DensityRatio(LATENT_DIM), critic_steps=3, beta=warm_up(schedule))


def implicit_likelihood(pair: pv.VAE, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """The NLL under p(z) exp T(z) / Z, estimated, and by annealing on a few rows."""
    critic = run.objective.critic
    by = {"num_samples": num_samples, "prior_samples": 20_000, "aggregate": data.train, "seed": run.seed}
    estimate = pv.implicit_log_likelihood(pair, critic, data.test, **by)
    few = data.test.subset(range(50))
    annealed = pv.ais(pv.TiltedPair(pair, critic), few, num_chains=8, num_temperatures=200, seed=run.seed)
    sampled = pv.log_likelihood(pv.TiltedPair(pair, critic), few, num_samples=num_samples, seed=run.seed)
    return {
        **negative(estimate),
        "log_normaliser": estimate.log_normaliser.value,
        "log_normaliser_error": estimate.log_normaliser.standard_error,
        "nll_of_50": -sampled.value + estimate.log_normaliser.value,
        "ais_nll_of_50": -annealed.value + estimate.log_normaliser.value,
        "estimated": True,
    }


RESULT = Result(
    source="Takahashi et al. 2019, table 1, MNIST: standard Normal, VampPrior, implicit optimal prior; test NLL, nats",
    load=lambda root: pv.data.load("mnist", root=root),
    cells={
        "standard": Cell(vae(StandardNormal), bound),
        "VampPrior": Cell(vae(partial(VampPrior, num_components=500)), bound),
        "implicit": Cell(vae(StandardNormal), implicit, evaluate=implicit_likelihood),
        "RealNVP": Cell(vae(RealNVP), bound),
    },
    paper=Schedule(epochs=1000, batch_size=100, num_samples=5000),
    reduced=Schedule(epochs=30, batch_size=100, num_samples=500, decay=0.1),
)
