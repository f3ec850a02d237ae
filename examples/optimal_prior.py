"""VAEs of digits with two latents under several priors: how far each prior is from the best one, the aggregate q(z).

    python -m examples.optimal_prior

The picture has q(z) over the training rows as shades and each prior as lines, with the components of the mixture and
of the VampPrior. The tables compare, for each trained pair, its prior with the others, which were trained with other
guides, and with q(z): no other prior gives its guide and decoder a higher ELBO on these rows.

The KL is warmed up, as the VampPrior's authors do: a prior made of q(z | x) is near any q(z), so that without it the
KL is 0 from the first step and stays there, z says nothing of x and the ELBO is 3 nats lower (ran).
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae import priors, reports
from pyrovae.training.schedules import Linear

RESULTS = Path(__file__).parent / "results"
COMPONENTS, CELLS = 20, 141
PRIORS = {
    "standard": priors.StandardNormal,
    "mixture": partial(priors.GaussianMixture, num_components=COMPONENTS, spread=0.9),
    "VampPrior": partial(priors.VampPrior, num_components=COMPONENTS),
    "RealNVP": partial(priors.RealNVP, num_layers=6, hidden=(64, 64)),
}


def components(pair: pv.VAE) -> torch.Tensor | None:
    """Where the components of a prior are, (C, 2)."""
    if isinstance(pair.prior, priors.GaussianMixture):
        return pair.prior.loc
    return pair.posterior_of(pair.prior.inputs()).mean if isinstance(pair.prior, priors.VampPrior) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    data = pv.data.load("digits")
    (rows,) = next(data.train.fixed(0).select("x").sequential(len(data.train)))
    pairs, record = {}, {}
    for name, prior in PRIORS.items():
        torch.manual_seed(options.seed)
        start = partial(prior, data=rows) if name == "VampPrior" else prior
        pairs[name] = pv.VAE(data.event_shape, latent_dim=2, hidden=(100, 100), prior=start)
        warm_up = pv.ELBO(beta=Linear(0.0, 1.0, options.epochs / 4))
        pv.fit(pairs[name], data.train, objective=warm_up, max_epochs=options.epochs, seed=options.seed, progress=False)
    figure = Figure(figsize=(16, 4.6), layout="constrained")
    for ax, (name, pair) in zip(figure.subplots(1, 4), pairs.items(), strict=True):
        others = {other: of.prior for other, of in pairs.items() if other != name}
        found = pv.compare_priors(pair, rows, others, num_particles=4)
        likelihood = pv.log_likelihood(pair, data.test, num_samples=1000)
        record[name] = {
            "test_log_likelihood": likelihood.value,
            "test_data_standard_error": likelihood.data_standard_error,
            "elbo": {prior: value.value for prior, value in found.elbo.items()},
            "marginal_kl": {prior: value.value for prior, value in found.marginal_kl.items()},
            "marginal_kl_error": {prior: value.standard_error for prior, value in found.marginal_kl.items()},
            "reconstruction": found.reconstruction.value,
            "information": found.information.value,
        }
        print(f"\nguide and decoder of the pair with the {name} prior; test log-likelihood {likelihood}\n{found}")
        with torch.no_grad():
            each = pair.posterior_of(rows)  # (N,)
            z = torch.cat([each.sample((5,)).flatten(0, 1), pair.prior().sample((5000,))])
            low, high = z.quantile(0.002, 0) - 0.5, z.quantile(0.998, 0) + 0.5  # the Vamp's q(z) may lie anywhere
            axes = [torch.linspace(float(start), float(end), CELLS) for start, end in zip(low, high, strict=True)]
            grid, extent = torch.cartesian_prod(*axes), (low[0], high[0], low[1], high[1])
            aggregate = torch.cat([each.log_prob(z[:, None]).exp().mean(1) for z in grid.split(1000)])
            q = aggregate.reshape(CELLS, CELLS)
            p = pair.prior().log_prob(grid).exp().reshape(CELLS, CELLS)
            pv.plots.latent_densities(q, p, extent, components=components(pair), ax=ax)
        own = found.marginal_kl["the pair's own"].value
        ax.set_title(f"{name}: KL(q(z) || p(z)) = {own:.2f} nats", fontsize=10, pad=28)
    print(pv.plots.save(figure.axes[0], options.out / "optimal_prior.png"))
    settings = {"seed": options.seed, "epochs": options.epochs, "rows": len(rows), "versions": reports.versions()}
    reports.write_json({"pairs": record, **settings, "device": "cpu"}, options.out / "optimal_prior.json")


if __name__ == "__main__":
    main()
