"""Laws that every pair and objective obey: a new family is one row in PAIRS, a new objective one in OBJECTIVES."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import GaussianMixture, LinearGaussian, LooseLinearGaussian, Mixture
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyrovae import conditionals, models, nets, objectives, priors
from pyrovae.flags import objective_names
from pyrovae.models import CVAE, VAE, HierarchicalVAE, LadderVAE, conjugate, flow
from pyrovae.models.base import Functions, Pair, Structure, as_pair, evaluation_mode, random_sites, structure
from pyrovae.models.local import MeanField
from pyrovae.models.rebuild import build, describe
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    MMD,
    PIWAE,
    STL,
    VIMCO,
    AdversarialAutoencoder,
    AdversarialVB,
    Beta,
    Capacity,
    Commitment,
    Contractive,
    DensityRatio,
    DReG,
    FactorVAE,
    FreeBits,
    ImplicitPrior,
    JointRatio,
    MarginalLikelihood,
    Objective,
    Renyi,
    ReweightedWakeSleep,
    SemiSupervised,
    StatesSummed,
    TotalCorrelation,
    WakeSleep,
    ledger,
    log_weights,
)
from pyrovae.objectives.draws import is_point
from pyrovae.priors import covariances
from pyrovae.training.step import Step

# Pairs: a name, and what makes (pair, batch), the batch of at least three different rows ---------------------------

ROWS = 4


def uniform(*event: int, rows: int = ROWS) -> Tensor:
    return torch.rand(rows, *event, generator=torch.Generator().manual_seed(1))


def bits(*event: int) -> Tensor:
    return uniform(*event).round()


def counts(length: int, total: int) -> Tensor:
    return torch.stack([torch.bincount((row * length).long(), minlength=length) for row in uniform(total)]).float()


def vae(x: Tensor, **options: Any) -> tuple[VAE, tuple[Tensor]]:
    return VAE(x.shape[1:], 2, **{"hidden": (7,), **options}), (x,)


def trained(prior: Callable[..., nn.Module], noise: float = 0.3, **options: Any) -> Callable[..., nn.Module]:
    """What makes a flow whose networks say something, where a new one is the identity and some gradients are zero."""

    def make(event_shape):
        made = prior(event_shape, **options)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
        return made

    return make


class Given(Pair):
    """z1 | y and z2 | y, x | z1, z2, for labels y that come with x: y picks the priors."""

    def __init__(self):
        super().__init__()
        mixture = partial(priors.GaussianMixture, num_components=2)
        self.prior1 = priors.ConditionalNormal(1, context_shape=3, hidden=(4,))
        self.prior2 = priors.ClassConditional(2, num_classes=3, prior=mixture)
        self.encoder = nets.MultiMLP([6, 3], hidden=(7,))
        self.posterior1, self.posterior2 = conditionals.DiagonalNormal(7, 1), conditionals.DiagonalNormal(7, 2)
        self.likelihood = conditionals.Bernoulli(3, 6)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.prior1(y))
            z2 = pyro.sample("z2", self.prior2(y))
            pyro.sample("x", self.likelihood(torch.cat([z1, z2], -1)), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            features = self.encoder(x, y)
            pyro.sample("z1", self.posterior1(features))
            pyro.sample("z2", self.posterior2(features))


class Conditioned(nn.Module):
    """Somebody's p(z | y), y of shape (1, 3)."""

    def __init__(self, latent_dim):
        super().__init__()
        self.layer = nn.Linear(3, latent_dim)

    def forward(self, context=None):
        return dist.Normal(self.layer(context.flatten(-2)), 1.0).to_event(1)


class Normalised(nn.Module):
    """Somebody's encoder, with layers that behave differently in training and in evaluation."""

    feature_shape = (5,)

    def __init__(self, event_shape):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(*event_shape, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, x):
        return self.layers(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class Labelled(Pair):
    """y ~ Cat, z ~ N(0, 1), x | z, y: the guide enumerates y."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.5, 0.3]))
        self.loc = nn.Parameter(torch.tensor([-2.0, 0.5, 3.0]))
        self.classifier = nn.Linear(1, 3)
        self.slope = PyroParam(torch.tensor(0.4), constraint=constraints.unit_interval)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + self.loc[y], 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = self.classifier(x[:, None])
            y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(self.slope * (x - y), 0.7))


class Hierarchy(Pair):
    """z2 -> z1 -> x with a bottom-up guide, and a plate of words inside the data plate."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.5, -0.3, 0.8]))
        self.log_scale = nn.Parameter(torch.tensor([0.1, -0.2]))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.slope[0] * z2, self.log_scale[0].exp()))
            with pyro.plate("words", x.size(1), dim=-2):
                pyro.sample("x", dist.Normal(z1, 1.0), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(self.slope[1] * x.mean(-1), 0.5))
            pyro.sample("z2", dist.Normal(self.slope[2] * z1, self.log_scale[1].exp()))


class Subsampled(Pair):
    """A global w, a local z, and a plate that says how many data there are in all."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.scale = PyroParam(torch.tensor(0.9), constraint=constraints.positive)

    def model(self, x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("w", dist.Normal(self.loc, self.scale))
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(0.5 * x, self.scale))


def functions() -> tuple[Functions, tuple[Tensor]]:
    """Two plain functions with pyro.param."""

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.3), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.4), constraint=constraints.unit_interval)
        width = pyro.param("width", lambda: torch.tensor(1.0), constraint=constraints.interval(0.1, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, width))

    return Functions(model, guide), (3 * uniform(),)


class PyroExample(nn.Module):
    """The shape of Pyro's own VAE example: no PyroModule, networks registered by pyro.module."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4)), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], 2)))
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            probs = torch.sigmoid(self.decoder(z))
            pyro.sample("obs", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class PlainObject:
    """No module at all: an object whose methods register networks that it holds."""

    def __init__(self):
        self.example = PyroExample()
        self.model, self.guide = self.example.model, self.example.guide


class UserModule(PyroModule):
    """Somebody's PyroModule."""

    def __init__(self):
        super().__init__("user")
        self.encoder = PyroModule[nn.Linear](6, 2)
        self.decoder = nn.Linear(2, 6)
        self.scale = PyroParam(torch.full((2,), 0.6), constraint=constraints.positive)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), self.scale).to_event(1))


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def draws_its_own_rows(x: Tensor) -> None:
    loc = pyro.param("middle", torch.tensor(0.1))
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])


