"""Seconds for an epoch of MNIST: `pyrovae.fit` beside the idiom of Pyro's own VAE example, interleaved in one run.

    PYROVAE_DATA=<folder with MNIST/raw> python -m examples.benchmarks.mnist_epoch

The same pair (784-200-200-50, tanh), batches, optimizer and dynamic binarisation. Pyro's idiom: `SVI.step` over
torchvision's DataLoader with `ToTensor`. The limit: the matrix products of those steps alone.
"""

import argparse
import os
import statistics
import time
from itertools import pairwise

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torchvision import datasets, transforms

import pyrovae as pv
from examples.mnist_vae import pair
from pyrovae import reports

SIZES = ((784, 200, 200, 100), (50, 200, 200, 784))  # of encoder and decoder, heads included


def fit_epoch(data: pv.data.Data, batch_size: int) -> float:
    run = pv.fit(pair(data), data, max_epochs=2, batch_size=batch_size, validation=False, progress=False)
    return run.history["seconds"][1] - run.history["seconds"][0]


def stock_epoch(data: pv.data.Data, batch_size: int, root: str) -> float:
    images = torch.utils.data.Subset(datasets.MNIST(root, transform=transforms.ToTensor()), range(len(data.train)))
    loader = torch.utils.data.DataLoader(images, batch_size=batch_size, shuffle=True)
    vae = pair(data)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=Trace_ELBO())
    began = time.perf_counter()
    for x, _ in loader:
        svi.step(torch.bernoulli(x))
    return time.perf_counter() - began


def products_epoch(data: pv.data.Data, batch_size: int) -> float:
    """Forward, and backward with respect to weights and inputs, of every layer."""
    shapes = [shape for sizes in SIZES for shape in pairwise(sizes)]
    weights = [torch.randn(shape) for shape in shapes]
    inputs, outputs = ([torch.randn(batch_size, shape[i]) for shape in shapes] for i in (0, 1))
    began = time.perf_counter()
    for _ in range(len(data.train) // batch_size):
        for x, weight, gradient in zip(inputs, weights, outputs, strict=True):
            x @ weight, gradient @ weight.T, x.T @ gradient
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", default=os.environ.get("PYROVAE_DATA", "data"))
    parser.add_argument("--out", default="examples/results/mnist_epoch.json")
    options = parser.parse_args()
    data = pv.data.load("mnist", root=options.root)
    seconds: dict[str, list[float]] = {"pyrovae": [], "stock Pyro": [], "matrix products": []}
    for _ in range(options.repeats):
        seconds["pyrovae"].append(fit_epoch(data, options.batch_size))
        seconds["stock Pyro"].append(stock_epoch(data, options.batch_size, options.root))
        seconds["matrix products"].append(products_epoch(data, options.batch_size))
    for name, values in seconds.items():
        print(f"{name:<16} {statistics.median(values):6.2f} s an epoch of {len(data.train)} rows")
    record = {"seconds": seconds, "batch_size": options.batch_size, "versions": reports.versions(), "device": "cpu"}
    reports.write_json(record, options.out)


if __name__ == "__main__":
    main()
