"""Reverse and forward divergence on a posterior with two modes, fitted from the same start.

    python -m examples.forward_kl

The ELBO minimises KL(q || p(z | x)), whose Gaussian keeps one mode; reweighted wake-sleep minimises KL(p(z | x) || q),
whose Gaussian has the posterior's mean and variance.
"""

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyrovae as pv

PRIOR, NOISE, X = 0.1, 0.3, 2.0


class TwoModes(pv.Pair):
    """z ~ N(0.1, 1), x | z ~ N(z^2, 0.3^2): of z, x tells all but the sign; q(z) = N(loc, scale^2)."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(PRIOR), 1.0))
            pyro.sample("x", dist.Normal(z**2, NOISE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q().expand([len(x)]))

    def q(self) -> dist.Normal:
        return dist.Normal(self.loc, self.log_scale.exp())


def posterior(z: Tensor) -> Tensor:
    """p(z | x = 2) on a grid."""
    log_joint = dist.Normal(PRIOR, 1.0).log_prob(z) + dist.Normal(z**2, NOISE).log_prob(torch.tensor(X))
    return log_joint.softmax(0) / (z[1] - z[0])


def main() -> None:
    z = torch.linspace(-4, 4, 2001)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.fill_between(z, posterior(z), color="0.85", label="p(z | x)")
    objectives = {"reverse KL: ELBO": pv.ELBO(5), "forward KL: reweighted wake-sleep": pv.ReweightedWakeSleep(100)}
    for label, objective in objectives.items():
        pair = TwoModes()
        data = torch.full((100,), X)  # many draws at the same datum
        pv.fit(pair, data, objective=objective, batch_size=100, max_epochs=1500, lr=0.01, seed=0, progress=False)
        q = pair.q()
        print(f"{label}: q = N({q.loc.item():.2f}, {q.scale.item():.2f}^2)")
        ax.plot(z, q.log_prob(z).exp().detach(), label=label)
    mean = (posterior(z) * z).mean() / posterior(z).mean()
    sd = ((posterior(z) * (z - mean) ** 2).mean() / posterior(z).mean()).sqrt()
    print(f"p(z | x): mean {mean.item():.2f}, standard deviation {sd.item():.2f}")
    ax.set(xlabel="z", yticks=[], ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    print(pv.plots.save(ax, "examples/results/forward_kl.png"))


if __name__ == "__main__":
    main()
