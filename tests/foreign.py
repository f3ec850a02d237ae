"""Small pairs as Pyro's users write them. They know nothing of this library.

`PROGRAMS` can be frozen into a graph. `UNCAPTURABLE` cannot: what they do is decided in Python at each call, or stops
being finite. Each value of the two is a factory; what it makes has torch's default dtype of that moment.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

__all__ = ["PROGRAMS", "UNCAPTURABLE", "Program"]


class Program(NamedTuple):
    """A pair and how its author trains it.

    Attributes:
        pair: an object with model and guide, or a tuple of two callables.
        batch: what one step takes.
        objective: makes the objective.
        size: full size N of the data plate, where it is not the number of rows of the batch.
        batch_size: rows per step of a training run; None where the program needs all rows at once.
        data: all rows, where they are not those of the batch.
    """

    pair: Any
    batch: tuple[Tensor, ...]
    objective: Callable[[], pyro.infer.ELBO] = Trace_ELBO
    size: int | None = None
    batch_size: int | None = 4
    data: tuple[Tensor, ...] | None = None


ROWS = 10  # two steps of four rows and a last one of two


def reals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits() -> Tensor:
    return (reals(ROWS, 4) > 0).to(torch.get_default_dtype())


# Plain functions ------------------------------------------------------------------------------------------------------


def plain_functions() -> Program:
    """Factor analysis with parameters that need no constraint."""

    def model(x):
        weight = pyro.param("weight", torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.4, -0.6]]))
        log_sigma = pyro.param("log_sigma", torch.zeros(3))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, log_sigma.exp()).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", 0.1 * torch.ones(3, 2))
        log_scale = pyro.param("log_scale", torch.full((2,), -0.5))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x @ slope, log_scale.exp()).to_event(1))

    return Program((model, guide), (reals(ROWS, 3),))


def constrained_parameters() -> Program:
    """Positive, simplex and lower_cholesky."""

    def model(x):
        proportions = pyro.param("proportions", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        sigma = pyro.param("sigma", torch.tensor(0.8), constraint=constraints.positive)
        corners = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
            pyro.sample("x", dist.Normal(z + proportions @ corners, sigma).to_event(1), obs=x)

    def guide(x):
        scale_tril = pyro.param("scale_tril", 0.7 * torch.eye(2), constraint=constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(0.5 * x, scale_tril=scale_tril))

    return Program((model, guide), (reals(ROWS, 2),))


def lazy_parameters() -> Program:
    """Initial values are drawn when a program first runs, of a shape that the batch decides."""

    def model(x):
        weight = pyro.param("weight", lambda: torch.randn(2, x.shape[-1]))
        sigma = pyro.param("sigma", lambda: torch.rand(x.shape[-1]) + 0.5, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, sigma).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("guide_weight", lambda: torch.randn(x.shape[-1], 2))
        scale = pyro.param("guide_scale", lambda: torch.ones(2), constraint=constraints.interval(0.01, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))

    return Program((model, guide), (reals(ROWS, 3),))


# Networks -------------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Two heads, as in Pyro's tutorial on the VAE."""

    def __init__(self, inputs=4, z_dim=2, hidden=5):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc21 = nn.Linear(hidden, z_dim)
        self.fc22 = nn.Linear(hidden, z_dim)

    def forward(self, x):
        hidden = F.softplus(self.fc1(x))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class Decoder(nn.Module):
    def __init__(self, z_dim=2, outputs=4, hidden=5):
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden)
        self.fc21 = nn.Linear(hidden, outputs)

    def forward(self, z):
        return torch.sigmoid(self.fc21(F.softplus(self.fc1(z))))


def vae_functions(encoder=None, decoder=None, objective=Trace_ELBO, *, call_forward=False) -> Program:
    """Networks beside plain functions, which register them."""
    encoder, decoder = encoder or Encoder(), decoder or Decoder()
    encode = encoder.forward if call_forward else encoder

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = encode(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))

    return Program((model, guide), (bits(),), objective)


