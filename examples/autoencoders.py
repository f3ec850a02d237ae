"""Auto-encoders: stacked features of unlabelled images at 100 labels, and denoising.

    python -m examples.autoencoders --seed 0
    PYROVAE_DATA=<folder with MNIST/raw> python -m examples.autoencoders --data mnist --hidden 500 500 2000 \\
        --latent_dim 10 --epochs 2 --finetune_epochs 4 --batch_size 256

Features: `pretrain_stacked` on all training images, whose labels it does not see, with Vincent et al.'s masking noise
(no dropout of the codes); then a classifier on 100 labelled ones, ten of each class, for five draws of them. Pixels,
codes of the same auto-encoder fitted as a whole without pretraining, and the stacked ones get the same classifiers
(logistic regression and a support-vector machine), of which five-fold cross-validation on these 100 chooses.

Denoising: a denoising auto-encoder for each corruption, and a plain one of the same networks, fitted for as long. Both
get the corrupted test images, and are compared with the clean ones: cross-entropy in nats, squared error.

Each seed leaves a JSON file, the first one pictures too.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn
from torch.nn.functional import binary_cross_entropy

import pyrovae as pv
from pyrovae import reports
from pyrovae.evaluation import reconstruct
from pyrovae.evaluation.features import Features
from pyrovae.nets import GaussianNoise, Masking, SaltAndPepper

CORRUPTIONS = {
    "masking": partial(Masking, 0.5),
    "gaussian": partial(GaussianNoise, 0.5),
    "salt_and_pepper": partial(SaltAndPepper, 0.4),
}


def network(event_shape: tuple[int, ...], latent_dim: int, hidden: list[int], **options) -> pv.Autoencoder:
    """DEC's: ReLU, and linear maps to the code and to the logits."""
    relu = partial(pv.nets.MLP, activation=nn.ReLU)
    encoder, decoder = relu(event_shape, hidden), relu(latent_dim, hidden[::-1])
    likelihood = pv.conditionals.CrossEntropy
    return pv.Autoencoder(event_shape, latent_dim, encoder=encoder, decoder=decoder, likelihood=likelihood, **options)


def labelled(y: np.ndarray, draw: int, each: int = 10) -> np.ndarray:
    """Rows of `each` labelled images of every class."""
    order = np.random.default_rng(draw).permutation(len(y))
    return np.concatenate([order[y[order] == label][:each] for label in np.unique(y)])


def classifier(seed: int) -> GridSearchCV:
    """One of two kinds, whatever the features, chosen on the labelled images alone."""
    steps = Pipeline([("scale", StandardScaler()), ("classify", SVC())])
    grid = [
        {"classify": [LogisticRegression(max_iter=2000)], "classify__C": [0.001, 0.01, 0.1, 1.0]},
        {"classify": [SVC()], "classify__C": [1.0, 10.0], "classify__gamma": ["scale", 0.003, 0.01, 0.03]},
    ]
    return GridSearchCV(steps, grid, cv=StratifiedKFold(5, shuffle=True, random_state=seed))


def errors_at_100_labels(features: dict[str, tuple], y: tuple, draws: int) -> dict[str, list[float]]:
    """Test error in per cent of each kind of features (train, test), for each draw of labels."""
    found: dict[str, list[float]] = {name: [] for name in features}
    for draw in range(draws):
        rows = labelled(y[0], draw)
        for name, (train, test) in features.items():
            fitted = classifier(draw).fit(train[rows], y[0][rows])
            found[name].append(100 * float(np.mean(fitted.predict(test) != y[1])))
    return found


