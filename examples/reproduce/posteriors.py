"""Posteriors by normalizing flows on statically binarised MNIST (Rezende & Mohamed 2015, table 2), and IAF beside them.

One hidden layer of 400 tanh units, 40 latents; 200 importance samples, as in the re-implementation whose figures are
the nearest seen (K = 0: 91.3 to 92.7, 10: 88.4 to 89.5, 20: 87.8 to 88.2, of 1000 epochs). The paper: maxout, 500,000
updates; of its figures only the two ends have been seen in a source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyrovae as pv
from examples.reproduce.datasets import static_mnist
from examples.reproduce.runner import Cell, Result, Schedule
from pyrovae.conditionals import IAF, DiagonalNormal, PlanarFlow
from pyrovae.data import Data


def vae(posterior: Callable[..., Any]) -> Callable[[Data], pv.VAE]:
    def make(data: Data) -> pv.VAE:
        pair = pv.VAE(data.event_shape, latent_dim=40, hidden=(400,), posterior=posterior)
        pair.likelihood.initialise_(data.train["x"].mean(0))
        return pair

    return make


RESULT = Result(
    source="Rezende & Mohamed 2015, table 2, static MNIST, K planar flows; test NLL, nats",
    load=static_mnist,
    cells={
        "planar 0": Cell(vae(DiagonalNormal), paper=89.9),
        "planar 5": Cell(vae(partial(PlanarFlow, num_steps=5))),
        "planar 10": Cell(vae(partial(PlanarFlow, num_steps=10))),
        "planar 20": Cell(vae(partial(PlanarFlow, num_steps=20))),
        "planar 40": Cell(vae(partial(PlanarFlow, num_steps=40))),
        "planar 80": Cell(vae(partial(PlanarFlow, num_steps=80)), paper=85.1),
        "IAF 2": Cell(vae(partial(IAF, num_steps=2, hidden=(200,)))),
    },
    paper=Schedule(epochs=1000, batch_size=100, num_samples=200, decay=0.1),
    reduced=Schedule(epochs=30, batch_size=100, num_samples=200, decay=0.1),
)