class TutorialVAE(nn.Module):
    """Pyro's own example: an nn.Module whose model and guide are plain methods."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], 2, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x)
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def vae_class() -> Program:
    return Program(TutorialVAE(), (bits(),))


def batch_norm_and_dropout(call_forward: bool = False) -> Program:
    """Networks with statistics and noise of their own; `net.forward(x)` is what Pyro's first examples wrote."""

    class Normalised(Encoder):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(4, 5, bias=False)
            self.norm = nn.BatchNorm1d(5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.calls += 1
            hidden = F.dropout(F.relu(self.norm(self.fc1(x))), 0.3, training=self.training)
            return self.fc21(hidden), torch.exp(self.fc22(hidden))

    decoder = nn.Sequential(nn.Linear(2, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 4))
    return vae_functions(Normalised(), nn.Sequential(decoder, nn.Sigmoid()), call_forward=call_forward)


def mean_field_particles() -> Program:
    return vae_functions(objective=partial(TraceMeanField_ELBO, num_particles=3, vectorize_particles=True))


class StraightThrough(torch.autograd.Function):
    """Rounds; the gradient passes as if it had not."""

    @staticmethod
    def forward(ctx, probs):
        return probs.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def frozen_layer() -> Program:
    """A pretrained layer that is to stay as it is."""
    encoder = Encoder()
    encoder.fc1.requires_grad_(False)
    return vae_functions(encoder)


def tempered_particles() -> Program:
    """An objective without differentiable_loss."""
    return vae_functions(objective=partial(RenyiELBO, alpha=0.5, num_particles=3))


def custom_backward() -> Program:
    """Without the custom backward the guide and the decoder's first layer would have no gradient from x."""

    class Binary(Decoder):
        def forward(self, z):
            code = StraightThrough.apply(torch.sigmoid(self.fc1(z)))
            return torch.sigmoid(self.fc21(code))

    return vae_functions(Encoder(), Binary())


def gradient_hook() -> Program:
    """A hook scales the gradient of an activation; the loss does not show it."""

    class Hooked(Decoder):
        def forward(self, z):
            hidden = F.softplus(self.fc1(z))
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: 10 * grad)
            return torch.sigmoid(self.fc21(hidden))

    return vae_functions(Encoder(), Hooked())


def flow_guide() -> Program:
    """Inverse autoregressive flows on top of the encoder, each registered by itself."""
    encoder, decoder = Encoder(), Decoder()
    iafs = [T.affine_autoregressive(2, hidden_dims=[6]), T.affine_autoregressive(2, hidden_dims=[6])]

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        for i, iaf in enumerate(iafs):
            pyro.module(f"iaf_{i}", iaf)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(*encoder(x)), iafs))

    return Program((model, guide), (bits(),))


# PyroModules and autoguides -------------------------------------------------------------------------------------------


class BayesianRegression(PyroModule):
    """Weights as global latent sites, the noise as a constrained parameter."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))
        self.sigma = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, self.sigma), obs=y)
        return mean


def bayesian_regression(autoguide) -> Program:
    model = BayesianRegression()
    return Program((model, autoguide(model)), (reals(ROWS, 3), reals(ROWS, seed=1)), batch_size=None)


def schools(autoguide) -> Program:
    """Eight schools: an effect for each row of the data, so that the guide's parameters are the rows' too."""

    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    y, sigma = 8 * reals(8), 10 + reals(8, seed=1)
    return Program((model, autoguide(model)), (y, sigma), batch_size=None)


def enumerated_mixture(size: int | None = None) -> Program:
    """Pyro's tutorial on mixtures: assignments summed out, the rest at its maximum; of `size` rows in all."""

    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", size, subsample=torch.arange(len(x))) if size else pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=x)

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    objective = partial(TraceEnum_ELBO, max_plate_nesting=1)
    x = 3 * reals(ROWS)
    if size is None:
        return Program((model, guide), (x,), objective, batch_size=None)
    return Program((model, guide), (x[:4],), objective, size=size, data=(x,))


# Plates ---------------------------------------------------------------------------------------------------------------


