"""Categorical latents, trained in four ways and compared as one hard model.

    python -m examples.discrete_latents --seeds 0 1 2

Two latents of 16 classes on digits. Whatever it was trained by, each pair is evaluated with the categories themselves:
its ELBO by enumeration (no noise), its log-likelihood by enumeration (exact) and by 1000 importance samples. Each run
leaves a JSON file.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import reports

WAYS: dict[str, tuple[dict, Callable[[], pv.Objective]]] = {
    "enumeration": ({"enumerate": True}, pv.ELBO),
    "Gumbel, straight-through": ({"posterior": pv.conditionals.GumbelSoftmax}, pv.ELBO),
    "Gumbel, relaxed": ({"posterior": partial(pv.conditionals.GumbelSoftmax, hard=False)}, pv.ELBO),
    "VIMCO, K = 5": ({}, partial(pv.VIMCO, 5)),
    "reweighted wake-sleep, K = 5": ({}, partial(pv.ReweightedWakeSleep, 5)),
}


def row(name: str, data: pv.data.Data, options: argparse.Namespace, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    pair_options, objective = WAYS[name]
    pair = pv.CategoricalVAE(
        data.event_shape,
        num_latents=options.num_latents,
        num_classes=options.num_classes,
        hidden=(100,),
        **pair_options,
    )
    start = time.perf_counter()
    pv.fit(pair, data, objective=objective(), max_epochs=options.epochs, lr=3e-3, seed=seed, progress=False)
    seconds, exact, x = time.perf_counter() - start, pair.exact(), data.test["x"]
    with torch.no_grad():
        log_p = pv.log_weights(exact, x)[0].mean().item()
    exact.enumerate = False
    sampled = pv.log_likelihood(exact, x, num_samples=1000, seed=seed).value
    exact.enumerate = True
    elbo = pv.elbo(exact, x, num_particles=1).elbo.value
    return {"elbo": elbo, "log_likelihood": log_p, "by_samples": sampled, "fit_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_latents", type=int, default=2)
    parser.add_argument("--num_classes", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("examples/results/discrete_latents.json"))
    options = parser.parse_args()
    data = pv.data.load("digits")
    record: dict = {
        "setting": {"epochs": options.epochs, "latents": options.num_latents, "classes": options.num_classes}
    }
    print(f"{'trained by':30} {'ELBO':>8} {'log p(x)':>9} {'1000 samples':>13} {'sd':>5}")
    for name in WAYS:
        rows = {seed: row(name, data, options, seed) for seed in options.seeds}
        mean = {key: statistics.mean(r[key] for r in rows.values()) for key in rows[options.seeds[0]]}
        sd = statistics.stdev(r["log_likelihood"] for r in rows.values()) if len(rows) > 1 else float("nan")
        print(f"{name:30} {mean['elbo']:8.2f} {mean['log_likelihood']:9.2f} {mean['by_samples']:13.2f} {sd:5.2f}")
        record[name] = {"seeds": rows, "mean": mean, "sd_log_likelihood": sd}
    reports.write_json(record | {"versions": reports.versions(), "device": "cpu"}, options.out)


if __name__ == "__main__":
    main()
