"""M1 of Kingma et al. 2014: the VAE of all images whose latents M1+M2 classifies, and a classifier of these alone.

The paper's has networks 500-500 softplus, 50 latents and 40 epochs, and weights with the prior N(0, 1), as in the
authors' code: weight decay 1/N of the mean loss. "M1" is a support vector machine (RBF, C = 10) on the means of its
latents; the paper's is transductive. `with_little_kl`, not the paper's, is a VAE like the one that starts `vade.py`'s
clusters, of 10 latents and a KL of weight 0.001: its codes lie in clusters that are mostly one digit each, where the
paper's M1 spreads them. That weight was chosen for VaDE, with accuracies on all 70,000 images in view, the test set's
among them.

It sees no labels, so that one M1 serves all seeds of M1+M2; its time is in no record.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyrovae as pv
from examples.reproduce.clustering import LITTLE, mirrored
from examples.reproduce.runner import Cell, OutOfTime, Result, Schedule
from pyrovae.conditionals import CrossEntropy
from pyrovae.data import Data
from pyrovae.models.base import isolated_random_state
from pyrovae.nets import MLP

LABELS = (100, 600, 1000, 3000)
FOLDER = Path("runs/reproduce/m1_of_all_seeds")
EPOCHS = 40, 50  # the paper's, and the one with little KL


def with_prior(data: Data) -> Any:
    """Adam, with a standard Normal prior of the weights."""
    return partial(torch.optim.Adam, weight_decay=1 / len(data.train))


def vae(data: Data) -> pv.VAE:
    """The paper's."""
    encoder, decoder = (partial(MLP, hidden=(500, 500), activation=nn.Softplus) for _ in range(2))
    pair = pv.VAE(data.event_shape, latent_dim=50, encoder=encoder, decoder=decoder(50))
    pair.likelihood.initialise_(data.train["x"].mean(0))
    return pair


def published(data: Data, deadline: float) -> pv.Run:
    """The paper's M1, trained or read."""
    epochs, _ = EPOCHS
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.1 ** (1 / epochs))
    options = {"max_epochs": epochs, "batch_size": 100, "optimizer": with_prior(data), "schedule": decay}
    return trained(vae, data, deadline, FOLDER / f"epochs_{epochs}", **options)


def with_little_kl(data: Data, deadline: float) -> pv.Run:
    """A VAE of the networks of VaDE, of grey images and a KL of little weight, trained or read."""
    _, epochs = EPOCHS
    options = {"max_epochs": epochs, "batch_size": 256, "objective": pv.ELBO(beta=LITTLE), "precision": "bfloat16"}
    make = mirrored(pv.VAE, hidden=(500, 500, 2000), likelihood=CrossEntropy)
    return trained(make, grey(data), deadline, FOLDER / f"little_kl_epochs_{epochs}", **options)


def trained(make: Callable[[Data], pv.VAE], data: Data, deadline: float, out: Path, **options: Any) -> pv.Run:
    """The run of an M1, gone on with or finished."""
    with isolated_random_state(0):
        pair = make(data)
    resume = (out / "checkpoints").exists()
    options |= {"seed": 0, "out": out, "resume": resume, "callbacks": [OutOfTime(deadline)]}
    return pv.fit(pair, data, validation=False, progress=False, **options)


def grey(data: Data) -> Data:
    """The images as they are: means of bits."""
    return Data(**{part: pv.data.Split(split.tensors) for part, split in data.splits.items()}, name=data.name)


def latents(pair: pv.VAE, data: Data) -> tuple[Data, Any]:
    """Latents of grey images, drawn anew for each batch, and which these are: their means vary by more than 0.1."""
    return pv.latent_data(pair, grey(data), min_std=0.1)


def machine(pair: Any, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """Test errors of a support vector machine on M1's latents, by the number of labels."""
    from sklearn.svm import SVC

    codes, kept = latents(pair, data)
    errors = {}
    for num_labels in LABELS:
        few = pv.data.hide_labels(codes, num_labels, seed=run.seed).train
        known = few["y"] >= 0
        classifier = SVC(C=10.0).fit(few["x"][known].numpy(), few["y"][known].numpy())
        score = classifier.score(codes.test["x"].numpy(), codes.test["y"].numpy())
        errors[f"error_{num_labels}"] = 100 * (1 - score)
    return {"error": errors["error_100"], **errors, "latents_kept": len(kept)}


RESULT = Result(
    source="Kingma et al. 2014, table 1, MNIST, M1 with a support vector machine, 100 labels; test error, %",
    load=lambda root: pv.data.load("mnist", root=root),
    cells={"M1": Cell(vae, options=lambda data: {"optimizer": with_prior(data)}, evaluate=machine)},
    paper=Schedule(epochs=3000, batch_size=100, num_samples=1),
    reduced=Schedule(epochs=40, batch_size=100, num_samples=1, decay=0.1),
    figure="error",
)
