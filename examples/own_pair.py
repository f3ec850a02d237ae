"""Somebody's own Pyro program, written with plain functions and pyro.param: fitted, evaluated and checked."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import pyrovae as pv


def model(x):  # binomial factor analysis of handwritten digits, whose pixels are counts from 0 to 16
    weight = pyro.param("weight", lambda: 0.01 * torch.randn(8, 64))
    bias = pyro.param("bias", torch.zeros(64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.sample("x", dist.Binomial(16, logits=z @ weight + bias).to_event(1), obs=x)


def guide(x):
    loading = pyro.param("loading", torch.zeros(64, 8))
    offset = pyro.param("offset", torch.zeros(8))
    scale = pyro.param("scale", torch.ones(8), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ loading + offset, scale).to_event(1))


if __name__ == "__main__":
    digits = pv.data.load("digits", binarize=None)
    train, test = (16 * split["x"].flatten(1) for split in (digits.train, digits.test))
    run = pv.fit((model, guide), train, validation=0.1, max_epochs=60, lr=1e-2, patience=10, seed=0)
    print(pv.elbo((model, guide), test))
    print(pv.log_likelihood((model, guide), test, num_samples=1000))
    print(pv.check((model, guide), test))