def gaussian_mixture() -> tuple[Pair, tuple[Tensor]]:
    weights, x = torch.tensor([0.2, 0.5, 0.3]), 3 * uniform(2)
    return GaussianMixture(weights, x[:3].clone(), torch.ones(3, 2)), (x,)


def switched(x: Tensor) -> None:
    """Latents of three kinds, for a guide without an encoder."""
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Bernoulli(0.3 * x.new_ones(())))
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
        with pyro.plate("words", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(loc * rate, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x.T)


def local_parameters() -> tuple[Pair, tuple[Tensor, Tensor]]:
    x = 3 * uniform(2)
    return MeanField(switched, x), (x, torch.arange(len(x)))


def linear_gaussian(cls: type[LinearGaussian]) -> tuple[Pair, tuple[Tensor]]:
    pair = cls()
    return pair, (pair.sample(ROWS),)


def with_mask(cls: type[Pair], x: Tensor, **options: Any) -> tuple[Pair, tuple[Tensor, Tensor]]:
    return cls(x.shape[1:], 2, **{"hidden": (7,), **options}), (x, bits(*x.shape[1:]).flip(0).bool())


def posterior_matching() -> tuple[Pair, tuple[Tensor, Tensor]]:
    (fitted, (x,)) = vae(bits(6))
    return models.PosteriorMatching(fitted, hidden=(7,)), (x, bits(6).flip(0).bool())


PARTLY = torch.tensor([-1, 2, -1, 0])


def partly_labelled(form: type[models.M2]) -> tuple[Pair, tuple[Tensor, Tensor]]:
    return form(6, 2, num_classes=3, hidden=(7,)), (bits(6), PARTLY)


def stacked_m2() -> tuple[Pair, tuple[Tensor, Tensor]]:
    m2 = models.M2(2, 2, num_classes=3, hidden=(5,), likelihood=conditionals.DiagonalNormal)
    with torch.no_grad():
        m2.likelihood.head.layer.bias[0] += 2  # else the KL of z1 may lie below free bits
    return models.StackedM2(VAE(6, 3, hidden=(7,)), m2, kept=(0, 2)), (bits(6), PARTLY)


LIKELIHOODS: dict[str, tuple[Any, Tensor]] = {
    "Bernoulli": (conditionals.Bernoulli, bits(6)),
    "CrossEntropy": (conditionals.CrossEntropy, uniform(6)),
    "ContinuousBernoulli": (conditionals.ContinuousBernoulli, uniform(6)),
    "FixedNormal": (partial(conditionals.FixedNormal, scale=0.5), uniform(6)),
    "LearnedNormal": (conditionals.LearnedNormal, uniform(6)),
    "DiagonalNormal": (conditionals.DiagonalNormal, uniform(6)),
    "Categorical": (partial(conditionals.Categorical, num_classes=4), (4 * uniform(6)).floor()),
    "Multinomial": (partial(conditionals.Multinomial, total_count=9), counts(6, 9)),
    "DiscretizedLogistic": (partial(conditionals.DiscretizedLogistic, levels=16), (16 * uniform(6)).floor() / 15),
}

SEQUENCES: dict[str, tuple[Any, Tensor]] = {
    "Bernoulli": (conditionals.Bernoulli, bits(3, 2)),
    "Categorical": (partial(conditionals.Categorical, num_classes=4), (4 * uniform(3, 2)).floor()),
    "DiagonalNormal": (conditionals.DiagonalNormal, 3 * uniform(3, 2)),
}
LENGTHS = torch.tensor([3, 1, 2, 3])


def sequence_pair(likelihood: Any, x: Tensor) -> tuple[Pair, tuple[Tensor, Tensor]]:
    return models.HMM(x.shape[1:], 3, likelihood=likelihood), (x, LENGTHS)


TOPICS = counts(6, 9) * torch.tensor([[1.0], [0.0], [2.0], [1.0]]) + torch.eye(6)[[0, 3, 3, 5]]  # of other lengths

POSTERIORS: dict[str, Any] = {
    "low-rank": partial(conditionals.LowRankNormal, rank=1),
    "full": conditionals.FullNormal,
    "mixture": partial(conditionals.NormalMixture, num_components=2),
    "planar": partial(conditionals.PlanarFlow, num_steps=2),
    "radial": partial(conditionals.RadialFlow, num_steps=2),
    "IAF": partial(conditionals.IAF, num_steps=2, hidden=(5,)),
    "spline": partial(conditionals.SplineFlow, num_steps=2, num_bins=3, hidden=(5,)),
}

PAIRS: dict[str, Callable[[], tuple[Any, tuple[Tensor, ...]]]] = {
    **{f"VAE {name}": partial(vae, x, likelihood=likelihood) for name, (likelihood, x) in LIKELIHOODS.items()},
    "VAE convolutional": partial(
        vae,
        bits(1, 6, 5),
        encoder=partial(nets.ConvEncoder, channels=(3, 4)),
        decoder=partial(nets.ConvDecoder, channels=(4, 3)),
    ),
    "VAE linear": partial(vae, uniform(6), hidden=(), likelihood=conditionals.LearnedNormal),
    **{f"VAE {name} posterior": partial(vae, bits(6), posterior=posterior) for name, posterior in POSTERIORS.items()},
    "VAE floored posterior": partial(vae, bits(6), posterior=partial(conditionals.DiagonalNormal, min_scale=0.1)),
    "VAE implicit posterior": partial(vae, bits(6), posterior=partial(conditionals.Implicit, hidden=(5,))),
    "VAE implicit": partial(
        vae,
        uniform(6),
        posterior=partial(conditionals.Implicit, noise_dim=1, hidden=(5,)),
        likelihood=partial(conditionals.Implicit, hidden=(5,)),
    ),
    "VAE mixture prior": partial(vae, bits(6), prior=partial(priors.GaussianMixture, num_components=3, spread=0.95)),
    "VAE Vamp prior": partial(vae, bits(6), prior=partial(priors.VampPrior, num_components=3, learn_weights=True)),
    "VAE RealNVP prior": partial(vae, bits(6), prior=trained(priors.RealNVP, num_layers=2, hidden=(4,))),
    "VAE spline prior": partial(vae, bits(6), prior=trained(priors.SplineFlow, num_layers=2, hidden=(4,))),
    "VAE aggregated prior": partial(vae, bits(6), prior=partial(priors.AggregatedPosterior, points=bits(6))),
    "VAE Laplace-Dirichlet prior": partial(vae, bits(6), prior=partial(priors.LaplaceDirichlet, concentration=0.5)),
    "priors given labels": lambda: (Given(), (bits(6), torch.eye(3)[[2, 0, 1, 2]])),
    "VAE batch norm and dropout": partial(vae, bits(6), encoder=Normalised),
    "Autoencoder": lambda: (
        models.Autoencoder(6, 2, hidden=(7,), likelihood=conditionals.FixedNormal, corruption=nets.GaussianNoise),
        (uniform(6),),
    ),
    "Autoencoder of grey pixels": lambda: (
        models.Autoencoder(
            6,
            2,
            hidden=(7,),
            likelihood=conditionals.CrossEntropy,
            corruption=nn.Sequential(nets.Masking(0.3), nets.SaltAndPepper(0.2)),
        ),
        (uniform(6),),
    ),
    "CVAE": lambda: (CVAE(6, 2, num_classes=3, hidden=(7,)), (bits(6), torch.tensor([0, 2, 1, 2]))),
    "CVAE learned prior": lambda: (
        CVAE(6, 2, condition_shape=(1, 3), hidden=(7,), prior=Conditioned),
        (bits(6), uniform(1, 3)),
    ),
    "HierarchicalVAE": lambda: (HierarchicalVAE(6, (3, 2), hidden=(5,)), (bits(6),)),
    "LadderVAE": lambda: (LadderVAE(6, (3, 2), hidden=((5,), (4,))), (bits(6),)),
    "LadderVAE convolutional, batch norm": lambda: (
        LadderVAE(
            (1, 6, 5),
            (3, 2),
            hidden=(4,),
            batch_norm=True,
            encoder=partial(nets.ConvEncoder, channels=(3, 4)),
            decoder=partial(nets.ConvDecoder, channels=(4, 3)),
        ),
        (bits(1, 6, 5),),
    ),
    "SigmoidBeliefNet": lambda: (models.SigmoidBeliefNet(6, (3, 2)), (bits(6),)),
    "SigmoidBeliefNet of deeper networks": lambda: (
        models.SigmoidBeliefNet(6, (3,), hidden=(5,)),
        (bits(6),),
    ),
    **{f"HMM {name}": partial(sequence_pair, likelihood, x) for name, (likelihood, x) in SEQUENCES.items()},
    "BayesianHMM": lambda: (models.BayesianHMM((3, 2), 2, num_classes=4), (SEQUENCES["Categorical"][1], LENGTHS)),
    "StructuredVAE": lambda: (models.StructuredVAE(6, 2, 3, hidden=(7,)), (bits(6),)),
    "StructuredHMM": lambda: (models.StructuredHMM((3, 2), 2, 3, hidden=(7,)), (bits(3, 2), LENGTHS)),
    "NormalizingFlow": lambda: (models.NormalizingFlow(3, num_layers=3, hidden=(16,)), (uniform(3),)),
    "NormalizingFlow of splines": lambda: (
        models.NormalizingFlow((1, 2, 2), num_layers=2, hidden=(16,), coupling=flow.SplineCoupling),
        (uniform(1, 2, 2),),
    ),
    "GaussianMixture": lambda: (models.GaussianMixture((1, 2), 3), (3 * uniform(1, 2),)),
    "GaussianMixture, full": lambda: (
        models.GaussianMixture(2, 3, covariance=covariances.FullCovariance),
        (3 * uniform(2),),
    ),
    "GaussianMixture, tied": lambda: (
        models.GaussianMixture(2, 3, covariance=partial(covariances.TiedCovariance, min_scale=0.1)),
        (3 * uniform(2),),
    ),
    "CategoricalMixture": lambda: (models.CategoricalMixture(6, 3), (bits(6),)),
    "CategoricalMixture of classes": lambda: (
        models.CategoricalMixture((2, 3), 3, num_classes=4),
        ((4 * uniform(2, 3)).floor(),),
    ),
    "BayesianGaussianMixture": lambda: (models.BayesianGaussianMixture((1, 2), 3), (3 * uniform(1, 2),)),
    "BayesianGaussianMixture, Wishart": lambda: (
        models.BayesianGaussianMixture(2, 3, components=conjugate.NormalWishart, data_size=8),
        (3 * uniform(2),),
    ),
    "BayesianCategoricalMixture": lambda: (
        models.BayesianCategoricalMixture(6, 3, components=partial(conjugate.DirichletClasses, concentration=0.5)),
        (bits(6),),
    ),
    "NVDM": lambda: (models.NVDM(6, 2, hidden=(7,)), (TOPICS,)),
    "ProdLDA": lambda: (models.ProdLDA(6, 2, hidden=(7,), dropout=0.2), (TOPICS,)),
    "ProdLDA mixture": lambda: (
        models.ProdLDA(6, 2, hidden=(7,), likelihood=partial(conditionals.TopicMixture, dropout=0.2)),
        (TOPICS,),
    ),
    "VaDE": lambda: (models.VaDE(6, 2, 3, hidden=(7,), spread=0.98), (bits(6),)),
    "VaDE, full": lambda: (
        models.VaDE(6, 2, 3, hidden=(7,), spread=0.98, covariance=covariances.FullCovariance),
        (bits(6),),
    ),
    "VaDE factorised": lambda: (models.MeanFieldVaDE(6, 2, 3, hidden=(7,), spread=0.3), (bits(6),)),
    "InpaintingVAE": partial(with_mask, models.InpaintingVAE, bits(6)),
    "InpaintingVAE convolutional": partial(
        with_mask,
        models.InpaintingVAE,
        bits(1, 6, 5),
        encoder=partial(nets.MaskedConvEncoder, channels=(3, 4)),
        decoder=partial(nets.ConvDecoder, channels=(4, 3)),
    ),
    "PartialVAE": partial(with_mask, models.PartialVAE, uniform(6), likelihood=conditionals.LearnedNormal),
    "PartialVAE convolutional": partial(
        with_mask,
        models.PartialVAE,
        bits(1, 6, 5),
        encoder=partial(nets.PartialConvEncoder, channels=(3, 4)),
        decoder=partial(nets.ConvDecoder, channels=(4, 3)),
    ),
    "PartialVAE of a table": partial(
        with_mask,
        models.PartialVAE,
        torch.cat([uniform(2), bits(2), (4 * uniform(2)).floor()], 1),
        likelihood=partial(conditionals.Mixed, num_classes=(0, 0, 2, 2, 4, 4)),
    ),
    "PosteriorMatching": posterior_matching,
    "VQVAE": lambda: (
        models.VQVAE(
            (1, 6, 5),
            num_codes=4,
            code_dim=3,
            channels=(4,),
            codebook=nets.Codebook,
            prior=partial(priors.PixelCNN, hidden=5, num_blocks=1),
        ),
        (bits(1, 6, 5),),
    ),
    "VQVAE of running means": lambda: (
        models.VQVAE(6, num_codes=4, code_dim=3, grid_shape=2, hidden=(7,)),
        (bits(6),),
    ),
    "VQVAE2": lambda: (
        models.VQVAE2((1, 6, 5), num_codes=4, code_dim=3, channels=(8,), prior=partial(priors.PixelCNN, hidden=5)),
        (bits(1, 6, 5),),
    ),
    "codes given others": lambda: (
        models.CodeModel(3, num_codes=4, context_shape=(2, 1, 1), prior=partial(priors.PixelCNN, hidden=5)),
        ((4 * uniform(3)).long(), uniform(2, 1, 1)),
    ),
    "CategoricalVAE enumerated": lambda: (
        models.CategoricalVAE(6, num_classes=3, hidden=(7,), enumerate=True),
        (bits(6),),
    ),
    "CategoricalVAE with Gumbel's gradient": lambda: (
        models.CategoricalVAE(6, num_classes=3, hidden=(7,), posterior=conditionals.GumbelSoftmax),
        (bits(6),),
    ),
    "LinearGaussian": partial(linear_gaussian, LinearGaussian),
    "LooseLinearGaussian": partial(linear_gaussian, LooseLinearGaussian),
    "Mixture": lambda: (Mixture(), (3 * uniform().double(),)),
    "Mixture that x does not depend on": lambda: (Mixture(x_depends_on_c=False), (3 * uniform().double(),)),
    "mixture that is summed": gaussian_mixture,
    "parameters for each datum": local_parameters,
    "labels enumerated by the guide": lambda: (Labelled(), (3 * uniform(),)),
    "M2": partial(partly_labelled, models.M2),
    "FactoredM2": partial(partly_labelled, models.FactoredM2),
    "StackedM2": stacked_m2,
    "hierarchy over words": lambda: (Hierarchy(), (3 * uniform(3),)),
    "global and local latents, subsampled": lambda: (Subsampled(), (uniform(),)),
    "functions with pyro.param": functions,
    "nn.Module like Pyro's example": lambda: (PyroExample(), (bits(6),)),
    "plain object": lambda: (PlainObject(), (bits(6),)),
    "somebody's PyroModule": lambda: (UserModule(), (uniform(6),)),
    "autoguide": lambda: (Functions(regression, AutoNormal(regression)), (uniform(2), uniform())),
    "model that draws its own rows": lambda: (Functions(draws_its_own_rows, lambda x: None), (uniform(),)),
}

# Objectives: a name, what makes one, and for which pairs it is right --------------------------------------------------

Valid = Callable[[Structure], bool]


def anywhere(known: Structure) -> bool:
    return True


def local(known: Structure) -> bool:
    return not known.global_latent


def sampled(known: Structure) -> bool:
    return not known.enumerated


def enumerated(known: Structure) -> bool:
    return bool(known.enumerated)


def summed(known: Structure) -> bool:
    by_guide = any(isinstance(module, models.CategoricalVAE) for module in known.modules)
    return set(known.latent) <= set(known.enumerated) and not by_guide


def mean_field(known: Structure) -> bool:
    """One latent site in or out of the plate: where there are more, their order in the guide decides."""
    return not known.enumerated and len(known.latent) <= 1 + len(known.global_latent)


def local_samples(known: Structure) -> bool:
    return sampled(known) and local(known)


def scored(known: Structure) -> bool:
    """A guide whose density has a score: no Delta."""
    points = (models.NormalizingFlow, nets.Codebook)
    return (
        local_samples(known) and not known.improper and not any(isinstance(module, points) for module in known.modules)
    )


def dreams(known: Structure) -> bool:
    return scored(known) and bool(known.latent) and set(known.observed) == set(known.supports) != set()


CORRELATED = tuple(getattr(posterior, "func", posterior) for posterior in POSTERIORS.values())


def one_code(known: Structure) -> bool:
    """One sampled latent, of data, with a p(z) to draw from, and independent dims."""
    dependent = any(
        isinstance(module, (*CORRELATED, LinearGaussian, models.NormalizingFlow)) for module in known.modules
    )
    proper = local_samples(known) and not known.improper
    return proper and len(known.latent) == 1 and bool(known.observed) and not dependent


def two_dims(known: Structure) -> bool:
    """What the critics in the table take."""
    return one_code(known) and "slope" not in known.parameters


def fixed_prior(known: Structure) -> bool:
    """One whose draws need no gradient, or have one."""
    without = (priors.GaussianMixture, priors.VampPrior, priors.AggregatedPosterior)
    return one_code(known) and not any(isinstance(module, without) for module in known.modules)


def dense(known: Structure) -> bool:
    """Every site has a density; without one there are no weights, and most objectives refuse the pair by name."""
    return not any(isinstance(module, conditionals.Implicit) for module in known.modules)


def scores_x(known: Structure) -> bool:
    return two_dims(known) and not any(
        isinstance(getattr(module, "likelihood", None), conditionals.Implicit) for module in known.modules
    )


def draws_x(known: Structure) -> bool:
    """Both z and x have samples with a gradient."""
    supports = [support for _, support in known.supports.values()]
    real = all(getattr(support, "base_constraint", support) is constraints.real for support in supports)
    return two_dims(known) and fixed_prior(known) and dreams(known) and real


class OfBoth(nn.Module):
    """A critic of z and of any x."""

    def __init__(self):
        super().__init__()
        self.ratio = DensityRatio(1, 2, hidden=(8,))

    def forward(self, *values):
        x, z = values[0], values[-1]
        return self.ratio(x.flatten(1).mean(-1, keepdim=True).to(z.dtype), z)


def by_dimension(known: Structure) -> bool:
    """q and p are products over the dimensions of z."""
    return fixed_prior(known) and not any(isinstance(module, priors.Flow) for module in known.modules)


def reparametrised(known: Structure) -> bool:
    return local(known) and sampled(known)


def some_labels(known: Structure) -> bool:
    return "y_observed" in known.observed


def quantised(known: Structure) -> bool:
    return any(isinstance(module, nets.Codebook) for module in known.modules)


def on_points(known: Structure) -> bool:
    """The guide is an encoder without noise, whose code moves with x."""
    return any(isinstance(module, models.Autoencoder) for module in known.modules)


def has_z(known: Structure) -> bool:
    return "z" in known.latent and not known.enumerated


def sums_states(known: Structure) -> bool:
    """The guide samples discrete states, which the pair can sum."""
    return any(hasattr(module, "states_summed") for module in known.modules)


OBJECTIVES: dict[str, tuple[Callable[[], pyro.infer.ELBO], Valid]] = {
    "ELBO": (ELBO, anywhere),
    "ELBO Monte Carlo": (partial(ELBO, closed_form=False), anywhere),
    "ELBO beta 2": (partial(ELBO, beta=2.0), anywhere),  # a bound, but a loose one
    "IWAE 1": (partial(IWAE, 1), local),
    "IWAE 5": (partial(IWAE, 5), local),
    "states summed": (StatesSummed, sums_states),
    "VIMCO 3": (partial(VIMCO, 3), local_samples),
    "reweighted wake": (partial(ReweightedWakeSleep, 3), scored),
    "reweighted wake and sleep": (partial(ReweightedWakeSleep, 3, insomnia=0.5), dreams),
    "wake-sleep": (partial(WakeSleep, 2), dreams),
    "total correlation": (partial(TotalCorrelation, 2, beta=3.0, data_size=50), one_code),
    "MMD": (partial(MMD, 2), fixed_prior),
    "FactorVAE": (partial(FactorVAE, DensityRatio(2, hidden=(8,)), 2, gamma=3.0), two_dims),
    "implicit optimal prior": (partial(ImplicitPrior, DensityRatio(2, hidden=(8,)), 2), two_dims),
    "adversarial VB": (partial(AdversarialVB, OfBoth(), 2), scores_x),
    "joint ratio": (partial(JointRatio, OfBoth(), 2), draws_x),
    "adversarial autoencoder": (
        partial(AdversarialAutoencoder, DensityRatio(2, hidden=(8,)), 2, weight=3.0),
        scores_x,
    ),
    "Renyi 0.5": (partial(Renyi, 0.5, 3), local),
    "MIWAE 2 x 3": (partial(MIWAE, 6, num_groups=2), local),
    "PIWAE 2 x 2": (partial(PIWAE, 4, num_groups=2), reparametrised),
    "CIWAE": (partial(CIWAE, 3), local),
    "STL": (partial(STL, 2), reparametrised),
    "commitment": (Commitment, quantised),
    "contractive": (partial(Contractive, 0.5), on_points),
    "DReG 3": (partial(DReG, 3), scored),
    "beta per site": (partial(ELBO, beta={"z": 1.5}), has_z),  # free of c, which the model enumerates
    "beta learned": (partial(Beta, 1.0), anywhere),
    "free bits": (partial(FreeBits, 0.01), anywhere),
    "free bits by dimension": (partial(FreeBits, 0.01, group_size=1), by_dimension),
    "capacity": (partial(Capacity, 2.0, 0.7), anywhere),
    "semi-supervised": (partial(SemiSupervised, alpha=3.0, beta=0.5), some_labels),
    "MarginalLikelihood": (MarginalLikelihood, summed),
    "Trace_ELBO": (Trace_ELBO, sampled),
    "TraceMeanField_ELBO": (TraceMeanField_ELBO, mean_field),
    "TraceEnum_ELBO": (TraceEnum_ELBO, enumerated),
}

UNSCORED = ("adversarial VB", "joint ratio", "adversarial autoencoder")  # ask for no density of the guide

PATHLESS = (  # take samples of any kind
    "VIMCO 3",
    "reweighted wake",
    "reweighted wake and sleep",
    "wake-sleep",
    "states summed",
    "Trace_ELBO",
)

LOOSE = (
    "ELBO beta 2",
    "beta per site",
    "free bits",
    "free bits by dimension",
)  # no better than log p(x) less something, whatever the guide


def sites(function: Callable[..., Any], *batch: Any) -> dict[str, Any]:
    return {site["name"]: site for site in random_sites(poutine.trace(function).get_trace(*batch))}


def pathwise(pair: Any, *batch: Tensor) -> bool:
    """Whether the guide's samples let gradients by, those that are not summed."""
    drawn = [site for site in sites(pair.guide, *batch).values() if "enumerate" not in site["infer"]]
    return all(site["fn"].has_rsample for site in drawn)


def made(name: str, seed: int = 0) -> tuple[Any, tuple[Tensor, ...]]:
    pyro.set_rng_seed(seed)
    return PAIRS[name]()


# What each pair is like, to know which laws concern it.
with pyro.get_param_store().scope(), torch.random.fork_rng():
    ALL = {name: make() for name, make in PAIRS.items()}
    KNOWN = {name: structure(pair, *batch) for name, (pair, batch) in ALL.items()}
    OWN = [name for name, (pair, _) in ALL.items() if isinstance(pair, Pair)]
    PATHWISE = [name for name, (pair, batch) in ALL.items() if pathwise(pair, *batch)]
    DESCRIBED = [name for name, (pair, _) in ALL.items() if describe(pair) is not None]
DENSE = [name for name in PAIRS if dense(KNOWN[name])]


def fits(pair: str, objective: str, valid: Valid) -> bool:
    has_what_it_takes = (pair in DENSE or objective in UNSCORED) and (pair in PATHWISE or objective in PATHLESS)
    return has_what_it_takes and valid(KNOWN[pair])


CASES = [(pair, name) for pair in PAIRS for name, (_, valid) in OBJECTIVES.items() if fits(pair, name, valid)]


def an_objective(pair: str) -> pyro.infer.ELBO:
    """The ELBO, or what a pair without some density is trained with."""
    return OBJECTIVES[next(objective for name, objective in CASES if name == pair)][0]()


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def three_svi_steps(pair: Any, objective: pyro.infer.ELBO, *batch: Tensor) -> None:
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), objective)
    assert all(math.isfinite(svi.step(*batch)) for _ in range(3))


