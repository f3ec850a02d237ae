"""Hidden Markov models of Bach's chorales: 229 / 76 / 77 piano rolls of 88 keys, 25 to 160 steps.

    PYROVAE_DATA=../shared/data python -m examples.chorales --seed 0

x_t | s_t is a product of Bernoullis, the states are summed exactly. Models of several numbers of states are trained by
gradients on log p(x), with early stopping on the validation chorales, which also pick the number of states; the test
chorales serve for the figures alone. The settings are those of model 1 of Pyro's examples/hmm.py (16 states; Adam with
lr 0.05 and beta 0.9, 0.999, batches of 20), but for its prior over the probabilities, which is not used, as in the
paper behind it (Obermeyer et al. 2019). That example prints minus log p(x) over the number of steps; so does this, and
the same over the 88 keys. What keys were struck in no training chorale costs little, but is counted.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

import pyrovae as pv
from pyrovae import reports


def per_step(hmm: pv.HMM, split: pv.data.Split) -> float:
    """log p of a time step, in nats: the sum over all chorales by the sum of their lengths."""
    with torch.no_grad():
        log_p = sum(float(pv.log_weights(hmm, *batch).sum()) for batch in split.sequential(20))
    return log_p / int(split["lengths"].sum())


def trained(data: pv.data.Data, num_states: int, *, epochs: int, seed: int) -> tuple[pv.HMM, dict[str, Any]]:
    torch.manual_seed(seed)
    hmm = pv.HMM(data.event_shape, num_states)
    x, lengths = data.train["x"], data.train["lengths"]
    hmm.likelihood.initialise_(x.sum((0, 1)) / lengths.sum())
    began = time.monotonic()
    run = pv.fit(
        hmm, data, batch_size=20, lr=0.05, max_epochs=epochs, patience=5, seed=seed, compile=False, progress=False
    )
    nats = {part: per_step(hmm, split) for part, split in data.splits.items()}
    record = {"states": num_states, "epochs": run.epoch, "seconds": round(time.monotonic() - began, 1)}
    return hmm, {**record, **{f"{part}_log_likelihood_per_step": value for part, value in nats.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("PYROVAE_DATA", "data"))
    parser.add_argument("--data", type=Path, default=root / "jsb_chorales" / "jsb_chorales.npz")
    parser.add_argument("--states", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("examples/results/chorales"))
    options = parser.parse_args()
    data = pv.data.load_sequences(options.data)
    print(data)
    records, best = [], -float("inf")
    for num_states in options.states:
        hmm, record = trained(data, num_states, epochs=options.epochs, seed=options.seed)
        records.append(record)
        print(record, flush=True)
        if record["validation_log_likelihood_per_step"] > best:
            best, chosen = record["validation_log_likelihood_per_step"], record
            path = pv.viterbi(hmm, *(data.test[name][:1] for name in ("x", "lengths")))[0]
    options.out.mkdir(parents=True, exist_ok=True)
    nats = chosen["test_log_likelihood_per_step"]
    figures = {
        "states_picked_on_validation": chosen["states"],
        "test_log_likelihood_per_step": nats,
        "test_log_likelihood_per_step_and_key": nats / data.event_shape[-1],
        "all": records,
        "viterbi_path_of_the_first_test_chorale": path[: int(data.test["lengths"][0])].tolist(),
        "seed": options.seed,
        "versions": reports.versions(),
        "device": "cpu",
    }
    reports.write_json(figures, options.out / f"seed_{options.seed}.json")
    print(f"{chosen['states']} states: {nats:.3f} nats a step, {nats / data.event_shape[-1]:.4f} a key")


if __name__ == "__main__":
    main()
