"""A convolutional VAE under a standard Normal and under a RealNVP prior, dynamically binarised MNIST (Xu et al. 2019).

40 latents, the same networks for both: two strided convolutions and a dense layer. The paper's are deeper, and its flow
has 20 to 50 couplings; the schedule here is short, so that only the order tells.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyrovae as pv
from examples.reproduce.priors import bound
from examples.reproduce.runner import Cell, Result, Schedule
from pyrovae.data import Data
from pyrovae.nets import ConvDecoder, ConvEncoder
from pyrovae.priors import RealNVP, StandardNormal


def vae(prior: Callable[..., Any]) -> Callable[[Data], pv.VAE]:
    def make(data: Data) -> pv.VAE:
        return pv.VAE(
            data.event_shape,
            latent_dim=40,
            encoder=partial(ConvEncoder, channels=(16, 32)),
            decoder=partial(ConvDecoder, channels=(32, 16)),
            prior=prior,
        )

    return make


RESULT = Result(
    source="Xu et al. 2019, dynamic MNIST, convolutional VAE with a RealNVP prior; test NLL, nats",
    load=lambda root: pv.data.load("mnist", root=root),
    cells={
        "standard": Cell(vae(StandardNormal), bound),
        "RealNVP": Cell(vae(partial(RealNVP, num_layers=8)), bound, paper=78.61),
    },
    paper=Schedule(epochs=1000, batch_size=100, num_samples=1000),
    reduced=Schedule(epochs=15, batch_size=100, num_samples=50, lr=2e-3, decay=0.1),
)
