"""Clusters while they are trained: VaDE's components over the codes of handwritten digits, and what each generates.

    python -m examples.clusters --num_components 10
    python -m examples.clusters --num_components 7      as in the lecture notes

The first panel is the mixture on the codes of a pretrained auto-encoder, the others follow VaDE from there. Codes are
drawn on their first two principal components and coloured by label, which nothing is trained on. Clusters that are
fewer than the digits hold several, and the samples show which.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae import reports
from pyrovae.conditionals import FixedNormal
from pyrovae.evaluation import components, encode, generate

EPOCHS = (0, 3, 15, 60)
POINTS = 500  # drawn
OUT = Path("examples/results/clusters")


class Panels(pv.Callback):
    """Draws codes and components into one figure after some epochs, and keeps how good the clusters are."""

    def __init__(self, data: pv.data.Data, axes):
        self.data, self.axes, self.figures = data, dict(zip(EPOCHS, axes, strict=True)), {}

    def on_epoch(self, run: pv.Run) -> None:
        if run.epoch in self.axes:
            self.draw(run.pair, run.epoch)

    def draw(self, pair: pv.VaDE, epoch: int) -> None:
        x, y = self.data.train["x"], self.data.train["y"]
        accuracy = pv.cluster_accuracy(y, pv.assign_clusters(pair, x))
        self.figures[f"epoch {epoch}"] = {"accuracy": accuracy, "nmi": pv.nmi(y, pv.assign_clusters(pair, x))}
        found = components(pair, x)
        z, ax = encode(pair, x[:POINTS]), self.axes[epoch]
        pv.plots.clusters(z, found.weights, found.loc, found.covariance, y[:POINTS], ax=ax)
        ax.set_title(f"epoch {epoch}, accuracy {accuracy:.0%}", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_components", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    digits = pv.data.load("digits", binarize=None)
    data = pv.data.Data(pv.data.Split({key: digits.train[key] for key in ("x", "y")}))
    x = data.train["x"]
    torch.manual_seed(options.seed)
    likelihood = partial(FixedNormal, scale=0.1)
    vade = pv.VaDE(data.event_shape, 10, options.num_components, hidden=(128, 128, 256), likelihood=likelihood)
    common = {"batch_size": 100, "seed": options.seed, "progress": False, "validation": False}
    pv.pretrain_stacked(vade, x, max_epochs=20, finetune_epochs=20, **common)
    vade.initialise_(x, seed=options.seed)
    figure = Figure(figsize=(15, 3.6), layout="constrained")
    panels = Panels(data, figure.subplots(1, len(EPOCHS)))
    panels.draw(vade, 0)
    warm_up = pv.schedules.Linear(0.1, 1.0, epochs=6)
    run = pv.fit(vade, x, objective=pv.ELBO(beta=warm_up), max_epochs=EPOCHS[-1], callbacks=[panels], **common)
    OUT.mkdir(parents=True, exist_ok=True)
    name = f"digits_{options.num_components}"
    pictures = [pv.plots.save(panels.axes[0], OUT / f"{name}_epochs.png")]
    found = components(vade, x)
    ((site, values),) = found.samples.items()
    images = [generate(vade, 12, like=(x[:1],), fixed={site: value[None]}, seed=options.seed) for value in values]
    rows = [f"{site} = {number}, {share:.0%}" for number, share in enumerate(found.weights)]
    pictures.append(pv.plots.save(pv.plots.rows(torch.stack(images), rows), OUT / f"{name}_samples.png"))
    record = {
        "num_components": options.num_components,
        **panels.figures,
        "weights": found.weights.tolist(),
        "seed": options.seed,
        "fit_seconds": run.seconds,
        "versions": reports.versions(),
        "device": "cpu",
    }
    reports.write_json(record, OUT / f"{name}.json")
    print(panels.figures, *pictures, sep="\n")


if __name__ == "__main__":
    main()
