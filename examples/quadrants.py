"""Completing 1, 2 or 3 hidden quadrants of an image: a conditional VAE against a feed-forward network.

    python -m examples.quadrants --hidden 3
    PYROVAE_DATA=<folder with MNIST/raw> python -m examples.quadrants --data mnist --hidden 1 2 3 --epochs 50

The protocol is Pyro's (examples/cvae): grey pixels under a Bernoulli's cross-entropy over the hidden ones only, which
is no density; 500-500 ReLU, a learned prior p(z | y), Adam 1e-3, batches of 128, early stopping after 3 epochs. What is
not Pyro's: the estimate (importance samples of log p(x | y), where theirs averages a bound of few samples), and that
the decoder sees y itself. `--binarize static` makes bits of the pixels, and nats that are those of a density. Each
number of hidden quadrants leaves a JSON file and a picture: the visible part, completions of the CVAE, the network's,
the image.
"""

import argparse
from functools import partial
from pathlib import Path

import pyro
import torch
from torch import nn

import pyrovae as pv
from pyrovae import reports
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

    def __init__(self, pixels: int, length: int, likelihood):
        super().__init__()
        self.network = pv.nets.MLP(length, (500, 500), activation=nn.ReLU)
        self.likelihood = likelihood(500, pixels)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.likelihood(self.network(y)), obs=x)

    def guide(self, x, y):
        pass


def completing(data: pv.data.Data, hidden: int) -> pv.data.Data:
    """The task as data: x the hidden pixels, y the visible ones."""
    splits = {}
    for name, split in data.splits.items():
        y, x = pv.data.quadrants(split["x"], hidden)
        splits[name] = pv.data.Split({"x": x, "y": y})
    return pv.data.Data(**splits, name=f"{data.name} quadrants", levels=data.levels)


def picture(pair: pv.Pair, baseline: pv.Pair, task: pv.data.Data, image_shape: tuple[int, ...], columns: int = 10):
    """Columns of: what is seen, three completions, the baseline's, the image."""
    x, y = (task.test[name][:columns] for name in ("x", "y"))
    rows = [torch.full_like(x, 0.5), *(generate(pair, len(x), like=(x, y), seed=seed) for seed in range(3))]
    rows += [generate(baseline, len(x), like=(x, y)), x]
    images = torch.stack([pv.data.join_quadrants(y, row, image_shape) for row in rows])
    return pv.plots.rows(images, ["seen", "CVAE", "CVAE", "CVAE", "network", "image"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default=None)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--binarize", default=None)
    parser.add_argument("--latent_dim", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=10_000, help="test images at most")
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("examples/results/quadrants"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    data = pv.data.load(options.data, root=options.root, binarize=options.binarize)
    likelihood = pv.conditionals.Bernoulli if options.binarize else pv.conditionals.CrossEntropy
    for hidden in options.hidden:
        task = completing(data, hidden)
        pixels, seen = task.event_shape[0], task.train["y"].size(1)
        torch.manual_seed(options.seed)
        baseline = FeedForward(pixels, seen, likelihood)
        pair = pv.CVAE(
            pixels,
            options.latent_dim,
            condition_shape=seen,
            encoder=partial(pv.nets.MultiMLP, hidden=(500, 500), activation=nn.ReLU),
            decoder=partial(pv.nets.MultiMLP, hidden=(500, 500), activation=nn.ReLU),
            prior=partial(Prior, length=seen),
            likelihood=likelihood,
        )
        record = {}
        for name, each in (("feed_forward", baseline), ("cvae", pair)):
            run = pv.fit(
                each,
                task,
                max_epochs=options.epochs,
                batch_size=128,
                patience=3,
                seed=options.seed,
                compile=True,
                progress=False,
            )
            samples = options.num_samples if each is pair else 1
            estimate = pv.log_likelihood(each, task.test.subset(slice(options.rows)), num_samples=samples)
            record[name] = {
                "nats_of_hidden_pixels": -estimate.value,
                "standard_error": estimate.standard_error,
                "data_standard_error": estimate.data_standard_error,
                "test_rows": len(estimate.per_datum),
                "is_density": estimate.is_density,
                "num_samples": samples,
                "epochs": run.epoch,
                "fit_seconds": run.seconds,
            }
            print(f"{hidden} hidden, {name}: {-estimate.value:.2f} nats of {pixels} pixels, {run.epoch} epochs")
        print(f"Pyro's on grey MNIST: network {PYRO_BASELINE[hidden]}, CVAE {PYRO[hidden]}")
        setting = {key: getattr(options, key) for key in ("data", "binarize", "latent_dim", "seed")}
        record |= {"hidden": hidden, **setting, "versions": reports.versions(), "device": "cpu"}
        reports.write_json(record, options.out / f"{options.data}_{hidden}_hidden.json")
        ax = picture(pair, baseline, task, tuple(data.event_shape))
        print(pv.plots.save(ax, options.out / f"{options.data}_{hidden}_hidden.png"))


if __name__ == "__main__":
    main()