# The laws -------------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_part_of_the_library():
    held = {type(m) for pair, _ in ALL.values() if isinstance(pair, nn.Module) for m in pair.modules()}
    for library in (models, nets, conditionals, priors):
        classes = [getattr(library, name) for name in library.__all__]
        bases = {conditionals.Conditional, conditionals.Flow, priors.Flow}
        missing = {cls for cls in classes if isinstance(cls, type)} - held - bases
        assert not missing, f"no row of PAIRS holds {missing}"


def test_every_objective_is_spelled_alike_in_any_process():
    """A run is resumed in another process, where a function lies elsewhere in memory."""
    ours = {make: make() for make, _ in OBJECTIVES.values() if issubclass(getattr(make, "func", make), Objective)}
    public = {getattr(objectives, name) for name in objective_names()}
    assert public == {type(objective) for objective in ours.values()}
    for make, objective in ours.items():
        assert " at 0x" not in repr(objective)
        assert repr(make()) == repr(objective)


def a_kernel(a: Tensor, b: Tensor, width: float = 1.0) -> Tensor:
    return (-torch.cdist(a, b) / width).exp()


class AKernel:
    def __init__(self, inner: Any = None):
        self.inner = inner

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return a_kernel(a, b)

    of = __call__


@dataclass
class Wrapped(AKernel):
    inner: Any = a_kernel


