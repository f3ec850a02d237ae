"""Hidden pixels of binary images: how well what is left tells them.

    python -m examples.inpainting --seed 0                     # scikit-learn's digits, minutes on a CPU
    python -m examples.inpainting --data mnist --root <folder with MNIST/raw> --epochs 20

Masks in training are drawn anew for each batch: half of the pixels, a rectangle or half of the image; those of the test
images are drawn once, from a fixed seed. The figure is minus the mean of log p(x_j | x_obs) over the hidden pixels j of
the test images, in nats, for

* mean-fill: each pixel Bernoulli with its mean over the training images;
* linear: probabilistic PCA by maximum likelihood, its exact conditional mean as Bernoulli probability, with latents and
  clipping chosen on validation images;
* VAE: of complete images, whose encoder takes no mask: the reconstruction of the mean-filled image, pseudo-Gibbs, and
  Metropolis-within-Gibbs, which converges to the model's own p(x_j | x_obs);
* InpaintingVAE, PartialVAE (which never sees a hidden pixel, in training either) and PosteriorMatching (the masked
  encoder of that VAE): the mean over importance-resampled codes.

Pairs with a mask also have log p(x_mis | x_obs), all hidden pixels together, per pixel. Each seed leaves a JSON file,
the first seed a picture; the last lines are the means of all seeds so far.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import nets, reports
from pyrovae.evaluation import impute, impute_by_gibbs, missing_log_likelihood, reconstruct


def nll(p: Tensor, x: Tensor, mask: Tensor) -> float:
    """Nats per hidden pixel of Bernoulli probabilities."""
    p = p.double().clamp(1e-6, 1 - 1e-6)
    return -(x.double() * p.log() + (1 - x.double()) * (1 - p).log())[~mask].mean().item()


def probabilistic_pca(x: Tensor, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance W W' + s^2 I at the maximum of the likelihood (Tipping & Bishop 1999, eqs. 7 and 8)."""
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))  # ascending
    noise = values[:-latent_dim].mean()
    top = vectors[:, -latent_dim:]
    return x.mean(0), top @ (values[-latent_dim:] - noise).diag() @ top.T + noise * torch.eye(x.size(1), dtype=x.dtype)


