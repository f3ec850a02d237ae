"""Clusters by codes: networks trained to start them, how they are scored, and what they generate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.metrics.cluster import contingency_matrix
from sklearn.mixture import GaussianMixture
from torch import nn

import pyrovae as pv
from examples.reproduce.runner import Finished, Schedule, Start
from pyrovae.data import Data
from pyrovae.evaluation import components, encode, generate
from pyrovae.nets import MLP

LATENT_DIM = 10
LITTLE = 0.001  # weight of the KL in a pretrained VAE
RESTARTS = 10


def mirrored(
    cls: Callable[..., Any], *, hidden: Sequence[int], likelihood: Callable[..., nn.Module]
) -> Callable[[Data], Any]:
    """Makes pairs of ReLU networks, whose decoder's layers are the encoder's turned round."""
    relu = partial(MLP, activation=nn.ReLU)

    def make(data: Data) -> Any:
        encoder, decoder = relu(data.event_shape, hidden), relu(LATENT_DIM, tuple(hidden)[::-1])
        return cls(data.event_shape, LATENT_DIM, encoder=encoder, decoder=decoder, likelihood=likelihood)

    return make


# Starts ---------------------------------------------------------------------------------------------------------------


def stacked(pair: pv.VaDE, data: Data, epochs: int, out: Path, balanced: bool, **options: Any) -> list[pv.Run]:
    """Layer by layer, which takes about as long as the whole does, then all together."""
    each = max(1, epochs // 2)
    options |= {"out": out, "resume": (out / "layer_1" / "checkpoints").exists()}
    runs = pv.pretrain_stacked(pair, data, max_epochs=each, finetune_epochs=epochs - each, **options)
    return with_mixture(pair, data, runs, balanced)


def plain(pair: pv.VaDE, data: Data, epochs: int, out: Path, balanced: bool, **options: Any) -> list[pv.Run]:
    """All layers at once."""
    options |= {"out": out, "resume": (out / "checkpoints").exists()}
    return with_mixture(pair, data, [pv.fit(pv.Autoencoder.of(pair), data, max_epochs=epochs, **options)], balanced)


def with_mixture(pair: pv.VaDE, data: Data, runs: list[pv.Run], balanced: bool) -> list[pv.Run]:
    """The pretraining, and if it was not cut off, the mixture on its codes."""
    if not runs[-1].interrupted:
        pair.initialise_(data.train["x"], seed=runs[-1].seed, num_restarts=RESTARTS, balanced=balanced)
    return runs


def smooth(pair: pv.VaDE, data: Data, epochs: int, out: Path, balanced: bool, **options: Any) -> list[pv.Run]:
    """A VAE of the same modules under a standard Normal, whose KL counts little."""
    options |= {"out": out, "resume": (out / "checkpoints").exists(), "beta": LITTLE, "balanced": balanced}
    return [pv.pretrain_clusters(pair, data, max_epochs=epochs, num_restarts=RESTARTS, **options)]


def started(pretrain: Callable[..., list[pv.Run]], *, balanced: bool = False, **fixed: Any) -> Start:
    """A start from networks pretrained by one of these, with further options of `fit`, and a mixture on their codes."""

    def start(
        pair: pv.VaDE, data: Data, schedule: Schedule, *, seed: int, out: Path, **options: Any
    ) -> dict[str, Any] | None:
        options |= {"seed": seed, "batch_size": schedule.batch_size, "lr": schedule.lr, **fixed}
        runs = pretrain(pair, data, schedule.pretraining, out / "pretraining", balanced, **options)
        if runs[-1].interrupted:
            return None
        with torch.no_grad():
            joint = pair.prior.component().logits + pair.prior.components().log_prob(
                pair.codes(data.train["x"])[:, None]
            )
        found = scores(joint.argmax(-1).numpy(force=True), data)
        print(f"mixture of codes after {schedule.pretraining} epochs: acc {found['acc']:.2f}", flush=True)
        likelihood = float(joint.logsumexp(-1).mean())
        seconds = sum(run.seconds for run in runs)
        return {**found, "likelihood": likelihood, "epochs": schedule.pretraining, "seconds": seconds}

    return start


# Scores ---------------------------------------------------------------------------------------------------------------


def scores(assigned: Any, data: Data) -> dict[str, Any]:
    """Figures in per cent; how many data each cluster has, and how many of each label, largest cluster first."""
    y = data.train["y"]
    table = contingency_matrix(np.asarray(assigned), y.numpy(force=True))
    table = table[np.argsort(-table.sum(1))]
    return {
        "acc": 100 * pv.cluster_accuracy(y, assigned),
        "nmi": 100 * pv.nmi(y, assigned),
        "ari": 100 * pv.ari(y, assigned),
        "clusters": table.sum(1).tolist(),
        "labels_of_clusters": table.tolist(),
    }


def mixture(x: np.ndarray, num_components: int, seed: int) -> np.ndarray:
    """Clusters by the likeliest of some mixtures of diagonal Normals."""
    floor = 1e-3 * float(x.var(0).mean())
    fitted = GaussianMixture(
        num_components, covariance_type="diag", n_init=RESTARTS, reg_covar=floor, random_state=seed
    )
    return fitted.fit_predict(x)


def of_pixels(num_components: int) -> Callable[[Data, int], dict[str, Any]]:
    return lambda data, seed: scores(mixture(data.train["x"].flatten(1).double().numpy(), num_components, seed), data)


def of_codes(num_components: int) -> Callable[..., dict[str, Any]]:
    def evaluate(pair: Any, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
        codes = encode(pair, data.train, seed=run.seed, batch_size=2000)
        return scores(mixture(codes.double().numpy(force=True), num_components, run.seed), data)

    return evaluate


def of_vade(pair: pv.VaDE, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    assigned = pv.assign_clusters(pair, data.train, num_samples=num_samples, seed=run.seed, batch_size=2000)
    return {
        **scores(assigned.numpy(force=True), data),
        "weights": pair.prior.component().probs.detach().tolist(),
        "bound": -run.history["train_loss"][-1],
    }


def pictures(finished: Mapping[str, Finished]) -> dict[str, Axes]:
    """What each cluster generates, of the first VaDE that has run."""
    cell = next((finished[name] for name in finished if name.startswith("VaDE")), None)
    if cell is None:
        return {}
    pair, data = cell.trained()
    x, seed = data.train["x"][:1], cell.record["seed"]
    found = components(pair, x)
    ((site, values),) = found.samples.items()
    order = found.weights.argsort(descending=True)
    images = [generate(pair, 12, like=(x,), fixed={site: values[c][None]}, seed=seed) for c in order]
    rows = [f"{found.weights[c]:.0%}" for c in order]
    return {"samples": pv.plots.rows(torch.stack(images), rows)}