def nested_plates() -> Program:
    """Features in a plate of their own, to the left of the data's."""

    def model(x):
        slope = pyro.param("slope", torch.ones(4, 1))
        sigma = pyro.param("sigma", torch.ones(4, 1), constraint=constraints.positive)
        data, features = pyro.plate("data", len(x), dim=-1), pyro.plate("features", 4, dim=-2)
        with data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with features, data:
            u = pyro.sample("u", dist.Normal(slope * z, 1.0))
            pyro.sample("x", dist.Normal(u, sigma), obs=x.T)

    def guide(x):
        weight = pyro.param("weight", 0.25 * torch.ones(4))
        shrink = pyro.param("shrink", torch.tensor(0.5), constraint=constraints.unit_interval)
        data, features = pyro.plate("data", len(x), dim=-1), pyro.plate("features", 4, dim=-2)
        with data:
            pyro.sample("z", dist.Normal(x @ weight, 0.6))
        with features, data:
            pyro.sample("u", dist.Normal(shrink * x.T, 0.6))

    return Program((model, guide), (reals(ROWS, 4),))


class DeepMarkov(nn.Module):
    """Sequences in a plate, time in a Python loop, what lies beyond a sequence's length masked."""

    def __init__(self):
        super().__init__()
        self.transition = nn.Linear(2, 2)
        self.emitter = nn.Linear(2, 1)
        self.rnn = nn.GRU(1, 3, batch_first=True)
        self.combiner = nn.Linear(5, 4)
        self.z_0 = nn.Parameter(torch.zeros(2))
        self.z_q_0 = nn.Parameter(torch.zeros(2))

    def model(self, x, lengths, annealing_factor=0.3):
        pyro.module("dmm", self)
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        z = self.z_0.expand(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for t in range(x.shape[1]):
                with poutine.mask(mask=mask[:, t]), poutine.scale(scale=annealing_factor):
                    z = pyro.sample(f"z_{t}", dist.Normal(torch.tanh(self.transition(z)), 1.0).to_event(1))
                with poutine.mask(mask=mask[:, t]):
                    pyro.sample(f"x_{t}", dist.Normal(self.emitter(z).squeeze(-1), 0.5), obs=x[:, t])

    def guide(self, x, lengths, annealing_factor=0.3):
        pyro.module("dmm", self)
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        hidden, _ = self.rnn(x.flip(1)[..., None])
        z = self.z_q_0.expand(len(x), 2)
        with pyro.plate("sequences", len(x)):
            for t in range(x.shape[1]):
                loc, log_scale = self.combiner(torch.cat([z, hidden[:, -1 - t]], -1)).chunk(2, -1)
                with poutine.scale(scale=annealing_factor):
                    site = dist.Normal(loc, log_scale.exp()).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t}", site)


def deep_markov() -> Program:
    lengths = torch.tensor([3, 2, 1, 3, 2, 2, 3, 1, 1, 3])
    return Program(DeepMarkov(), (reals(ROWS, 3), lengths))


def rows_by_index() -> Program:
    """Mini-batches are indices; the data, and a parameter for each row of them, are beside the program."""
    x = reals(20) + 1

    def model(indices):
        mu = pyro.param("mu", torch.tensor(0.0))
        with pyro.plate("data", 20, subsample=indices):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[indices])

    def guide(indices):
        loc = pyro.param("loc", torch.zeros(20))
        scale = pyro.param("scale", torch.ones(20), constraint=constraints.positive)
        with pyro.plate("data", 20, subsample=indices):
            pyro.sample("z", dist.Normal(loc[indices], scale[indices]))

    return Program((model, guide), (torch.tensor([3, 0, 17, 8, 5]),), size=20, data=(torch.arange(20),))


def subsampled_inside() -> Program:
    """The program draws its own rows among all that it is given."""

    def model(x):
        mu = pyro.param("mu", torch.tensor(0.0))
        with pyro.plate("data", len(x), subsample_size=4) as ind:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x.index_select(0, ind))

    def guide(x):
        shrink = pyro.param("shrink", torch.tensor(0.5))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x), subsample_size=4) as ind:
            pyro.sample("z", dist.Normal(shrink * x.index_select(0, ind), scale))

    return Program((model, guide), (reals(ROWS) + 1,), batch_size=None)