@pytest.mark.parametrize(
    ("kernel", "spelled"),
    [
        (a_kernel, "a_kernel"),
        (AKernel, "AKernel"),
        (AKernel(), "AKernel"),
        (AKernel().of, "AKernel.__call__"),
        (Wrapped(), "Wrapped(inner=<function a_kernel>)"),
        (partial(a_kernel, width=2.0), "a_kernel(width=2.0)"),
        (partial(AKernel, partial(a_kernel, torch.ones(2))), "AKernel(a_kernel(tensor([1., 1.])))"),
        (partial(AKernel, inner=[AKernel(), {"a": torch.cdist}]), "AKernel(inner=[AKernel, {'a': cdist}])"),
    ],
)
def test_functions_of_an_objective_are_spelled_by_their_names(kernel, spelled):
    assert repr(MMD(kernel=kernel)) == f"MMD(num_particles=1, scale=10.0, kernel={spelled}, plate=None)"


@pytest.mark.parametrize("name", PAIRS)
def test_sites_of_model_and_guide_match(name):
    pair, batch = made(name)
    guide_trace = poutine.trace(pair.guide).get_trace(*batch)
    in_guide = {s["name"]: s for s in random_sites(guide_trace) if not s["infer"].get("is_auxiliary")}
    in_model = sites(poutine.replay(pair.model, trace=guide_trace), *batch)
    latent = {name: site for name, site in in_model.items() if not site["is_observed"]}
    summed = {name for name, site in latent.items() if site["infer"].get("enumerate") == "parallel"} - set(in_guide)
    assert set(in_guide) == set(latent) - summed
    assert set(in_model) - set(latent), "nothing is observed"
    for name, site in in_guide.items():
        plates = [{(f.name, f.size, f.full_size) for f in s["cond_indep_stack"]} for s in (site, latent[name])]
        assert plates[0] == plates[1]
        assert site["fn"].event_shape == latent[name]["fn"].event_shape
        assert torch.isfinite(latent[name]["fn"].log_prob(site["value"])).all()


