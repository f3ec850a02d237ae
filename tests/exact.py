"""Pairs with known answers, for tests."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.models.base import Pair


class LinearGaussian(Pair):
    """z ~ N(0, I), x | z ~ N(W z + b, s^2 I), with its exact posterior as guide: every log-weight is log p(x)."""

    def __init__(self, data_dim: int = 5, latent_dim: int = 2, scale: float = 0.7, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(data_dim, generator=generator, dtype=torch.float64))
        self.scale = scale

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            latent_dim = self.weight.size(1)
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, covariance = self.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(loc, covariance))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = torch.eye(self.weight.size(1), dtype=x.dtype) + self.weight.T @ self.weight / self.scale**2
        covariance = torch.linalg.inv(precision)
        return (x - self.bias) @ self.weight @ covariance / self.scale**2, covariance

    def log_prob(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.bias), dtype=x.dtype)
        return dist.MultivariateNormal(self.bias, covariance).log_prob(x)

    def sample(self, rows: int, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(rows, self.weight.size(1), generator=generator, dtype=torch.float64)
        noise = torch.randn(rows, len(self.bias), generator=generator, dtype=torch.float64)
        return (z @ self.weight.T + self.bias + self.scale * noise).detach()


class LooseLinearGaussian(LinearGaussian):
    """The same model with a diagonal, shifted guide: a strict gap between the ELBO and log p(x)."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, covariance = self.posterior(x)
            pyro.sample("z", dist.Normal(loc + 0.3, 1.3 * covariance.diagonal().sqrt()).to_event(1))

    def elbo(self, x: Tensor) -> Tensor:
        """log p(x) - KL(q || p(z | x)), exactly."""
        loc, covariance = self.posterior(x)
        q = torch.distributions.MultivariateNormal(loc + 0.3, 1.69 * covariance.diagonal().diag())
        return self.log_prob(x) - torch.distributions.kl_divergence(q, dist.MultivariateNormal(loc, covariance))


class Mixture(Pair):
    """c ~ Cat(pi), z | c ~ N(m_c, 1), x | z, c ~ N(z + s_c, 1): c enumerated in the model, z sampled by the guide."""

    def __init__(self, x_depends_on_c: bool = True):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64))
        self.shift = 1.0 if x_depends_on_c else 0.0

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.loc[c], 1.0))
            pyro.sample("x", dist.Normal(z + self.shift * c, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.2))

    def log_prob(self, x: Tensor) -> Tensor:
        c = torch.arange(3, dtype=x.dtype)
        each = dist.Normal(self.loc + self.shift * c, math.sqrt(2)).log_prob(x[:, None])
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + each, -1)


class GaussianMixture(Pair):
    """c ~ Cat(pi), x | c ~ N(m_c, diag s_c^2), everything summed: nothing is left for the guide."""

    def __init__(self, weights: Tensor, locs: Tensor, scales: Tensor):
        super().__init__()
        self.log_weights = nn.Parameter(weights.log())
        self.locs = nn.Parameter(locs.clone())
        self.log_scales = nn.Parameter(scales.log())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.log_weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.locs[c], self.log_scales[c].exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pass

    def maximize(self, responsibilities: dict[str, Tensor], x: Tensor) -> None:
        """The M-step in closed form."""
        weights = responsibilities["c"]  # (B, C)
        counts = weights.sum(0)
        locs = weights.T @ x / counts[:, None]
        variances = (weights[..., None] * (x[:, None] - locs) ** 2).sum(0) / counts[:, None]
        with torch.no_grad():
            self.log_weights.copy_((counts / len(x)).log())
            self.locs.copy_(locs)
            self.log_scales.copy_(variances.log() / 2)

    def log_prob(self, x: Tensor) -> Tensor:
        each = dist.Normal(self.locs, self.log_scales.exp()).to_event(1).log_prob(x[:, None])
        return torch.logsumexp(self.log_weights.log_softmax(-1) + each, -1)