def errors_of(mean: torch.Tensor, x: torch.Tensor) -> dict[str, float]:
    """Of reconstructions of images x, per image."""
    clipped = mean.clamp(1e-4, 1 - 1e-4)  # what corrupts may be compared too, with its zeros and ones
    nats = binary_cross_entropy(clipped, x, reduction="sum") / len(x)
    return {"cross_entropy": float(nats), "squared_error": float((mean - x).square().sum() / len(x))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default=None)
    parser.add_argument("--hidden", type=int, nargs="+", default=[200, 200])
    parser.add_argument("--latent_dim", type=int, default=32)
    parser.add_argument("--noise", type=float, default=0.25, help="share of masked inputs of each layer")
    parser.add_argument("--epochs", type=int, default=60, help="of each layer")
    parser.add_argument("--finetune_epochs", type=int, default=60, help="of all layers; of the denoisers too")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=5, help="of 100 labels")
    parser.add_argument("--rows", type=int, default=2000, help="test images of the denoisers at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("examples/results/autoencoders"))
    options = parser.parse_args()

    began = time.perf_counter()
    data = pv.data.load(options.data, root=options.root, binarize=None)
    shape, train, test = data.event_shape, data.train, data.test
    make = partial(network, shape, options.latent_dim, options.hidden)
    fit = {"batch_size": options.batch_size, "seed": options.seed, "progress": False, "validation": False}

    torch.manual_seed(options.seed)
    stacked, whole = make(), make(corruption=partial(Masking, options.noise))
    noise = partial(Masking, options.noise)
    several = {"max_epochs": options.epochs, "finetune_epochs": options.finetune_epochs}
    corruptions = {"corruption": noise, "code_corruption": nn.Identity, "finetune_corruption": noise}
    pv.pretrain_stacked(stacked, train, **corruptions, **several, **fit)
    layers = len(options.hidden) + 1
    pv.fit(whole, train, max_epochs=options.epochs * layers + options.finetune_epochs, **fit)
    y = tuple(split["y"].numpy() for split in (train, test))
    x = tuple(split["x"].flatten(1).numpy() for split in (train, test))
    features = {"pixels": x}
    for name, pair in {"whole": whole, "stacked": stacked}.items():
        transform = Features(pair).fit(x[0])
        features[name] = tuple(transform.transform(part) for part in x)
    at_100_labels = errors_at_100_labels(features, y, options.draws)
    for name, values in at_100_labels.items():
        print(f"100 labels, {name}: {statistics.mean(values):.2f} % errors over {len(values)} draws")

    torch.manual_seed(options.seed)
    plain = make()
    pv.fit(plain, train, max_epochs=options.finetune_epochs, **fit)
    clean = test["x"][: options.rows]
    denoising, pictured = {}, {"image": clean[:12]}
    for name, corruption in CORRUPTIONS.items():
        torch.manual_seed(options.seed)
        pair = make(corruption=corruption)
        pv.fit(pair, train, max_epochs=options.finetune_epochs, **fit)
        torch.manual_seed(1000)  # the same corrupted images for each seed
        corrupted = corruption().corrupted(clean)
        means = {"plain": reconstruct(plain, corrupted), "denoising": reconstruct(pair, corrupted)}
        denoising[name] = {"corrupted": errors_of(corrupted, clean)}
        denoising[name] |= {kind: errors_of(mean, clean) for kind, mean in means.items()}
        pictured[name.replace("_", " ")] = corrupted[:12].clamp(0, 1)
        pictured |= {f"{kind}, of {name.replace('_', ' ')}": mean[:12] for kind, mean in means.items()}
        print(f"{name}: " + ", ".join(f"{kind} {each['cross_entropy']:.2f}" for kind, each in denoising[name].items()))

    setting = {name: value for name, value in vars(options).items() if name not in ("root", "out")}
    record = {
        "errors_at_100_labels": at_100_labels,
        "denoising": denoising,
        "reconstruction": {
            name: pv.elbo(pair, test).elbo.value for name, pair in {"whole": whole, "stacked": stacked}.items()
        },
        **setting,
        "seconds": time.perf_counter() - began,
        "versions": reports.versions(),
        "device": str(next(plain.parameters()).device),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = Path(options.data).stem
    reports.write_json(record, options.out / f"{stem}_seed_{options.seed}.json")
    if options.seed == 0:
        kinds = {
            "image": clean[:12],
            "stacked": reconstruct(stacked, clean[:12]),
            "whole": reconstruct(whole, clean[:12]),
        }
        for name, each in {"stacked": kinds, "denoising": pictured}.items():
            ax = pv.plots.rows(torch.stack([image.cpu() for image in each.values()]), list(each))
            print(pv.plots.save(ax, options.out / f"{stem}_{name}.png"))
    runs = [json.loads(path.read_text()) for path in sorted(options.out.glob(f"{stem}_seed_*.json"))]
    for name in at_100_labels:
        values = [value for run in runs for value in run["errors_at_100_labels"][name]]
        print(f"{name}: {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} % over {len(values)} draws")


if __name__ == "__main__":
    main()