@pytest.mark.parametrize("name", PAIRS)
def test_structure_finds_the_parameters_that_stock_svi_trains(name):
    pair, batch = made(name)
    known = structure(pair, *batch)
    with poutine.trace(param_only=True) as capture:  # as SVI.step does
        pair.guide(*batch)
        pair.model(*batch)
    trained = {id(site["value"].unconstrained()) for site in capture.trace.nodes.values()}
    assert trained
    assert {id(parameter) for parameter in known.parameters.values()} == trained


def every_gradient_is_finite(pair: Any, objective: pyro.infer.ELBO, *batch: Tensor) -> None:
    """And none is zero."""
    known = structure(pair, *batch)
    loss = Step(pair, objective, known).backward(*batch)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    for parameter_name, parameter in known.parameters.items():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), f"the gradient of {parameter_name} is zero"


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_every_parameter_gets_a_finite_gradient(name, objective):
    pair, batch = made(name)
    every_gradient_is_finite(pair, OBJECTIVES[objective][0](), *batch)


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_three_steps_of_stock_svi_change_every_parameter(name, objective):
    pair, batch = made(name)
    parameters = structure(pair, *batch).parameters
    before = snapshot(parameters)
    three_svi_steps(pair, OBJECTIVES[objective][0](), *batch)
    unchanged = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    assert not unchanged


