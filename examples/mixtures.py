"""One Gaussian mixture by gradients, EM and variational Bayes, beside scikit-learn's, on digits in a few dimensions.

    python -m examples.mixtures

All start from the same k-means partition. The log-likelihood is that of held-out digits under the mixture that each
found, for the Bayesian ones under the mixture at q's means; seconds are those of the fit. Leaves a JSON file.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from torch.nn.functional import one_hot

import pyrovae as pv
from pyrovae import reports
from pyrovae.models.conjugate import NormalWishart
from pyrovae.priors.covariances import FullCovariance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--num_components", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("examples/results/mixtures.json"))
    options = parser.parse_args()
    train, test = digits(options.dim)
    count, floor = options.num_components, 1e-3
    labels = torch.as_tensor(KMeans(count, n_init=1, random_state=0).fit(train.numpy()).labels_).long()
    start = one_hot(labels, count).to(train)

    def gaussian() -> pv.GaussianMixture:
        covariance = partial(FullCovariance, min_scale=floor)
        return pv.GaussianMixture(options.dim, count, covariance=covariance).to(train).initialise_(train, start)

    def by_gradients() -> torch.Tensor:
        pair = gaussian()
        pv.fit(pair, train, max_epochs=options.epochs, lr=1e-2, seed=0, compile=False, progress=False)
        return pv.log_marginal(pair, test)

    def by_em() -> torch.Tensor:
        pair = gaussian()
        pv.fit_em(pair, train, m_step=pair.maximize, max_epochs=options.iterations)
        return pv.log_marginal(pair, test)

    def by_variational_bayes() -> torch.Tensor:
        pair = pv.BayesianGaussianMixture(options.dim, count, components=NormalWishart, concentration=1 / count)
        pair.to(train).initialise_(train, start)
        pv.fit_em(pair.expected(), train, m_step=pair.maximize, max_epochs=options.iterations)
        return pv.log_marginal(pair.plain(), test)

    def scikit_learns() -> torch.Tensor:
        from_pair = gaussian()
        found = GaussianMixture(
            count,
            reg_covar=floor**2,
            tol=0.0,
            max_iter=options.iterations,
            weights_init=from_pair.component_weights.detach(),
            means_init=from_pair.component_means.detach(),
            precisions_init=torch.linalg.inv(from_pair.component_covariances.detach()),
        )
        return torch.as_tensor(found.fit(train.numpy()).score_samples(test.numpy()))

    def scikit_learns_bayesian() -> torch.Tensor:
        found = BayesianGaussianMixture(
            n_components=count,
            weight_concentration_prior_type="dirichlet_distribution",
            weight_concentration_prior=1 / count,
            mean_precision_prior=1.0,
            mean_prior=torch.zeros(options.dim),
            degrees_of_freedom_prior=options.dim + 2.0,
            covariance_prior=(options.dim + 2.0) * torch.eye(options.dim).numpy(),
            reg_covar=0.0,
            tol=0.0,
            max_iter=options.iterations,
            random_state=0,
        ).fit(train.numpy())
        # Its own score is no density: it takes expectations of logarithms.
        components = torch.distributions.MultivariateNormal(
            torch.as_tensor(found.means_), torch.as_tensor(found.covariances_)
        )
        weights = torch.distributions.Categorical(torch.as_tensor(found.weights_))
        return torch.distributions.MixtureSameFamily(weights, components).log_prob(test)

    ways = {
        "gradients (Adam)": by_gradients,
        "EM": by_em,
        "EM, scikit-learn": scikit_learns,
        "variational Bayes": by_variational_bayes,
        "variational Bayes, scikit-learn": scikit_learns_bayesian,
    }
    table = {}
    for name, way in ways.items():
        began = time.monotonic()
        value = float(way().mean())
        table[name] = {"log_likelihood": value, "seconds": round(time.monotonic() - began, 2)}
        print(f"{name:<32} {value:8.3f} nats  {table[name]['seconds']:6.2f} s")
    setting = {key: getattr(options, key) for key in ("dim", "num_components", "iterations", "epochs")}
    rows = {"train_rows": len(train), "test_rows": len(test)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    reports.write_json(
        {"table": table, **setting, **rows, "seed": 0, "versions": reports.versions(), "device": "cpu"}, options.out
    )


def digits(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test digits in their first principal components, of mean 0 and variance 1."""
    data = pv.data.load("digits", binarize=None)
    train, test = (split["x"].flatten(1).double() for split in (data.train, data.test))
    pca = PCA(dim, whiten=True, random_state=0).fit(train.numpy())
    projected = [torch.as_tensor(pca.transform(x.numpy())) for x in (train, test)]
    return projected[0], projected[1]


if __name__ == "__main__":
    main()
