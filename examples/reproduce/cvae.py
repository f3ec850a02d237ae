"""Completing 1, 2 or 3 hidden quadrants of an image (Sohn et al. 2015): a conditional VAE against a network.

The protocol is Pyro's (examples/cvae): grey pixels under a Bernoulli's cross-entropy over the hidden ones only, which
is no density; 500-500 ReLU, a learned prior p(z | y), Adam 1e-3, batches of 128, early stopping after 3 epochs. What is
not Pyro's: the estimate (importance samples of log p(x | y), where theirs averages a bound of few samples), and that
the decoder sees y itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from matplotlib.axes import Axes
from torch import nn

import pyrovae as pv
from examples.reproduce.runner import Cell, Finished, Result, Schedule, negative
from pyrovae.conditionals import CrossEntropy
from pyrovae.data import Data, Split
from pyrovae.evaluation import generate

PYRO = {1: 24.2, 2: 51.0, 3: 71.8}  # nats of the hidden pixels, MNIST
PYRO_BASELINE = {1: 25.4, 2: 61.9, 3: 100.4}


class Prior(nn.Module):
    """p(z | y), a diagonal Normal of a network's features."""

    def __init__(self, latent_dim: int, length: int):
        super().__init__()
        self.network = pv.nets.MLP(length, (500, 500), activation=nn.ReLU)
        self.normal = pv.conditionals.DiagonalNormal(500, latent_dim)

    def forward(self, context: torch.Tensor):
        return self.normal(self.network(context))


class FeedForward(pv.Pair):
    """x ~ p(x | y), each pixel by itself: the baseline, with nothing latent."""

    def __init__(self, pixels: int, length: int):
        super().__init__()
        self.network = pv.nets.MLP(length, (500, 500), activation=nn.ReLU)
        self.likelihood = CrossEntropy(500, pixels)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.likelihood(self.network(y)), obs=x)

    def guide(self, x, y):
        pass


def completing(name: str, hidden: int) -> Callable[[str | None], Data]:
    """The task as data: x the hidden pixels, y the visible ones."""

    def load(root: str | None) -> Data:
        data, splits = pv.data.load(name, root=root, binarize=None), {}
        for split_name, split in data.splits.items():
            y, x = pv.data.quadrants(split["x"], hidden)
            splits[split_name] = Split({"x": x, "y": y})
        return Data(**splits, name=f"{name} quadrants", levels=data.levels)

    return load


def network(data: Data) -> FeedForward:
    return FeedForward(data.event_shape[0], data.train["y"].size(1))


def cvae(data: Data) -> pv.CVAE:
    seen = data.train["y"].size(1)
    return pv.CVAE(
        data.event_shape[0],
        200,
        condition_shape=seen,
        encoder=partial(pv.nets.MultiMLP, hidden=(500, 500), activation=nn.ReLU),
        decoder=partial(pv.nets.MultiMLP, hidden=(500, 500), activation=nn.ReLU),
        prior=partial(Prior, length=seen),
        likelihood=CrossEntropy,
    )


def nats(pair: pv.Pair, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    samples = 1 if isinstance(pair, FeedForward) else num_samples
    estimate = pv.log_likelihood(pair, data.test, num_samples=samples, seed=run.seed)
    figures = negative(estimate, "nats_of_hidden_pixels")
    return {**figures, "test_rows": len(data.test), "is_density": estimate.is_density, "num_samples": samples}


def picture(pair: pv.Pair, baseline: pv.Pair, task: Data, columns: int = 10) -> Axes:
    """Columns of: what is seen, three completions, the baseline's, the image."""
    x, y = (task.test[name][:columns] for name in ("x", "y"))
    side = round((x.size(1) + y.size(1)) ** 0.5)
    rows = [torch.full_like(x, 0.5), *(generate(pair, len(x), like=(x, y), seed=seed) for seed in range(3))]
    rows += [generate(baseline, len(x), like=(x, y)), x]
    images = torch.stack([pv.data.join_quadrants(y, row, (1, side, side)) for row in rows])
    return pv.plots.rows(images, ["seen", "CVAE", "CVAE", "CVAE", "network", "image"])


def pictures(finished: Mapping[str, Finished]) -> dict[str, Axes]:
    drawn = {}
    for name in finished:
        task = name.removeprefix("CVAE ")
        if name != task and (baseline := f"network {task}") in finished:
            drawn[task.replace(" ", "_")] = picture(finished[name].trained()[0], *finished[baseline].trained())
    return drawn


def cells(name: str, *hidden: int) -> dict[str, Cell]:
    options = {"patience": 3, "validation": None}
    on_mnist = name == "mnist"
    return {
        f"{title} {name} {count} hidden": Cell(
            pair, paper=pyros[count] if on_mnist else None, options=options, evaluate=nats, load=completing(name, count)
        )
        for count in hidden
        for title, pair, pyros in (("network", network, PYRO_BASELINE), ("CVAE", cvae, PYRO))
    }


RESULT = Result(
    source="Sohn et al. 2015, grey images, hidden quadrants; nats of the hidden pixels (paper: Pyro's example)",
    load=completing("mnist", 3),
    cells={**cells("mnist", 1, 2, 3), **cells("digits", 3)},
    paper=Schedule(epochs=101, batch_size=128, num_samples=1000),
    reduced=Schedule(epochs=20, batch_size=128, num_samples=1000),
    figure="nats_of_hidden_pixels",
    pictures=pictures,
)
