r"""VQ-VAE of images: what a learned prior adds to the bound, how many codes are used, and samples of both priors.

    python -m examples.vq --seeds 0 1 2
    python -m examples.vq --seeds 0 1 2 --levels 2
    PYROVAE_DATA=<folder with MNIST/raw> python -m examples.vq --data mnist --num_codes 64 --channels 32 64 \
        --epochs 3 --prior_epochs 3 --batch_size 128

Stage one fits the pair with uniform p(k), stage two a PixelCNN to the codes of the training data. Both bounds are of
test data, in nats; the perplexity is that of all test codes, of K at most. Each run leaves a JSON file of all seeds and
a picture of the last one.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyrovae as pv
from pyrovae import reports
from pyrovae.evaluation import code_perplexity, encode, generate, reconstruct


def pixel_cnn(options: argparse.Namespace) -> Callable[..., pv.priors.PixelCNN]:
    return partial(pv.priors.PixelCNN, hidden=options.hidden)


def stage_two(vq: pv.VQVAE, train: pv.data.Split, options: argparse.Namespace, **common: Any) -> None:
    """A PixelCNN of the codes."""
    model = pv.CodeModel(vq.grid_shape, num_codes=options.num_codes, prior=pixel_cnn(options))
    codes = encode(vq, train, site="k", sample=True)
    pv.fit(model, codes, validation=0.1, max_epochs=options.prior_epochs, patience=5, lr=2e-3, **common)
    vq.bind_prior(model)


def stage_two_of_two(vq: pv.VQVAE2, train: pv.data.Split, options: argparse.Namespace, **common: Any) -> None:
    """PixelCNNs of the coarse codes, and of the fine codes given the coarse ones."""
    fine, coarse, z2 = (encode(vq, train, site=site, sample=True) for site in ("k1", "k2", "z2"))
    made = partial(pv.CodeModel, num_codes=options.num_codes, prior=pixel_cnn(options))
    above, below = made(coarse.shape[1:]), made(fine.shape[1:], context_shape=z2.shape[1:])
    for model, codes in ((above, coarse), (below, (fine, z2))):
        pv.fit(model, codes, validation=0.1, max_epochs=options.prior_epochs, patience=5, lr=2e-3, **common)
    vq.bind_priors(below, above)


def fitted(data: pv.data.Data, options: argparse.Namespace, seed: int) -> tuple[pv.Pair, dict]:
    torch.manual_seed(seed)
    start = time.perf_counter()
    family, finish = (pv.VQVAE, stage_two) if options.levels == 1 else (pv.VQVAE2, stage_two_of_two)
    vq = family(data.event_shape, num_codes=options.num_codes, code_dim=options.code_dim, channels=options.channels)
    vq.initialise_(next(data.train.sequential(1000))[0])
    common = {"batch_size": options.batch_size, "progress": False, "seed": seed}
    pv.fit(vq, data, objective=pv.Commitment(0.25), max_epochs=options.epochs, lr=2e-3, **common)
    test = data.test["x"]
    record = {
        f"perplexity{site[1:]}": code_perplexity(vq, test, site=site, num_codes=options.num_codes)
        for site in (("k",) if options.levels == 1 else ("k1", "k2"))
    }
    before = pv.elbo(vq, test, num_particles=1)
    record |= {"reconstruction": before.reconstruction["x"], "bound_uniform_prior": before.elbo.value}
    uniform = generate(vq, 16, like=(test[:1],), seed=seed)
    finish(vq, data.train, options, **common)
    record["bound_learned_prior"] = pv.elbo(vq, test, num_particles=1).elbo.value
    record["seconds"] = time.perf_counter() - start
    learned = generate(vq, 16, like=(test[:1],), seed=seed)
    pictures = torch.stack([test[:16], reconstruct(vq, test[:16]), uniform, learned])
    return vq, {"record": record, "pictures": pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default=None)
    parser.add_argument("--levels", type=int, choices=(1, 2), default=1, help="grids of codes: VQVAE or VQVAE2")
    parser.add_argument("--num_codes", type=int, default=32)
    parser.add_argument("--code_dim", type=int, default=8)
    parser.add_argument("--channels", type=int, nargs="+", default=[32])
    parser.add_argument("--hidden", type=int, default=32, help="channels of the prior")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--prior_epochs", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("examples/results/vq"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    data = pv.data.load(options.data, root=options.root)
    records = {}
    for seed in options.seeds:
        _, found = fitted(data, options, seed)
        records[seed] = found["record"]
        print(f"seed {seed}:", ", ".join(f"{name} {value:.2f}" for name, value in found["record"].items()))
    name = options.data if options.levels == 1 else f"{options.data}_two_levels"
    names = ["data", "reconstructions", "uniform p(k)", "learned p(k)"]
    print(pv.plots.save(pv.plots.rows(found["pictures"], names), options.out / f"{name}.png"))
    means = {name: statistics.mean(r[name] for r in records.values()) for name in records[options.seeds[0]]}
    setting = {key: value for key, value in vars(options).items() if key not in ("root", "out", "seeds")}
    record = {"setting": setting, "seeds": records, "mean": means, "versions": reports.versions(), "device": "cpu"}
    reports.write_json(record, options.out / f"{name}.json")
    print("mean:", ", ".join(f"{name} {value:.2f}" for name, value in means.items()))


if __name__ == "__main__":
    main()