def per_datum(pair: Any, objective: Objective, known: Structure, *batch: Tensor, training: bool = False) -> Tensor:
    """What each row contributes, from the same noise at each call."""
    with evaluation_mode(*([] if training else [pair, *known.modules])), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        return objective.per_datum(objective.draw(pair, *batch, known=known))


def change_of_each_row(pair: Any, objective: Objective, *batch: Tensor, training: bool = False) -> Tensor:
    """How much each row's value changes when row 1 stays and others take the places of the rest.

    One comes twice: statistics of the batch would not notice a mere permutation.
    """
    known = structure(pair, *batch)
    others = tuple(tensor[[2, 1, 0, 0]] for tensor in batch)
    values = [per_datum(pair, objective, known, *rows, training=training) for rows in (batch, others)]
    assert values[0].shape == (ROWS,)
    return (values[0] - values[1]).abs() / values[0].abs()


ROW_CASES = [
    (pair, name)
    for pair, name in CASES
    if issubclass(getattr(make := OBJECTIVES[name][0], "func", make), Objective) and KNOWN[pair].rows == ROWS
]


@pytest.mark.parametrize(("name", "objective"), ROW_CASES)
def test_rows_are_independent(name, objective):
    """In evaluation mode a row's value does not change with other rows, given the same noise for it."""
    pair, batch = made(name)
    made_objective = OBJECTIVES[objective][0]()
    assert isinstance(made_objective, Objective)
    if made_objective.couples_rows:
        pytest.skip("this objective says that it couples rows")
    change = change_of_each_row(as_pair(pair), made_objective, *batch)
    assert change[1] < 1e-6
    assert change.max() > 1e-3, "the other rows did not change, so that the test tells nothing"


