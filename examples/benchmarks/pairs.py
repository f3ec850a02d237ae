"""Pairs of the benchmark that are more than `pyrovae.VAE`: a hierarchy, VaDE, M2 and an HMM."""

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, DiagonalNormal
from pyrovae.models.base import Pair
from pyrovae.nets import MLP


class Normal(DiagonalNormal):
    """`DiagonalNormal` without its floor on the scale: the mathematics that people write by hand."""

    def __init__(self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int]) -> None:
        super().__init__(feature_shape, event_shape, min_scale=0.0)


class Concatenated(nn.Module):
    """A linear layer of several inputs in the usual way: broadcast, concatenate, multiply."""

    def __init__(self, in_features: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(in_features), out_features)

    def forward(self, *inputs: Tensor) -> Tensor:
        leading = torch.broadcast_shapes(*(tensor.shape[:-1] for tensor in inputs))
        return self.linear(torch.cat([tensor.expand(*leading, tensor.size(-1)) for tensor in inputs], -1))


class Hierarchy(Pair):
    r"""L layers of latents, the guide from the data up.

        z_L ~ N(0, I)    z_l | z_(l+1)    x | z_1        q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_(L-1))

    Source: Burda et al. 2016, https://arxiv.org/abs/1509.00519, whose largest has two layers.
    """

    def __init__(self, data_dim: int, latent_dims: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = (data_dim, *latent_dims)
        self.encoders = nn.ModuleList(MLP(size, (h,)) for size, h in zip(sizes, hidden, strict=False))
        self.decoders = nn.ModuleList(MLP(size, (h,)) for size, h in zip(latent_dims, hidden, strict=True))
        self.posteriors = nn.ModuleList(Normal(h, size) for h, size in zip(hidden, latent_dims, strict=True))
        self.priors = nn.ModuleList(Normal(h, size) for h, size in zip(hidden[1:], latent_dims, strict=False))
        self.likelihood = Bernoulli(hidden[0], data_dim)
        self.register_buffer("zeros", torch.zeros(latent_dims[-1]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = len(self.decoders)
            z = pyro.sample(f"z{top}", dist.Normal(self.zeros, self.zeros + 1).to_event(1))
            for layer in range(top - 1, 0, -1):
                z = pyro.sample(f"z{layer}", self.priors[layer - 1](self.decoders[layer](z)))
            pyro.sample("x", self.likelihood(self.decoders[0](z)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            h = x
            for layer, (encoder, posterior) in enumerate(zip(self.encoders, self.posteriors, strict=True), 1):
                h = pyro.sample(f"z{layer}", posterior(encoder(h)))


class VaDE(Pair):
    r"""A mixture of Gaussians in the latent space, its component summed out.

        c ~ Cat(pi)    z | c ~ N(m_c, s_c^2)    x | z        q(z | x)

    Source: Jiang et al. 2017, https://arxiv.org/abs/1611.05148, with q(c | x) at its optimum p(c | z).
    """

    def __init__(self, data_dim: int, latent_dim: int, num_components: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = MLP(data_dim, hidden, activation=nn.ReLU)
        self.decoder = MLP(latent_dim, hidden[::-1], activation=nn.ReLU)
        self.posterior = Normal(hidden[-1], latent_dim)
        self.likelihood = Bernoulli(hidden[0], data_dim)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(num_components, latent_dim))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            scale = torch.exp(self.log_variance / 2)
            z = pyro.sample("z", dist.Normal(self.loc[c], scale[c]).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(x)))


class M2(Pair):
    r"""Semi-supervised VAE on rows without labels: y enumerated in the guide.

        y ~ Cat(1/C)    z ~ N(0, I)    x | y, z        q(y | x) q(z | x, y)

    Args:
        layer: makes the layers of two inputs, `layer((m, n), out)(x, y)`.

    Source: Kingma et al. 2014, https://arxiv.org/abs/1406.5298
    """

    def __init__(
        self, data_dim: int, latent_dim: int, num_classes: int, hidden: int, layer: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(data_dim, hidden), nn.Softplus(), nn.Linear(hidden, num_classes))
        self.encoder = layer((data_dim, num_classes), hidden)
        self.decoder = layer((latent_dim, num_classes), hidden)
        self.activation = nn.Softplus()
        self.posterior = Normal(hidden, latent_dim)
        self.likelihood = Bernoulli(hidden, data_dim)
        self.register_buffer("uniform", torch.zeros(num_classes))
        self.register_buffer("zeros", torch.zeros(latent_dim))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.uniform))
            z = pyro.sample("z", dist.Normal(self.zeros, self.zeros + 1).to_event(1))
            pyro.sample("x", self.likelihood(self.activation(self.decoder(z, y))), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.OneHotCategorical(logits=self.classifier(x))
            y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", self.posterior(self.activation(self.encoder(x, y))))


class HMM(Pair):
    r"""A hidden Markov chain with Gaussian emissions, its states summed out: no latent site, an empty guide.

    s_0 ~ Cat(pi)    s_t | s_(t-1) ~ Cat(A)    x_t | s_t ~ N(m, v)        t = 1 ... T
    """

    def __init__(self, num_states: int, data_dim: int) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.zeros(num_states))
        self.transition = nn.Parameter(torch.randn(num_states, num_states))
        self.loc = nn.Parameter(torch.randn(num_states, data_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_states, data_dim))

    def model(self, x: Tensor) -> None:
        emission = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        with pyro.plate("data", len(x)):
            chain = dist.DiscreteHMM(self.initial, self.transition, emission, duration=x.size(1))
            pyro.sample("x", chain, obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pass