# Handlers and factors -------------------------------------------------------------------------------------------------


def annealed_by_scale() -> Program:
    """The latent site weighs a fifth of what it should, in model and guide."""
    encoder, decoder = Encoder(), Decoder()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            with poutine.scale(None, 0.2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)), poutine.scale(None, 0.2):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return Program((model, guide), (bits(),))


class AnnealedVAE(nn.Module):
    """The weight is a buffer, which a training loop fills with new values."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.register_buffer("beta", torch.tensor(0.1))

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)), poutine.scale(scale=self.beta):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


def annealed_by_buffer() -> Program:
    return Program(AnnealedVAE(), (bits(),))


def bound_methods() -> Program:
    """What SVI(vae.model, vae.guide, ...) is given."""
    vae = AnnealedVAE()
    return Program((vae.model, vae.guide), (bits(),))


def masked_values() -> Program:
    """Missing entries: a mask beside the data, and masked distributions."""
    encoder, decoder = Encoder(8), nn.Linear(2, 4)

    def model(x, observed):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.7).mask(observed).to_event(1), obs=x)

    def guide(x, observed):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(torch.cat([x * observed, observed], -1))).to_event(1))

    return Program((model, guide), (reals(ROWS, 4), reals(ROWS, 4, seed=1) > -0.5))


def blocked_parameter() -> Program:
    """One parameter hidden from the optimizer, so frozen, and an auxiliary variable in the guide."""

    def model(x):
        with poutine.block(hide=["frozen"]):
            frozen = pyro.param("frozen", torch.tensor([0.5, -0.5]))
        slope = pyro.param("slope", torch.tensor(0.9))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(frozen, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(slope * z, 0.5).to_event(1), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(shift, 1.0).to_event(1), infer={"is_auxiliary": True})
            log_density = torch.full_like(a[..., 0], -2 * math.log(0.6))
            pyro.sample("z", dist.Delta(0.7 * x + 0.6 * a, log_density=log_density, event_dim=1))

    return Program((model, guide), (reals(ROWS, 2),))


def factors() -> Program:
    """A penalty for each row in the plate, and weight decay outside it."""

    def model(x):
        weight = pyro.param("weight", torch.tensor([0.5, -0.2, 0.1]))
        pyro.factor("weight_decay", -0.1 * weight.square().sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("penalty", -0.3 * torch.relu(z - 1))
            pyro.sample("x", dist.Normal(z[:, None] * weight, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.9), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.2 * x.sum(-1), scale))

    return Program((model, guide), (reals(ROWS, 3),))


# Discrete sites -------------------------------------------------------------------------------------------------------


def join(*tensors: Tensor) -> Tensor:
    """Side by side, leading dims broadcast: an enumerated label has one more of them."""
    leading = torch.broadcast_shapes(*(tensor.shape[:-1] for tensor in tensors))
    return torch.cat([tensor.expand(*leading, tensor.shape[-1]) for tensor in tensors], -1)


class SSVAE(nn.Module):
    """Kingma's M2 without labels: the guide's label is enumerated."""

    def __init__(self):
        super().__init__()
        self.encoder_y = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))
        self.encoder_z, self.decoder = Encoder(4 + 3), Decoder(2 + 3)

    def model(self, xs):
        pyro.module("ss_vae", self)
        with pyro.plate("data", xs.size(0)):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(xs.size(0), 2), 1.0).to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(xs.size(0), 3) / 3))
            pyro.sample("x", dist.Bernoulli(self.decoder(join(zs, ys))).to_event(1), obs=xs)

    def guide(self, xs):
        with pyro.plate("data", xs.size(0)):
            ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs)))
            pyro.sample("z", dist.Normal(*self.encoder_z(join(xs, ys))).to_event(1))


def enumerated_guide() -> Program:
    ss_vae = SSVAE()
    guide = config_enumerate(ss_vae.guide, "parallel", expand=True)
    return Program((ss_vae.model, guide), (bits(),), partial(TraceEnum_ELBO, max_plate_nesting=1))


def discrete_code(infer: Callable[[Tensor], dict[str, Any]], objective, batch_size: int | None = 4) -> Program:
    """A sigmoid belief network of one layer: binary code without reparametrisation."""
    encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)

    def model(x):
        pyro.module("decoder", decoder)
        prior = pyro.param("prior", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1), infer=infer(x))

    return Program((model, guide), (bits(),), objective, batch_size=batch_size)


def score_function() -> Program:
    return discrete_code(lambda x: {}, partial(Trace_ELBO, num_particles=2))


def network_baseline() -> Program:
    """The baseline is a network, registered so that it learns too."""
    baseline = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))

    def infer(x):
        pyro.module("baseline", baseline)
        return {"baseline": {"nn_baseline": baseline, "nn_baseline_input": x}}

    return discrete_code(infer, TraceGraph_ELBO)


def average_baseline() -> Program:
    """A decaying average, which Pyro keeps in the param store and replaces at each step."""
    infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}}
    return discrete_code(lambda x: infer, TraceGraph_ELBO, batch_size=None)


def no_guide(*batch):
    """For models whose latent sites are all summed out."""


def markov_chain() -> Program:
    def model(x):
        transition = pyro.param(
            "transition", lambda: dist.Dirichlet(torch.ones(3)).sample((3,)), constraint=constraints.simplex
        )
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("sequences", len(x)):
            state = 0
            for t in pyro.markov(range(x.size(1))):
                state = pyro.sample(f"s_{t}", dist.Categorical(transition[state]), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(loc[state], 1.0), obs=x[:, t])

    return Program((model, no_guide), (reals(ROWS, 4),), partial(TraceEnum_ELBO, max_plate_nesting=1))


def discrete_hmm() -> Program:
    def model(x):
        initial = pyro.param("initial", torch.zeros(3))
        transition = pyro.param("transition", torch.eye(3))
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("sequences", len(x)):
            hmm = dist.DiscreteHMM(initial, transition, dist.Normal(loc, scale), duration=x.size(1))
            pyro.sample("x", hmm, obs=x)

    return Program((model, no_guide), (reals(ROWS, 4),))


PROGRAMS: dict[str, Callable[[], Program]] = {
    "plain functions": plain_functions,
    "constrained parameters": constrained_parameters,
    "lazy parameters": lazy_parameters,
    "VAE of functions": vae_functions,
    "VAE of a class": vae_class,
    "batch norm and dropout": batch_norm_and_dropout,
    "batch norm and dropout, forward": partial(batch_norm_and_dropout, call_forward=True),
    "mean field, particles at once": mean_field_particles,
    "frozen layer": frozen_layer,
    "tempered particles": tempered_particles,
    "custom backward": custom_backward,
    "gradient hook": gradient_hook,
    "flow guide": flow_guide,
    "Bayesian regression, AutoNormal": partial(bayesian_regression, AutoNormal),
    "Bayesian regression, AutoDiagonalNormal": partial(bayesian_regression, AutoDiagonalNormal),
    "schools, AutoDelta": partial(schools, AutoDelta),
    "schools, AutoLowRankMultivariateNormal": partial(schools, AutoLowRankMultivariateNormal),
    "enumerated mixture": enumerated_mixture,
    "enumerated mixture, mini-batches": partial(enumerated_mixture, ROWS),
    "nested plates": nested_plates,
    "deep Markov model": deep_markov,
    "rows by index": rows_by_index,
    "subsampled inside": subsampled_inside,
    "annealed by scale": annealed_by_scale,
    "annealed by a buffer": annealed_by_buffer,
    "annealed by a buffer, bound methods": bound_methods,
    "masked values": masked_values,
    "blocked parameter": blocked_parameter,
    "factors": factors,
    "enumerated guide": enumerated_guide,
    "score function": score_function,
    "network baseline": network_baseline,
    "Markov chain, enumerated": markov_chain,
    "DiscreteHMM": discrete_hmm,
}


# Programs that no graph can hold --------------------------------------------------------------------------------------


class Changing(nn.Module):
    """A VAE with two places where subclasses do what no graph can hold."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def before(self, x):
        """What the guide does first."""

    def change(self, z):
        """What happens to z in the model."""
        return z

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(self.decoder(self.change(z))).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        self.before(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


class ValueDecides(Changing):
    """Python control flow on a tensor's value."""

    def change(self, z):
        return 2 * z if z[0, 0] > z[1, 0] else -z


class GrowingAttribute(Changing):
    """A weight that is a plain Python number, and grows with each call."""

    beta = 0.0

    def before(self, x):
        self.beta = min(1.0, self.beta + 0.1)

    def change(self, z):
        return self.beta * z


class DrawnInPython(Changing):
    """Python's own generator decides."""

    def change(self, z):
        return z if random.random() < 0.5 else 3 * z


class NoiseOfNumPy(Changing):
    """NumPy's generator makes the noise."""

    def change(self, z):
        return z + torch.as_tensor(np.random.standard_normal(z.shape), dtype=z.dtype)  # noqa: NPY002


class ThroughNumPy(Changing):
    """NumPy works on a detached tensor."""

    def change(self, z):
        return z / (1 + np.abs(z.detach().numpy()).max())


class ThroughList(Changing):
    """A tensor becomes a list of Python numbers."""

    def change(self, z):
        first, *_ = z.detach().mean(0).tolist()
        return z - first


class ChosenRows(Changing):
    """How many rows are chosen depends on their values."""

    def change(self, z):
        chosen = z[z[:, 0] > 0]
        return z + chosen.sum(0) / (1 + len(chosen))


class Sites(nn.Module):
    """A chain of one or two latent sites, as many as `depth` says at the moment."""

    depth = 1

    def __init__(self):
        super().__init__()
        self.encoder, self.second = Encoder(), nn.Linear(2, 2)
        self.decoder = Decoder()

    def next_depth(self):
        raise NotImplementedError

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            if self.depth > 1:
                z = pyro.sample("z2", dist.Normal(self.second(z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        self.depth = self.next_depth()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))
            if self.depth > 1:
                pyro.sample("z2", dist.Normal(z, 1.0).to_event(1))


class CountedSites(Sites):
    """One more site with every second call."""

    calls = 0

    def next_depth(self):
        self.calls += 1
        return 1 + (self.calls % 2 == 0)


class RandomSites(Sites):
    """Python's own generator decides how many sites there are."""

    def next_depth(self):
        return random.choice([1, 2])


def later_parameter() -> Program:
    """A parameter that exists only from the third call of the guide on: warm-up of a part in Python."""
    calls = 0

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("mu", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        nonlocal calls
        calls += 1
        slope = pyro.param("slope", torch.tensor(0.5))
        shift = pyro.param("shift", torch.tensor(0.1)) if calls > 2 else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x + shift, 0.6))

    return Program((model, guide), (reals(ROWS),))


def turns_nan(outside: bool = False) -> Program:
    """A rate without the constraint that it needs: its logarithm is NaN as soon as a step makes it negative."""

    def log_prior():
        rate = pyro.param("rate", torch.tensor(0.05))
        pyro.factor("prior", rate.log() - 60 * rate)

    def model(x):
        if outside:
            log_prior()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)
            if not outside:
                log_prior()

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.6))

    return Program((model, guide), (reals(ROWS),))


UNCAPTURABLE: dict[str, Callable[[], Program]] = {
    "a value decides": lambda: Program(ValueDecides(), (bits(),)),
    "counted sites": lambda: Program(CountedSites(), (bits(),)),
    "random sites": lambda: Program(RandomSites(), (bits(),)),
    "a growing attribute": lambda: Program(GrowingAttribute(), (bits(),)),
    "Python's random numbers": lambda: Program(DrawnInPython(), (bits(),)),
    "NumPy's random numbers": lambda: Program(NoiseOfNumPy(), (bits(),)),
    "through NumPy": lambda: Program(ThroughNumPy(), (bits(),)),
    "through a list": lambda: Program(ThroughList(), (bits(),)),
    "chosen rows": lambda: Program(ChosenRows(), (bits(),)),
    "average baseline": average_baseline,
    "a later parameter": later_parameter,
    "turns NaN": turns_nan,
    "turns NaN outside the plate": partial(turns_nan, outside=True),
}