def test_coupled_rows_would_be_noticed():
    """The law above is broken by batch normalisation in training mode."""
    pair, batch = made("VAE batch norm and dropout")
    assert change_of_each_row(pair, IWAE(2), *batch, training=True)[1] > 1e-3
    assert change_of_each_row(pair, IWAE(2), *batch)[1] < 1e-6


def test_enumerated_labels_do_not_repeat_the_work_on_x():
    """The matrix products of a whole step, counted by hand: x meets its weights of the encoder once per row."""
    pair, batch = made("M2")
    step = Step(pair, ELBO(), structure(pair, *batch))
    with FlopCounterMode(display=False) as counter:
        step.backward(*batch)
    of_both = 3 * ROWS  # rows of what depends on x and y, and of y, which is known in some
    no_gradient = 2 * ROWS * 6 * 7 + of_both * (3 * 7 + 3 * 7)  # classifier and encoder of x, encoder and decoder of y
    both_gradients = ROWS * 7 * 3 + of_both * (7 * 4 + 2 * 7 + 7 * 6)  # label head, posterior, decoder of z, likelihood
    assert counter.get_total_flops() == 2 * (2 * no_gradient + 3 * both_gradients)


# Values ---------------------------------------------------------------------------------------------------------------


class ExactLabelled(Pair):
    """y ~ Cat, z | y ~ N(m_y, 1), x | z ~ N(z, s^2); the guide has both posteriors and enumerates y."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64))
        self.scale = 0.7

    def evidence(self, x):
        return dist.Normal(self.loc, math.sqrt(1 + self.scale**2)).log_prob(x[:, None]) + self.logits.log_softmax(-1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)

    def guide(self, x):
        variance = self.scale**2 / (1 + self.scale**2)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.evidence(x)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(variance * (self.loc[y] + x / self.scale**2), math.sqrt(variance)))

    def log_prob(self, x):
        return self.evidence(x).logsumexp(-1)


class Summed(ExactLabelled):
    """The same x, with z integrated out and y summed by the model: nothing is left to sample."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.loc[y], math.sqrt(1 + self.scale**2)), obs=x)

    def guide(self, x):
        pass


EXACT = {
    "LinearGaussian": lambda: linear_gaussian(LinearGaussian),
    "labels enumerated by the guide": lambda: (ExactLabelled(), (3 * uniform().double(),)),
    "labels summed by the model": lambda: (Summed(), (3 * uniform().double(),)),
}


def mean_and_error(pair: Any, objective: pyro.infer.ELBO, x: Tensor, draws: int = 50) -> tuple[float, float]:
    """Mean of the objective per datum over independent draws, and its standard error."""
    x = x.repeat(50, *[1] * (x.dim() - 1))
    step = Step(pair, objective, structure(pair, x))
    with torch.no_grad():
        pyro.set_rng_seed(0)
        values = -torch.stack([step(x) for _ in range(draws)])
    return values.mean().item(), values.std().item() / math.sqrt(draws)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", EXACT)
def test_bounds_are_tight_at_the_exact_posterior(name, objective):
    """Without a closed-form KL there is no noise left either: every draw is log p(x)."""
    pair, batch = EXACT[name]()
    make, valid = OBJECTIVES[objective]
    if not valid(structure(pair, *batch)) or not getattr(make(), "is_bound", True) or objective in LOOSE:
        return
    mean, error = mean_and_error(pair, make(), *batch)
    want = pair.log_prob(*batch).mean().item()
    print(f"{mean} +- {error}, log p(x) {want}")
    assert abs(mean - want) < 4 * error + 1e-11
    if objective not in ("ELBO", "TraceMeanField_ELBO"):
        assert error < 1e-12
    assert error < 0.02


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["LooseLinearGaussian", "Mixture"])
def test_bounds_lie_below_log_p_with_another_guide(name, objective):
    pair, batch = made(name)
    make, valid = OBJECTIVES[objective]
    if valid(structure(pair, *batch)) and getattr(make(), "is_bound", True):
        mean, error = mean_and_error(pair, make(), *batch)
        print(f"{mean} +- {error}, log p(x) {pair.log_prob(*batch).mean()}")
        assert mean + 4 * error < pair.log_prob(*batch).mean()


def constant_log_weight(size: int | None, mask: Tensor, enumerates: str | None) -> Functions:
    """The guide is the prior and nothing is observed but a factor x_b: each log-weight is x_b, whatever is drawn."""

    def local_sites(x, in_model):
        with (
            pyro.plate("data", size or len(x), subsample=torch.arange(len(x)) if size else None),
            poutine.mask(mask=mask),
        ):
            if enumerates == "guide" or (enumerates == "model" and in_model):
                side = "model" if in_model else "guide"
                infer = {"enumerate": "parallel"} if side == enumerates else {}
                pyro.sample("y", dist.Categorical(x.new_tensor([0.2, 0.5, 0.3])), infer=infer)
            pyro.sample("z", dist.Normal(pyro.param("loc", x.new_tensor(0.7)), 2.0))
            if in_model:
                pyro.factor("constant", x)

    return Functions(partial(local_sites, in_model=True), partial(local_sites, in_model=False))


