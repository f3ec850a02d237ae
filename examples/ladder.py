"""A ladder and hierarchical VAEs of equal depth on the same data: which layers each makes use of, and their NLL.

    python -m examples.ladder --seeds 0 1 2
    PYROVAE_DATA=<folder with MNIST/raw> python -m examples.ladder --data mnist --latent_dims 64 32 16 8 4

All have the same widths and schedule. The hierarchical VAE is there twice: as it is, and with what the ladder has too,
batch norm, softplus variances and warm-up of the KL; from that one only the ladder's guide differs. Each seed leaves a
JSON file, and the last one a picture: the KL of each layer, and how many of its units have a KL above 0.01 nats (a unit
of the lower layers can vary with the data only because the layer above does).
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import reports

PAIRS = {
    "hierarchical VAE": pv.HierarchicalVAE,
    "hierarchical VAE, batch norm, warm-up": partial(
        pv.HierarchicalVAE, posterior=pv.conditionals.SoftplusNormal, batch_norm=True
    ),
    "ladder VAE": partial(pv.LadderVAE, batch_norm=True),
}


def fitted(name: str, data: pv.data.Data, options: argparse.Namespace, seed: int) -> tuple[pv.Pair, pv.Run]:
    torch.manual_seed(seed)
    hidden = [(8 * dim,) * 2 for dim in options.latent_dims]  # the paper's 512, 256, ... for 64, 32, ...
    pair = PAIRS[name](data.event_shape, options.latent_dims, hidden=hidden)
    warm_up = pv.schedules.Linear(0.0, 1.0, epochs=options.epochs / 2)
    run = pv.fit(
        pair,
        data,
        objective=pv.ELBO(beta=1.0 if name == "hierarchical VAE" else warm_up),
        max_epochs=options.epochs,
        batch_size=options.batch_size,
        lr=2e-3,
        schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / options.epochs)),
        seed=seed,
        progress=False,
    )
    return pair, run


def units_above(pair: pv.Pair, x: torch.Tensor, site: str, threshold: float = 0.01) -> tuple[int, int]:
    """How many units of a layer have a KL above the threshold, and how many there are."""
    with torch.no_grad():
        kl = pv.ledger(pair.eval(), x, num_particles=50).kl_by_dimension(site).mean((0, 1))
    return int((kl > threshold).sum()), len(kl)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default=None)
    parser.add_argument("--latent_dims", type=int, nargs="+", default=[16, 12, 8, 6, 4])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("examples/results/ladder"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    data = pv.data.load(options.data, root=options.root)
    nll: dict[str, list[float]] = {name: [] for name in PAIRS}
    for seed in options.seeds:
        record = {}
        for name in PAIRS:
            pair, run = fitted(name, data, options, seed)
            estimate = pv.log_likelihood(pair, data.test, num_samples=options.num_samples)
            parts = pv.elbo(pair, data.test)
            kl = dict(sorted(parts.kl.items()))
            units = {site: units_above(pair, data.test["x"][:1000], site) for site in kl}
            nll[name].append(-estimate.value)
            record[name] = {
                "nll": -estimate.value,
                "standard_error": estimate.standard_error,
                "elbo": parts.elbo.value,
                "kl": kl,
                "units_above_0.01_nats": {site: f"{count} / {total}" for site, (count, total) in units.items()},
                "active_units": {site: found.count for site, found in pv.active_layers(pair, data.test).items()},
                "fit_seconds": run.seconds,
            }
            print(f"seed {seed}, {name}: NLL {-estimate.value:.2f}, ELBO {parts.elbo.value:.2f}, KL {kl}, {units}")
        setting = {key: getattr(options, key) for key in ("data", "latent_dims", "epochs", "batch_size", "num_samples")}
        record |= {"seed": seed, **setting, "versions": reports.versions(), "device": "cpu"}
        reports.write_json(record, options.out / f"{options.data}_seed_{seed}.json")
    ax = pv.plots.layers(
        {name: record[name]["kl"] for name in PAIRS}, {name: record[name]["units_above_0.01_nats"] for name in PAIRS}
    )
    print(pv.plots.save(ax, options.out / f"{options.data}_layers.png"))
    for name, values in nll.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name}: NLL {statistics.mean(values):.2f}, sd {spread:.2f}, {len(values)} seeds")


if __name__ == "__main__":
    main()
