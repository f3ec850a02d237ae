"""A VAE on dynamically binarised MNIST, in the protocol of IWAE's one-layer row, with a shorter schedule.

    PYROVAE_DATA=<folder with MNIST/raw> python -m examples.mnist_vae --epochs 40 --seed 0

Networks 200-200 tanh, 50 latents, decoder bias from the training mean, batches of 20, Adam from 1e-3 to 1e-4 (Burda et
al. 2016 take 3280 epochs for it). The last epoch's parameters count; the test set is binarised once and only used for
the figure. Each seed leaves a JSON file; the last line is the mean of all seeds of the same setting so far.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import reports

PAPER = 86.76  # nats, VAE k = 1, one stochastic layer, 5000 importance samples


def pair(data: pv.data.Data) -> pv.VAE:
    vae = pv.VAE(data.event_shape, latent_dim=50, hidden=(200, 200))
    vae.likelihood.initialise_(data.train["x"].mean(0))
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--root", default=None)
    parser.add_argument("--out", type=Path, default=Path("examples/results/mnist_vae"))
    options = parser.parse_args()

    data = pv.data.load("mnist", root=options.root)
    torch.manual_seed(options.seed)
    vae = pair(data)
    run = pv.fit(
        vae,
        data,
        max_epochs=options.epochs,
        batch_size=options.batch_size,
        schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / options.epochs)),
        seed=options.seed,
    )
    estimate = pv.log_likelihood(vae, data.test, num_samples=options.num_samples)
    units = pv.active_units(vae, data.test)
    record = {
        "nll": -estimate.value,
        "standard_error": estimate.standard_error,
        "data_standard_error": estimate.data_standard_error,
        "num_samples": options.num_samples,
        "active_units": units.count,
        "seed": options.seed,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "fit_seconds": run.seconds,
        "versions": reports.versions(),
        "device": "cpu",
    }
    setting = f"epochs_{options.epochs}_batch_{options.batch_size}"
    options.out.mkdir(parents=True, exist_ok=True)
    reports.write_json(record, options.out / f"{setting}_seed_{options.seed}.json")
    print(f"seed {options.seed}: test NLL {record['nll']:.2f} ± {record['standard_error']:.3f} nats, {units}")
    values = [json.loads(path.read_text())["nll"] for path in sorted(options.out.glob(f"{setting}_seed_*.json"))]
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    print(f"{setting}: {statistics.mean(values):.2f}, sd {spread:.2f}, {len(values)} seeds; the paper's {PAPER}")


if __name__ == "__main__":
    main()
