"""Sigmoid belief nets on statically binarised MNIST by wake-sleep and its kin (Bornschein & Bengio 2015).

Layers of 200 bits, 5 samples, learning rate 1e-3, batches of 100, as in the authors' code; theirs are recognised by
autoregressive layers (NADE), these by belief nets. RWS is half wake, half sleep. The paper's figures are in no source
that we have seen, so that none are shown.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.infer

import pyrovae as pv
from examples.reproduce.datasets import static_mnist
from examples.reproduce.runner import Cell, Result, Schedule, likelihood
from pyrovae.data import Data

OBJECTIVES: dict[str, Callable[[], pyro.infer.ELBO]] = {
    "RWS": lambda: pv.ReweightedWakeSleep(5, insomnia=0.5),
    "RWS, wake": lambda: pv.ReweightedWakeSleep(5),
    "VIMCO": lambda: pv.VIMCO(5),
    "WS": lambda: pv.WakeSleep(),
}


def net(*latent_dims: int) -> Callable[[Data], pv.SigmoidBeliefNet]:
    def make(data: Data) -> pv.SigmoidBeliefNet:
        pair = pv.SigmoidBeliefNet(data.event_shape, latent_dims)
        pair.likelihood.initialise_(data.train["x"].mean(0))
        return pair

    return make


RESULT = Result(
    source="Bornschein & Bengio 2015, static MNIST, sigmoid belief nets, layers of 200 bits; test NLL, nats",
    load=static_mnist,
    cells={
        f"{name} {layers}": Cell(
            net(*[200] * layers), lambda data, schedule, objective=objective: objective(), evaluate=likelihood
        )
        for layers in (2, 1, 3)
        for name, objective in OBJECTIVES.items()
    },
    paper=Schedule(epochs=250, batch_size=100, num_samples=5000),
    reduced=Schedule(epochs=40, batch_size=100, num_samples=500, decay=0.1),
)
