"""Three of Pyro's own idioms, trained by `fit` with compiled steps: plain functions, a PyroModule, an autoguide.

python -m examples.pyro_idioms
"""

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroParam, PyroSample, pyro_method
from torch import nn
from torch.distributions import constraints

import pyrovae as pv

DIGITS = pv.data.load("digits")
X = DIGITS.train["x"].flatten(1).round()  # (1437, 64)
TOTALS = X.sum(1)


def functions():
    """As in Pyro's introduction: two functions, `pyro.module` and `pyro.param`."""
    encoder, decoder = nn.Linear(64, 16), nn.Linear(8, 64)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        sharpness = pyro.param("sharpness", torch.ones(8), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) / sharpness).to_event(1))

    return (model, guide), X


class FactorAnalysis(PyroModule):
    """A PyroModule whose model and guide are methods."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(8, 64))
        self.scale = PyroParam(torch.ones(64), constraint=constraints.positive)
        self.encoder = PyroModule[nn.Linear](64, 16)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight, self.scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(scale)).to_event(1))


def pyro_module():
    """A model and a guide in one PyroModule."""
    return FactorAnalysis(), X


class Regression(PyroModule):
    """How much ink a digit has, from every second pixel, with a prior over the weights."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](32, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 32]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y):
        loc = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def autoguide():
    """A model with global latent variables, and a guide that Pyro makes; all rows in each step."""
    model = Regression()
    return (model, AutoDiagonalNormal(model)), (X[:, ::2], TOTALS)


def main() -> None:
    for idiom in (functions, pyro_module, autoguide):
        losses = {}
        for compiled in (False, True):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            pair, data = idiom()
            options = {"batch_size": len(X)} if idiom is autoguide else {}
            run = pv.fit(pair, data, objective=Trace_ELBO(), max_epochs=20, compile=compiled, seed=0, **options)
            seconds = run.history["seconds"]
            losses[compiled] = run.history["train_loss"][-1]
            milliseconds = 1e3 * (seconds[-1] - seconds[2]) / (len(seconds) - 3)
            steps = "compiled" if compiled else "eager"
            print(f"{idiom.__name__:<12} {steps:<9} {losses[compiled]:.5f} nats, {milliseconds:.1f} ms an epoch")
        assert abs(losses[True] - losses[False]) < 1e-3 * abs(losses[False])


if __name__ == "__main__":
    main()
