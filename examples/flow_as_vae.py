"""A normalizing flow trained as the VAE that it is, and by maximum likelihood: trajectories that rounding alone parts.

    python -m examples.flow_as_vae

Two moons. The flow's ELBO and IWAE, their KL to the posterior, and the log-likelihood of the same flow fitted directly;
its density and that of a VAE of about as many parameters, whose log p(x) is estimated with 1000 samples.
"""

import math
from functools import partial
from pathlib import Path

import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv
from pyrovae import reports
from pyrovae.conditionals import LearnedNormal
from pyrovae.models.flow import AffineCoupling, SplineCoupling

RESULTS = Path(__file__).parent / "results"
SEED, EPOCHS = 0, 60
FIT = {
    "max_epochs": EPOCHS,
    "batch_size": 200,
    "lr": 3e-3,
    "seed": SEED,
    "progress": False,
    "compile": False,
    "precision": "float64",
}


def moons(count: int, seed: int) -> Tensor:
    """Two half circles with noise 0.1, of about unit variance."""
    generator = torch.Generator().manual_seed(seed)
    angle, side = math.pi * torch.rand(count, generator=generator), torch.rand(count, generator=generator) < 0.5
    first = torch.where(side, angle.cos(), 1 - angle.cos()), torch.where(side, angle.sin(), 0.5 - angle.sin())
    noise = 0.1 * torch.randn(count, 2, generator=generator)
    return ((torch.stack(first, 1) + noise - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])).double()


class Direct(pv.Pair):
    """The same flow with nothing latent: its density is one factor."""

    def __init__(self, flow: pv.NormalizingFlow):
        super().__init__()
        self.couplings, self.density = flow.couplings, partial(log_density, flow)

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.factor("log p(x)", self.density(x))

    def guide(self, x):
        pass


def log_density(flow: pv.NormalizingFlow, x: Tensor) -> Tensor:
    """log p(x) by the change of variables."""
    z, log_det = flow.inverse(x)
    return flow.prior().log_prob(z) - log_det


def made(coupling) -> pv.NormalizingFlow:
    torch.manual_seed(SEED)
    return pv.NormalizingFlow(2, num_layers=6, hidden=(48,), coupling=coupling)


def main() -> None:
    train, test = moons(2000, 0), moons(2000, 1)
    axis = torch.linspace(-3, 3, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = iter(figure.subplots(1, 4))
    next(axes).scatter(*test.T, s=2, color="0.3", linewidths=0)
    record: dict[str, dict[str, float]] = {}
    densities = {}
    for name, coupling in {"affine couplings": AffineCoupling, "splines": SplineCoupling}.items():
        flow, direct = made(coupling), made(coupling)
        pv.fit(flow, train, **FIT)
        pv.fit(Direct(direct), train, objective=pv.ELBO(), **FIT)
        with torch.no_grad():
            exact = log_density(flow, test)
            apart = pv.log_weights(flow, test, num_particles=5) - exact  # its mean is -KL(q || p(z | x))
            record[name] = {
                "elbo": pv.elbo(flow, test).elbo.value,
                "iwae_50": pv.log_likelihood(flow, test, num_samples=50).value,
                "log_likelihood": exact.mean().item(),
                "data_standard_error": (exact.std() / math.sqrt(len(exact))).item(),
                "largest_kl": apart.abs().max().item(),
                "fitted_directly": log_density(direct, test).mean().item(),
            }
            densities[name] = log_density(flow, grid)
    torch.manual_seed(SEED)
    vae = pv.VAE(2, latent_dim=2, hidden=(32, 32), likelihood=LearnedNormal)
    pv.fit(vae, train, **FIT)
    found = pv.log_likelihood(vae, test, num_samples=1000)
    record["VAE"] = {
        "elbo": pv.elbo(vae, test).elbo.value,
        "iwae_50": pv.log_likelihood(vae, test, num_samples=50).value,
        "log_likelihood": found.value,
        "data_standard_error": found.data_standard_error,
    }
    densities["VAE"] = pv.log_likelihood(vae, grid, num_samples=100).per_datum

    columns = ["elbo", "iwae_50", "log_likelihood", "data_standard_error", "largest_kl", "fitted_directly"]
    print(f"{'nats per test datum':<20}" + "".join(f"{column:>21}" for column in columns))
    for name, values in record.items():
        print(f"{name:<20}" + "".join(f"{values[c]:>21.5f}" if c in values else f"{'':>21}" for c in columns))
    for ax, (name, log_p) in zip(axes, densities.items(), strict=True):
        mass = log_p.exp().sum().item() * (axis[1] - axis[0]).item() ** 2
        image = log_p.exp().reshape(len(axis), -1).T
        ax.imshow(image, origin="lower", extent=(-3, 3, -3, 3), cmap="viridis", vmin=0, vmax=0.5)
        ax.set_title(f"{name}: {record[name]['log_likelihood']:.2f} nats, mass {mass:.3f}", fontsize=9)
    for ax in figure.axes:
        ax.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
    figure.axes[0].set_title("test data", fontsize=9)
    print(pv.plots.save(figure.axes[0], RESULTS / "flow_as_vae.png"))
    settings = {"epochs": EPOCHS, "rows": 2000, "seed": SEED, "versions": reports.versions()}
    reports.write_json({"figures": record, **settings}, RESULTS / "flow_as_vae.json")


if __name__ == "__main__":
    main()
