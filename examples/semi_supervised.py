"""Digits with few labels: M2 and FactoredM2 beside their own classifier trained on the labels alone, test error in %.

    python -m examples.semi_supervised --labels 50 --seeds 0 1 2 3 4

Each seed draws its labels, as many of each class. Weights have the prior N(0, 1); alpha is 0.1 N / N_lab, as in Kingma
et al. 2014. The supervised pair is the same with beta=0: unlabelled rows count nothing.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import reports
from pyrovae.models.base import isolated_random_state

RESULTS = Path(__file__).parent / "results" / "semi_supervised"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    data = pv.data.load("digits")
    for seed in options.seeds:
        times = 5
        few = pv.data.hide_labels(data, options.labels, seed=seed, times=times)
        rows = len(data.train)
        alpha = 0.1 * rows / options.labels / times
        errors, seconds = {}, {}
        for name, form, beta in (("supervised", pv.M2, 0.0), ("M2", pv.M2, 1.0), ("FactoredM2", pv.FactoredM2, 1.0)):
            with isolated_random_state(seed):
                pair = form(data.event_shape, latent_dim=16, hidden=(200,))
            run = pv.fit(
                pair,
                few,
                objective=pv.SemiSupervised(alpha=alpha, beta=beta),
                max_epochs=options.epochs,
                batch_size=64,
                optimizer=partial(torch.optim.Adam, weight_decay=1 / rows),
                validation=False,
                seed=seed,
                progress=False,
            )
            errors[name] = 100 * pv.classification_error(pair, data.test)
            seconds[name] = run.seconds
            print(f"seed {seed}, {name}: {errors[name]:.1f} %", flush=True)
        record = {"error": errors, "labels": options.labels, "epochs": options.epochs, "seed": seed}
        record |= {"fit_seconds": seconds, "versions": reports.versions()}
        RESULTS.mkdir(parents=True, exist_ok=True)
        reports.write_json(record, RESULTS / f"digits_{options.labels}_seed_{seed}.json")


if __name__ == "__main__":
    main()