def conditional_means(mean: Tensor, covariance: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """E[x | x_obs] of a Gaussian, row by row."""
    filled = x.clone()
    for row, seen in enumerate(mask):
        solved = torch.linalg.solve(covariance[seen][:, seen], (x[row] - mean)[seen])
        filled[row, ~seen] = mean[~seen] + covariance[~seen][:, seen] @ solved
    return filled


def linear(train: Tensor, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> tuple[float, dict]:
    """NLL of the best linear imputation, and its settings."""
    train = train.flatten(1).double()
    (vx, vm), (tx, tm) = ((x.flatten(1).double(), mask.flatten(1)) for x, mask in (validation, test))
    tried = []
    for latent_dim in (4, 8, 16, 32):
        fitted = probabilistic_pca(train, latent_dim)
        p = conditional_means(*fitted, vx, vm)
        tried += [(nll(p.clamp(clip, 1 - clip), vx, vm), latent_dim, clip) for clip in (0.01, 0.02, 0.05, 0.1)]
    _, latent_dim, clip = min(tried)
    p = conditional_means(*probabilistic_pca(train, latent_dim), tx, tm).clamp(clip, 1 - clip)
    return nll(p, tx, tm), {"latent_dim": latent_dim, "clip": clip}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="a name or a path, as pyrovae.data.load takes it")
    parser.add_argument("--root", default=None)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=180, help="test images at most")
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("examples/results/inpainting"))
    options = parser.parse_args()

    began = time.perf_counter()
    draw = pv.data.one_of(pv.data.pixels(0.5), pv.data.rectangle(), pv.data.half())
    data = pv.data.masked(pv.data.load(options.data, root=options.root), draw)
    rows = slice(options.rows)
    test, validation = (split.select("x", "mask").rows(rows) for split in (data.test, data.validation))
    hidden = {"x": test[0], "mask": test[1]}
    event_shape, latent_dim = data.event_shape, 16

    torch.manual_seed(options.seed)
    train_mean = data.train["x"].mean(0)
    bits = data.train.fixed(options.seed).rows(slice(10_000))[0]
    figures = {"mean-fill": nll(train_mean.expand_as(test[0]), *test)}
    figures["linear"], settings = linear(bits, validation, test)

    fit = partial(pv.fit, max_epochs=options.epochs, patience=max(20, options.epochs // 5), progress=False)
    vae = pv.VAE(event_shape, latent_dim)
    vae.likelihood.initialise_(train_mean)
    fit(vae, data, seed=options.seed)
    filled = torch.where(test[1], test[0], train_mean)
    figures["VAE, mean-filled x"] = nll(reconstruct(vae, filled, num_samples=100), *test)
    pseudo = impute_by_gibbs(vae, hidden, num_imputations=5, num_steps=100, metropolis=False)
    figures["VAE, pseudo-Gibbs"] = nll(pseudo.mean, *test)
    figures["VAE, Metropolis-within-Gibbs"] = nll(impute_by_gibbs(vae, hidden, num_steps=200).mean, *test)

    matching = pv.PosteriorMatching(vae)
    partial_convolution = partial(nets.PartialConvEncoder, channels=(32, 64))
    pairs = {
        "PosteriorMatching": matching,
        "InpaintingVAE": pv.InpaintingVAE(event_shape, latent_dim),
        "InpaintingVAE, partial convolution": pv.InpaintingVAE(event_shape, latent_dim, encoder=partial_convolution),
        "PartialVAE": pv.PartialVAE(event_shape, latent_dim),
    }
    joint, ess, found = {}, {}, {}
    for name, pair in pairs.items():
        if pair is not matching:
            pair.likelihood.initialise_(train_mean)
        fit(pair, data, seed=options.seed)
        imputer = pair.partial_vae() if pair is matching else pair
        found[name] = impute(imputer, hidden, num_imputations=4, num_samples=options.num_samples)
        figures[name] = nll(found[name].mean, *test)
        estimate = missing_log_likelihood(imputer, hidden, num_samples=options.num_samples)
        joint[name] = -estimate.value * len(test[0]) / (~test[1]).sum().item()
        ess[name] = found[name].ess.median().item()

    record = {
        "nll_per_hidden_pixel": figures,
        "joint_nll_per_hidden_pixel": joint,
        "median_effective_samples": ess,
        "linear": settings,
        "data": Path(options.data).stem,
        "test_rows": len(test[0]),
        "hidden_fraction": (~test[1]).double().mean().item(),
        "epochs": options.epochs,
        "num_samples": options.num_samples,
        "seed": options.seed,
        "seconds": time.perf_counter() - began,
        "versions": reports.versions(),
        "device": "cpu",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    reports.write_json(record, options.out / f"{record['data']}_seed_{options.seed}.json")
    if options.seed == 0:
        pictured = torch.cat([found["PosteriorMatching"].mean[None], found["PosteriorMatching"].x])
        ax = pv.plots.completions(*test, pictured, num=12)
        ax.set_yticklabels(["data", "observed", "mean", "1", "2", "3", "4"])
        print(pv.plots.save(ax, options.out / f"{record['data']}.png"))
    runs = [json.loads(path.read_text()) for path in sorted(options.out.glob(f"{record['data']}_seed_*.json"))]
    for name in figures:
        values = [run["nll_per_hidden_pixel"][name] for run in runs if name in run["nll_per_hidden_pixel"]]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name:38s} {statistics.mean(values):.3f} ± {spread:.3f} nats per hidden pixel, {len(values)} seeds")


if __name__ == "__main__":
    main()
