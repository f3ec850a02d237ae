"""Semi-supervised MNIST (Kingma et al. 2014, table 1): test error in %.

Each seed has its own labels, as many of each class, drawn by `hide_labels`; the last epoch counts, and in M2 and M1+M2
nothing is picked by the test set. All weights have the prior N(0, 1), as in the authors' code: weight decay 1/N
of the mean loss. alpha is theirs, 0.1 N / N_lab for each labelled row, divided by how often it comes in an epoch.

* M2: 500 softplus, 50 latents, images binarised anew for each batch. In "M2, labels first" it starts from a q(y | x)
  that has learned from the labelled rows alone, whose error stands in the JSON as that of its start: from scratch,
  the first epochs find classes of their own, which the labels of few rows do not undo. That start was chosen by the
  validation errors of one draw of labels. Networks' products are in bfloat16 there.
* M1+M2: the latents of the one M1 of `m1.py`; M2 of 300 or 500 softplus units, 50 latents, Gaussian p(z1 | y, z2). The
  paper has 3000 passes of 100 batches.
* M1+M2 with little KL, not the paper's: `with_little_kl` in the M1's place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyrovae as pv
from examples.reproduce.m1 import LABELS, latents, published, with_little_kl, with_prior
from examples.reproduce.runner import Cell, Result, Schedule
from pyrovae.conditionals import DiagonalNormal
from pyrovae.data import Data


def m2_of_pixels(data: Data) -> pv.M2:
    pair = pv.M2(data.event_shape, latent_dim=50, hidden=(500,))
    pair.likelihood.initialise_(data.train["x"].mean(0))
    return pair


def m2_of_features(data: Data, *, hidden: int) -> pv.M2:
    return pv.M2(data.event_shape, latent_dim=50, hidden=(hidden,), likelihood=DiagonalNormal)


def labels_hidden(data: Data, seed: int, deadline: float, *, num_labels: int, times: int) -> Data:
    return pv.data.hide_labels(data, num_labels, seed=seed, times=times)


def features(
    data: Data, seed: int, deadline: float, *, of: Callable[[Data, float], pv.Run], num_labels: int, times: int
) -> Data | None:
    """Latents of the one M1, trained first where it is not there yet; None if the time is up."""
    run = of(data, deadline)
    if run.interrupted:
        return None
    codes, _ = latents(run.pair, data)
    return labels_hidden(codes, seed, deadline, num_labels=num_labels, times=times)


def objective(data: Data, schedule: Schedule, *, num_labels: int) -> pv.SemiSupervised:
    labelled = int((data.train["y"] >= 0).sum())
    times = labelled // num_labels
    rows = len(data.train) - labelled + num_labels
    return pv.SemiSupervised(alpha=0.1 * rows / num_labels / times)


def labels_first(
    pair: pv.M2, data: Data, schedule: Schedule, *, num_labels: int, seed: int, out: Path, **options: Any
) -> dict[str, Any] | None:
    """The labelled rows alone, for the epochs of pretraining."""
    labelled = Data(data.train.subset((data.train["y"] >= 0).nonzero()[:, 0]), name=data.name)
    supervised = pv.SemiSupervised(alpha=objective(data, schedule, num_labels=num_labels).alpha, beta=0.0)
    folder = out / "labels"
    options |= {"max_epochs": schedule.pretraining, "batch_size": 100, "optimizer": with_prior(data), "progress": False}
    resume = (folder / "checkpoints").exists()
    run = pv.fit(pair, labelled, objective=supervised, seed=seed, out=folder, resume=resume, **options)
    if run.interrupted:
        return None
    return {**error(pair, run, data, 1), "epochs": run.epoch, "seconds": run.seconds}


def error(pair: Any, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """Test error in per cent, and that of the validation rows, which nothing is picked by."""
    found = {part: 100 * pv.classification_error(pair, getattr(data, part)) for part in ("test", "validation")}
    return {"error": found["test"], "validation_error": found["validation"]}


PAPER = {  # those that have been seen in a source
    "M2": (11.97, None, 3.60, None),
    "M2, labels first": (None,) * 4,
    "M1+M2": (3.33, None, 2.40, None),
    "M1+M2, little KL": (None,) * 4,
}
PYROS = dict(zip(LABELS, (6.81, 5.63, 5.13, 4.18), strict=True))  # M2 with an auxiliary loss, in Pyro's tutorial
TIMES = {100: 10, 600: 2, 1000: 1, 3000: 1}  # so that a batch of 100 has about two labelled rows or more


def by_labels(name: str, made: Callable[[int], dict[str, Any]]) -> dict[str, Cell]:
    """A cell for each number of labels; `made` gives its pair and its data."""
    return {
        f"{name} {n}": Cell(
            objective=partial(objective, num_labels=n),
            paper=paper,
            **{"options": lambda data: {"optimizer": with_prior(data)}, "evaluate": error, **made(n)},
        )
        for n, paper in zip(LABELS, PAPER[name], strict=True)
    }


def of_pixels(n: int) -> dict[str, Any]:
    return {"pair": m2_of_pixels, "prepare": partial(labels_hidden, num_labels=n, times=TIMES[n])}


def of_pixels_labels_first(n: int) -> dict[str, Any]:
    options = {"precision": "bfloat16"}
    return {
        **of_pixels(n),
        "options": lambda data: {"optimizer": with_prior(data), **options},
        "start": partial(labels_first, num_labels=n, **options),
    }


def of_features(n: int, of: Callable[[Data, float], pv.Run] = published) -> dict[str, Any]:
    pair = partial(m2_of_features, hidden=300 if n == 100 else 500)
    return {"pair": pair, "prepare": partial(features, of=of, num_labels=n, times=TIMES[n])}


M2 = Result(
    source="Kingma et al. 2014, table 1, MNIST, M2 by number of labels; test error, %",
    load=lambda root: pv.data.load("mnist", root=root),
    cells={
        **by_labels("M2", of_pixels),
        **by_labels("M2, labels first", of_pixels_labels_first),
        **{f"M2 {n}, Pyro's tutorial": Cell(paper=PYROS[n]) for n in LABELS},
    },
    paper=Schedule(epochs=3000, batch_size=500, num_samples=1, lr=3e-4, pretraining=40),
    reduced=Schedule(epochs=10, batch_size=200, num_samples=1, lr=1e-3, decay=0.1, pretraining=40),
    figure="error",
)

M1_M2 = Result(
    source="Kingma et al. 2014, table 1, MNIST, M1+M2 by number of labels; test error, %",
    load=lambda root: pv.data.load("mnist", root=root),
    cells=by_labels("M1+M2", of_features),
    paper=Schedule(epochs=3000, batch_size=500, num_samples=1, lr=3e-4),
    reduced=Schedule(epochs=80, batch_size=100, num_samples=1, lr=1e-3, decay=0.1),
    figure="error",
)

M1_M2_LITTLE_KL = Result(
    source="Not the paper's: M1+M2 whose M1 has 10 latents and a KL of weight 0.001, MNIST; test error, %",
    load=lambda root: pv.data.load("mnist", root=root),
    cells=by_labels("M1+M2, little KL", partial(of_features, of=with_little_kl)),
    paper=Schedule(epochs=300, batch_size=200, num_samples=1, lr=1e-3, decay=0.1),
    reduced=Schedule(epochs=30, batch_size=200, num_samples=1, lr=1e-3, decay=0.1),
    figure="error",
)
