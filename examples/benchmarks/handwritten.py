"""The benchmark's models in plain PyTorch, as one writes them by hand: a module, and a loss of module and batch.

Each loss is the mean over the batch of minus the same bound as the pair's, in nats, KL in closed form where there is
one. Submodules are registered in the pair's order, so that `parameters()` of both match one by one.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Hidden layers, each with its activation."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers)


class VAE(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module, posterior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.posterior, self.likelihood = posterior, likelihood


def dense_vae(data_dim: int, hidden: tuple[int, ...], latent_dim: int, activation: type[nn.Module] = nn.Tanh) -> VAE:
    return VAE(
        mlp(data_dim, *hidden, activation=activation),
        mlp(latent_dim, *hidden[::-1], activation=activation),
        nn.Linear(hidden[-1], 2 * latent_dim),
        nn.Linear(hidden[0], data_dim),
    )


def conv_vae(latent_dim: int) -> VAE:
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, 64 * 7 * 7),
        nn.ReLU(),
        nn.Unflatten(1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
    )
    return VAE(encoder, decoder, nn.Linear(64 * 7 * 7, 2 * latent_dim), nn.Conv2d(32, 1, 1))


def vae_loss(vae: VAE, x: Tensor) -> Tensor:
    mean, log_variance = vae.posterior(vae.encoder(x)).chunk(2, -1)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    logits = vae.likelihood(vae.decoder(z))
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return (nll + kl_to_standard(mean, log_variance).sum()) / len(x)


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)


def iwae_loss(vae: VAE, x: Tensor, num_particles: int = 50) -> Tensor:
    mean, log_variance = vae.posterior(vae.encoder(x)).chunk(2, -1)  # (B, L)
    noise = torch.randn(num_particles, *mean.shape, device=x.device, dtype=x.dtype)  # (K, B, L)
    z = mean + torch.exp(0.5 * log_variance) * noise
    logits = vae.likelihood(vae.decoder(z))  # (K, B, D)
    nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    log_ratio = 0.5 * (noise.square() + log_variance - z.square()).sum(-1)  # log p(z) - log q(z | x)
    log_weights = log_ratio - nll  # (K, B)
    return math.log(num_particles) - torch.logsumexp(log_weights, 0).mean()


class Hierarchy(nn.Module):
    def __init__(self, data_dim: int, latent_dims: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (data_dim, *latent_dims)
        self.encoders = nn.ModuleList(mlp(size, h) for size, h in zip(sizes, hidden, strict=False))
        self.decoders = nn.ModuleList(mlp(size, h) for size, h in zip(latent_dims, hidden, strict=True))
        self.posteriors = nn.ModuleList(nn.Linear(h, 2 * n) for h, n in zip(hidden, latent_dims, strict=True))
        self.priors = nn.ModuleList(nn.Linear(h, 2 * n) for h, n in zip(hidden[1:], latent_dims, strict=False))
        self.likelihood = nn.Linear(hidden[0], data_dim)


def hierarchy_loss(net: Hierarchy, x: Tensor) -> Tensor:
    h, z, minus_log_q = x, [], 0.0
    for encoder, posterior in zip(net.encoders, net.posteriors, strict=True):
        mean, log_variance = posterior(encoder(h)).chunk(2, -1)
        noise = torch.randn_like(mean)
        h = mean + torch.exp(0.5 * log_variance) * noise
        z.append(h)
        # The constants log 2 pi cancel with those of p.
        minus_log_q = minus_log_q + 0.5 * (noise.square() + log_variance).sum()
    minus_log_p = 0.5 * z[-1].square().sum()
    for value, above, decoder, prior in zip(z[:-1], z[1:], net.decoders[1:], net.priors, strict=True):
        mean, log_variance = prior(decoder(above)).chunk(2, -1)
        minus_log_p = minus_log_p + 0.5 * ((value - mean).square() * torch.exp(-log_variance) + log_variance).sum()
    logits = net.likelihood(net.decoders[0](z[0]))
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return (nll + minus_log_p - minus_log_q) / len(x)


class VaDE(nn.Module):
    def __init__(self, data_dim: int, latent_dim: int, num_components: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        parts = dense_vae(data_dim, hidden, latent_dim, nn.ReLU)
        # Parameters of a module's own come first in parameters(), in the pair as well.
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(num_components, latent_dim))
        self.encoder, self.decoder = parts.encoder, parts.decoder
        self.posterior, self.likelihood = parts.posterior, parts.likelihood


def vade_loss(net: VaDE, x: Tensor) -> Tensor:
    mean, log_variance = net.posterior(net.encoder(x)).chunk(2, -1)  # (B, L)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    nll = F.binary_cross_entropy_with_logits(net.likelihood(net.decoder(z)), x, reduction="sum")
    distance = (z[:, None] - net.loc).square() * torch.exp(-net.log_variance) + net.log_variance  # (B, C, L)
    log_p = torch.logsumexp(F.log_softmax(net.logits, -1) - 0.5 * distance.sum(-1), -1)  # (B,), less log 2 pi
    entropy = 0.5 * (1 + log_variance).sum()  # less log 2 pi
    return (nll - log_p.sum() - entropy) / len(x)


class M2(nn.Module):
    def __init__(self, data_dim: int, latent_dim: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(data_dim, hidden), nn.Softplus(), nn.Linear(hidden, num_classes))
        self.encoder = nn.Linear(data_dim + num_classes, hidden)
        self.decoder = nn.Linear(latent_dim + num_classes, hidden)
        self.posterior = nn.Linear(hidden, 2 * latent_dim)
        self.likelihood = nn.Linear(hidden, data_dim)
        self.register_buffer("labels", torch.eye(num_classes))


def m2_loss(net: M2, x: Tensor) -> Tensor:
    num_classes = len(net.labels)
    log_q = F.log_softmax(net.classifier(x), -1)  # (B, C)
    y = net.labels[:, None].expand(-1, len(x), -1)  # (C, B, C)
    x = x.expand(num_classes, *x.shape)  # (C, B, D)
    mean, log_variance = net.posterior(F.softplus(net.encoder(torch.cat([x, y], -1)))).chunk(2, -1)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)  # (C, B, L)
    logits = net.likelihood(F.softplus(net.decoder(torch.cat([z, y], -1))))  # (C, B, D)
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)  # (C, B)
    loss = (nll + kl_to_standard(mean, log_variance)).T + log_q + math.log(num_classes)  # (B, C)
    return (log_q.exp() * loss).sum(-1).mean()


class HMM(nn.Module):
    def __init__(self, num_states: int, data_dim: int) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.zeros(num_states))
        self.transition = nn.Parameter(torch.randn(num_states, num_states))
        self.loc = nn.Parameter(torch.randn(num_states, data_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_states, data_dim))


def hmm_loss(net: HMM, x: Tensor) -> Tensor:
    residual = (x[:, :, None] - net.loc) * torch.exp(-net.log_scale)  # (B, T, S, D)
    emission = -(0.5 * residual.square() + net.log_scale + 0.5 * math.log(2 * math.pi)).sum(-1)  # (B, T, S)
    steps = F.log_softmax(net.transition, -1) + emission[:, :, None]  # (B, T, S, S)
    while steps.size(1) > 1:
        pairs = steps[:, : steps.size(1) // 2 * 2]
        products = log_matmul(pairs[:, 0::2], pairs[:, 1::2])
        steps = torch.cat([products, steps[:, -1:]], 1) if steps.size(1) % 2 else products
    log_p = torch.logsumexp(F.log_softmax(net.initial, -1)[:, None] + steps[:, 0], (-2, -1))  # (B,)
    return -log_p.mean()


def log_matmul(a: Tensor, b: Tensor) -> Tensor:
    a_max, b_max = a.detach().amax(-1, keepdim=True), b.detach().amax(-2, keepdim=True)
    product = torch.exp(a - a_max) @ torch.exp(b - b_max)
    return torch.log(product.clamp_min(torch.finfo(product.dtype).tiny)) + a_max + b_max
