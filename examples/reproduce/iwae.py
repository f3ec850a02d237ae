"""VAE, IWAE and DReG with one and two stochastic layers on dynamically binarised MNIST (Burda et al. 2016, table 1).

Networks 200-200 tanh and 50 latents, or 100 latents and 50 more above them by networks 100-100; decoder bias from the
training mean, batches of 20, learning rate from 1e-3 to 1e-4.
The paper takes 3280 epochs in eight stages; here the rate falls by the same factor each epoch. 50,000 training rows
(the paper: 59,600), the test set binarised once (the paper: anew in each pass).

`DIGITS` is of the same objectives and their relatives on 8 x 8 digits, networks 100-100 tanh and 16 latents, which
takes a minute: for more than one seed. Gradients (STL, DReG) are of the same bounds as without them; MMD is no bound,
and its weight is not tuned.
"""

from collections.abc import Callable
from functools import partial

import pyro.infer

import pyrovae as pv
from examples.reproduce.runner import Cell, Result, Schedule
from pyrovae.data import Data


def vae(data: Data, latent_dim: int = 50, hidden: tuple[int, ...] = (200, 200)) -> pv.VAE:
    pair = pv.VAE(data.event_shape, latent_dim, hidden=hidden)
    pair.likelihood.initialise_(data.train["x"].mean(0))
    return pair


def two_layers(data: Data) -> pv.HierarchicalVAE:
    pair = pv.HierarchicalVAE(data.event_shape, latent_dims=(100, 50), hidden=((200, 200), (100, 100)))
    pair.likelihood.initialise_(data.train["x"].mean(0))
    return pair


RESULT = Result(
    source="Burda et al. 2016, table 1, MNIST, one or two stochastic layers; test NLL, nats (DReG: nbip's code)",
    load=lambda root: pv.data.load("mnist", root=root),
    cells={
        "VAE 1": Cell(vae, paper=86.76),
        "IWAE 5": Cell(vae, lambda data, schedule: pv.IWAE(5), paper=85.54),
        "DReG 5": Cell(vae, lambda data, schedule: pv.DReG(5), paper=84.90),
        "IWAE 50": Cell(vae, lambda data, schedule: pv.IWAE(50), paper=84.78),
        "DReG 50": Cell(vae, lambda data, schedule: pv.DReG(50), paper=84.32),
        "VAE 5": Cell(vae, lambda data, schedule: pv.ELBO(num_particles=5), paper=86.47),
        "VAE 50": Cell(vae, lambda data, schedule: pv.ELBO(num_particles=50), paper=86.35),
        "two layers VAE 1": Cell(two_layers, paper=85.33),
        "two layers IWAE 5": Cell(two_layers, lambda data, schedule: pv.IWAE(5), paper=83.89),
        "two layers IWAE 50": Cell(two_layers, lambda data, schedule: pv.IWAE(50), paper=82.90),
    },
    paper=Schedule(epochs=3280, batch_size=20, num_samples=5000, decay=0.1),
    reduced=Schedule(epochs=20, batch_size=20, num_samples=1000, decay=0.1),
)


def on_digits(make: Callable[[], pyro.infer.ELBO]) -> Cell:
    return Cell(partial(vae, latent_dim=16, hidden=(100, 100)), lambda data, schedule: make())


DIGITS = Result(
    source="The same on 8 x 8 digits, 16 latents, with relatives of IWAE; test NLL, nats",
    load=lambda root: pv.data.load("digits", root=root),
    cells={
        "VAE 1": on_digits(pv.ELBO),
        "VAE 50": on_digits(partial(pv.ELBO, 50)),
        "STL 1": on_digits(partial(pv.STL, 1)),
        "IWAE 5": on_digits(partial(pv.IWAE, 5)),
        "DReG 5": on_digits(partial(pv.DReG, 5)),
        "IWAE 50": on_digits(partial(pv.IWAE, 50)),
        "DReG 50": on_digits(partial(pv.DReG, 50)),
        "MIWAE 8 x 8": on_digits(partial(pv.MIWAE, 64, num_groups=8)),
        "PIWAE 8 x 8": on_digits(partial(pv.PIWAE, 64, num_groups=8)),
        "CIWAE 64, 0.05": on_digits(partial(pv.CIWAE, 64, beta=0.05)),
        "Renyi 0.5, 50": on_digits(partial(pv.Renyi, 0.5, 50)),
        "MMD 1000": on_digits(partial(pv.MMD, scale=1000.0)),
    },
    paper=Schedule(epochs=3280, batch_size=20, num_samples=5000, decay=0.1),
    reduced=Schedule(epochs=60, batch_size=20, num_samples=1000, decay=0.1),
)
