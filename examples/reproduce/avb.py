"""Adversarial variational Bayes, with adaptive contrast and without, against a VAE (Mescheder et al. 2017), by AIS.

Dynamically binarised MNIST, 8 latents, 300-300 tanh, the same decoder for all. A guide without a density has no
importance weights: all are evaluated by annealing on the first 50 rows of the test set, 5 chains each; the VAE by
importance sampling on the same rows too, which shows what annealing is off by. The paper has 32 latents, convolutions
and a thousand times our steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

import pyrovae as pv
from examples.reproduce.runner import Cell, Result, Schedule, negative
from pyrovae.conditionals import DiagonalNormal, Implicit
from pyrovae.data import Data
from pyrovae.nets import MLP

LATENT_DIM = 8


def vae(data: Data, **options: Any) -> pv.VAE:
    pair = pv.VAE(data.event_shape, latent_dim=LATENT_DIM, hidden=(300, 300), **options)
    pair.likelihood.initialise_(data.train["x"].mean(0))
    return pair


def ratio(data: Data) -> pv.DensityRatio:
    return pv.DensityRatio(data.event_shape, LATENT_DIM, hidden=(300, 300))


def adversarial(data: Data, schedule: Schedule) -> pv.AdversarialVB:
    return pv.AdversarialVB(ratio(data), critic_steps=2)


def contrasted(data: Data, schedule: Schedule) -> pv.AdversarialVB:
    reference = nn.Sequential(MLP(data.event_shape, (300, 300)), DiagonalNormal(300, LATENT_DIM))
    return pv.AdversarialVB(pv.AdaptiveContrast(ratio(data), reference), critic_steps=2)


def annealed(pair: pv.VAE, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """The NLL of a few rows by annealing, each of them too; `num_samples` are the temperatures."""
    few = data.test.subset(range(50))
    estimate = pv.ais(pair, few, num_chains=5, num_temperatures=num_samples, seed=run.seed)
    return {**negative(estimate, "ais_nll"), "test_rows": len(few), "ais_nll_of_rows": (-estimate.per_datum).tolist()}


def both(pair: pv.VAE, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """The NLL of these rows by importance sampling too, and that of the test set."""
    few = data.test.subset(range(50))
    weighted = -pv.log_likelihood(pair, few, num_samples=5000, seed=run.seed).value
    whole = -pv.log_likelihood(pair, data.test, num_samples=500, seed=run.seed).value
    return {**annealed(pair, run, data, num_samples), "nll_5000": weighted, "nll_500_of_test_set": whole}


implicit = partial(vae, posterior=Implicit)
RESULT = Result(
    source="Mescheder et al. 2017, dynamic MNIST, AIS on the first 50 rows of the test set (samples: temperatures)",
    load=lambda root: pv.data.load("mnist", root=root),
    cells={
        "VAE": Cell(vae, paper=81.9, evaluate=both),
        "AVB": Cell(implicit, adversarial, evaluate=annealed),
        "AVB, AC": Cell(implicit, contrasted, paper=80.2, evaluate=annealed),
    },
    paper=Schedule(epochs=1000, batch_size=100, num_samples=1000),
    reduced=Schedule(epochs=20, batch_size=100, num_samples=300, decay=0.1),
    figure="ais_nll",
)