@pytest.mark.parametrize("enumerates", [None, "model", "guide"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [None, 12])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_constant_log_weight_is_the_value(objective, size, masked, enumerates):
    """The loss in stock Pyro is minus the sum over the data, N / B times the sum over the batch; in a step the mean."""
    make, valid = OBJECTIVES[objective]
    x = torch.tensor([0.5, -1.25, 2.0, 3.5], dtype=torch.float64)
    mask = torch.tensor([True, False, True, True]) if masked else torch.ones(4, dtype=torch.bool)
    pair = constant_log_weight(size, mask, enumerates)
    if valid(structure(pair, x)) and objective not in (
        "free bits",
        "free bits by dimension",
        "capacity",
    ):  # theirs are tested on their own
        want = -x[mask].sum().item() / 4
        assert make().loss(pair.model, pair.guide, x) == pytest.approx((size or 4) * want, abs=1e-12)
        assert Step(pair, make(), structure(pair, x))(x).item() == pytest.approx(want, abs=1e-12)


# Half precision -------------------------------------------------------------------------------------------------------

HALF = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def dtype_of(name: str) -> torch.dtype:
    """What a pair computes in, as long as nothing is cast."""
    return next(p.dtype for p in KNOWN[name].parameters.values())


@pytest.mark.parametrize("name", DENSE)
def test_terms_and_sums_under_autocast_are_not_in_half_precision(name):
    pair, batch = made(name)
    known = structure(pair, *batch)
    with HALF():
        drawn = ledger(pair, *batch, num_particles=2 if local(known) else 1, known=known)
        terms = [term for draw in drawn.draws for d in (draw, draw.with_closed_form_kl()) for term in d.terms]
        log_p, log_q, entropy = drawn.entries()
        sums = [drawn.elbo(), *log_p.values(), *log_q.values(), entropy, *drawn.closed_form_kl().values()]
    values = [*(t.log_prob for t in terms), *(t.unmasked for t in terms), *sums]
    assert {value.dtype for value in values} == {dtype_of(name)}
    assert all(torch.isfinite(value).all() for value in values)


@pytest.mark.parametrize(("name", "objective"), [case for case in CASES if case[1] in ("ELBO", "IWAE 5")])
def test_loss_and_gradients_under_autocast_are_finite_and_not_in_half_precision(name, objective):
    pair, batch = made(name)
    known = structure(pair, *batch)
    with HALF():
        loss = Step(pair, OBJECTIVES[objective][0](), known).backward(*batch)
    assert loss.dtype == dtype_of(name)
    assert torch.isfinite(loss)
    for parameter_name, parameter in known.parameters.items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.dtype == dtype_of(name), parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), f"the gradient of {parameter_name} is zero"


@pytest.mark.parametrize("objective", ["ELBO", "IWAE 5", "Trace_ELBO"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_in_half_precision_is_within_a_hundredth(likelihood, objective):
    """bfloat16 has 8 bits: each product is right to 0.4 per cent, and the same noise is drawn."""
    pair, batch = made(f"VAE {likelihood}")
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(3)  # so that the data matter to the loss
    losses = []
    for cast in (False, True):
        pyro.set_rng_seed(1)
        with HALF(enabled=cast), torch.no_grad():
            losses.append(Step(pair, OBJECTIVES[objective][0](), KNOWN[f"VAE {likelihood}"])(*batch).item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


# Stock Pyro runs every pair -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_predictive_runs_model_and_guide(name):
    pair, batch = made(name)
    known = KNOWN[name]
    from_prior = Predictive(pair.model, num_samples=3)(*batch)
    assert {*known.latent, *known.observed} <= set(from_prior)
    assert all(len(value) == 3 and torch.isfinite(value).all() for value in from_prior.values())

    def replicated(model):
        pyro.set_rng_seed(2)
        return Predictive(model, guide=pair.guide, num_samples=3)(*batch)

    pyro.set_rng_seed(2)
    with evaluation_mode(pair):  # in training mode each call may move running means, or corrupt the input anew
        from_guide = Predictive(pair.guide, num_samples=3)(*batch) if sites(pair.guide, *batch) else {}
    # Observed sites keep their values: it is the unconditioned model that replicates data.
    observed, drawn = replicated(pair.model), replicated(poutine.uncondition(pair.model))
    of_batch = sites(pair.model, *batch)
    for site in known.observed:
        if known.rows == ROWS:
            assert all(torch.equal(value, of_batch[site]["value"]) for value in observed[site])
        assert drawn[site].shape == observed[site].shape
        assert not torch.equal(drawn[site], observed[site])
    for site, value in from_guide.items():
        if site in known.latent:
            assert len(value) == 3
            fixed = is_point(sites(pair.guide, *batch)[site]["fn"]) and name in OWN
            assert torch.equal(value[0], value[1]) == fixed


@pytest.mark.parametrize("name", PAIRS)
def test_unconditioned_models_draw_another_x(name):
    pair, batch = made(name)
    prior_predictive, conditioned = (sites(f, *batch) for f in (poutine.uncondition(pair.model), pair.model))
    for site in KNOWN[name].observed:
        assert not prior_predictive[site]["is_observed"]
        assert prior_predictive[site]["value"].shape == conditioned[site]["value"].shape
        assert not torch.equal(prior_predictive[site]["value"], conditioned[site]["value"])


# Instances ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["another", "deepcopy", "deepcopy of one that has run"])
@pytest.mark.parametrize("name", OWN)
def test_two_instances_share_nothing(name, second):
    first, batch = made(name)
    if second == "deepcopy of one that has run":
        three_svi_steps(first, an_objective(name), *batch)
    other = made(name, seed=1)[0] if second == "another" else copy.deepcopy(first)
    assert first._pyro_name != other._pyro_name
    before = snapshot(dict(other.named_parameters()))
    start = snapshot(dict(first.named_parameters()))
    three_svi_steps(first, an_objective(name), *batch)
    assert not any(torch.equal(p, start[n]) for n, p in first.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())
    three_svi_steps(other, an_objective(name), *batch)
    assert not any(torch.equal(p, before[n]) for n, p in other.named_parameters())
    mine = [{name for name in pyro.get_param_store() if name.startswith(f"{p._pyro_name}.")} for p in (first, other)]
    assert mine[0]
    assert {name.split(".", 1)[1] for name in mine[0]} == {name.split(".", 1)[1] for name in mine[1]}


def is_rebuilt(pair: Pair, draw: Callable[[Pair], Tensor]) -> None:
    """Its description, as JSON, and its state make a pair that draws the same from the same seed."""
    again = build(json.loads(json.dumps(describe(pair))))
    assert describe(again) == describe(pair)
    again.to(next(pair.parameters()).dtype).load_state_dict(pair.state_dict())
    values = []
    for one in (pair, again):
        pyro.set_rng_seed(5)
        values.append(draw(one))
    assert torch.equal(*values)


@pytest.mark.parametrize("name", DESCRIBED)
def test_description_and_state_rebuild_the_pair(name):
    pair, batch = made(name)
    three_svi_steps(pair, an_objective(name), *batch)
    if name in DENSE and local(KNOWN[name]):
        is_rebuilt(pair, lambda one: log_weights(one, *batch, num_particles=3))
    else:
        latent = KNOWN[name].latent[-1]
        is_rebuilt(pair, lambda one: Predictive(one.model, guide=one.guide, num_samples=3)(*batch)[latent])
