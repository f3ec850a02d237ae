"""The capacity objective on digits: how closely the KL follows a rising C, and which dimensions it goes to.

    python -m examples.capacity

C rises from 0 to 20 nats over 2000 epochs and stays there for 200. Why the settings are what they are: |KL - C| has a
kink where training wants to be, so that its gradient is gamma dKL, up or down, and never small. Adam divides gamma out
again, and its momentum turns the kink into an oscillation of some ten steps, whose height falls with the learning rate
alone. And a batch of 128 rows knows its own mean KL to 0.1 nats only, which no learning rate mends. Hence all rows in
each batch and a small learning rate; with batches of 128 and 1e-3 the KL is off by 3 %, for any gamma from 10 to 1000.
"""

import argparse
import statistics
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import reports
from pyrovae.training.schedules import Linear

GAMMA, TOP, RISE, HOLD, LR, EVERY = 10.0, 20.0, 2000, 200, 1e-4, 10


def follow(data: pv.data.Data, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """C at every tenth epoch, (S,), and the KL of each dimension there, (S, L), of each split."""
    torch.manual_seed(seed)
    vae = pv.VAE(data.event_shape, latent_dim=8, hidden=(128,))
    splits = {name: next(split.fixed(0).select("x").sequential(len(split))) for name, split in data.splits.items()}
    capacity, kl = [], {name: [] for name in splits}

    def look(run):
        if run.epoch % EVERY == 0:
            capacity.append(run.history.last["C"])
            for name, rows in splits.items():
                with torch.no_grad():
                    kl[name].append(pv.ledger(vae, *rows).kl_by_dimension("z").mean((0, 1)))

    pv.fit(
        vae,
        data.train,
        objective=pv.Capacity(GAMMA, Linear(0.0, TOP, RISE)),
        max_epochs=RISE + HOLD,
        batch_size=len(data.train),
        lr=LR,
        compile=True,
        callbacks=[look],
        seed=seed,
        progress=False,
    )
    return torch.tensor(capacity), {name: torch.stack(values) for name, values in kl.items()}


def off(capacity: torch.Tensor, kl: torch.Tensor) -> dict[str, float]:
    """|KL - C| / C from 1 nat on: its mean and its largest value, and the mean of (KL - C) / C at the end."""
    error = (kl.sum(1) - capacity) / capacity
    rising = error[capacity >= 1].abs()
    return {"mean": rising.mean().item(), "largest": rising.max().item(), "end": error[-HOLD // EVERY :].mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    options = parser.parse_args()
    data, seeds = pv.data.load("digits"), []
    for seed in options.seeds:
        capacity, kl = follow(data, seed)
        seeds.append({"seed": seed, "off": {name: off(capacity, values) for name, values in kl.items()}})
        print(f"seed {seed}:", ", ".join(f"{name} {100 * e['mean']:.2f} %" for name, e in seeds[-1]["off"].items()))
        if seed == options.seeds[0]:
            ax = pv.plots.capacity_curves(capacity, kl["train"])
            print(pv.plots.save(ax, options.out / "capacity.png"))
    settings = {"gamma": GAMMA, "C": TOP, "rise": RISE, "hold": HOLD, "lr": LR, "batch_size": len(data.train)}
    record = {**settings, "seeds": seeds, "versions": reports.versions(), "device": "cpu"}
    reports.write_json(record, options.out / "capacity.json")
    for name in data.splits:
        values = [100 * seed["off"][name]["mean"] for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        largest = 100 * max(seed["off"][name]["largest"] for seed in seeds)
        print(
            f"{name}: mean |KL - C| / C {statistics.mean(values):.2f} ± {spread:.2f} %, {len(values)} seeds", end="; "
        )
        print(f"{largest:.1f} % at most")


if __name__ == "__main__":
    main()
