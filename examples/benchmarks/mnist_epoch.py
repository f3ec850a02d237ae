"""Seconds for an epoch of MNIST: `pyrovae.fit` beside the idioms of Pyro's and NumPyro's own VAE examples.

    PYROVAE_DATA=<folder with MNIST/raw> python -m examples.benchmarks.mnist_epoch

The same pair (784-200-200-50, tanh), batches, optimizer and dynamic binarisation, interleaved in one run. Pyro's idiom:
`SVI.step` over torchvision's DataLoader with `ToTensor`. NumPyro's: one jitted `fori_loop` over images on the device.
Compilation is in an epoch before the one that is timed. The limit: the matrix products of those steps alone.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torchvision import datasets, transforms

import pyrovae as pv
from examples.benchmarks.workloads import WORKLOADS
from examples.reproduce.iwae import vae as pair
from pyrovae import reports

SIZES = ((784, 200, 200, 100), (50, 200, 200, 784))  # of encoder and decoder, heads included


def fit_epoch(data: pv.data.Data, batch_size: int, compiled: bool) -> float:
    options = {"batch_size": batch_size, "compile": compiled, "validation": False, "progress": False}
    run = pv.fit(pair(data), data, max_epochs=2, **options)
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


def numpyro_epoch(data: pv.data.Data, batch_size: int) -> Callable[[], float]:
    """An epoch that goes on from the last one, compiled by a first one here."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer import SVI as JaxSVI
    from numpyro.infer import TraceMeanField_ELBO
    from numpyro.optim import Adam

    from examples.benchmarks.peers_numpyro import PEERS, weights

    peer, module = PEERS["iwae"], WORKLOADS["iwae"].handwritten()[0]  # of the same sizes
    images = jnp.asarray(data.train["x"].flatten(1).numpy())
    svi = JaxSVI(peer.model, peer.guide, Adam(1e-3), TraceMeanField_ELBO())
    state = svi.init(jax.random.key(0), images[:batch_size].round(), init_params=weights(module))

    @jax.jit
    def epoch(state, key):
        order = jax.random.permutation(key, len(images))

        def step(i, state):
            rows = jax.lax.dynamic_slice_in_dim(order, i * batch_size, batch_size)
            bits = jax.random.bernoulli(jax.random.fold_in(key, i), images[rows]).astype(images.dtype)
            return svi.update(state, bits)[0]

        return jax.lax.fori_loop(0, len(images) // batch_size, step, state)

    state = jax.block_until_ready(epoch(state, jax.random.key(1)))

    def timed() -> float:
        nonlocal state
        began = time.perf_counter()
        state = jax.block_until_ready(epoch(state, jax.random.key(2)))
        return time.perf_counter() - began

    return timed


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
    columns = {
        "pyrovae compiled": lambda: fit_epoch(data, options.batch_size, True),
        "pyrovae eager": lambda: fit_epoch(data, options.batch_size, False),
        "stock Pyro": lambda: stock_epoch(data, options.batch_size, options.root),
        "NumPyro": numpyro_epoch(data, options.batch_size),
        "matrix products": lambda: products_epoch(data, options.batch_size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in columns}
    for _ in range(options.repeats):
        for name, epoch in columns.items():
            seconds[name].append(epoch())
    for name, values in seconds.items():
        print(f"{name:<16} {statistics.median(values):6.2f} s an epoch of {len(data.train)} rows")
    record = {
        "seconds": seconds,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "versions": reports.versions(),
        "device": "cpu",
    }
    reports.write_json(record, options.out)


if __name__ == "__main__":
    main()
