"""The variational auto-encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, DiagonalNormal
from pyrovae.models.base import Pair, evaluation_mode
from pyrovae.nets import MLP, as_shape
from pyrovae.priors import StandardNormal

__all__ = ["VAE", "feature_shape", "filled"]


class VAE(Pair):
    r"""Variational auto-encoder.

        z ~ p(z)        x | z ~ p(x | z)        q(z | x)

    Every slot takes a module, or a class (or `functools.partial`) that makes one.

    Args:
        event_shape: shape of one x.
        latent_dim: L, length of z.
        hidden: sizes of the hidden layers of the default networks, from x to z; the decoder has them reversed.
        encoder: x (..., *event_shape) to features; made by `encoder(event_shape)`. Default: an MLP, tanh.
        decoder: z (..., L) to features; made by `decoder(latent_dim, event_shape)`. Default: an MLP, tanh.
        prior: p(z), called without arguments; made by `prior(latent_dim)`. One with a method `bind` is given q(z | x).
        posterior: q(z | x) of the encoder's features; made by `posterior(feature_shape, latent_dim)`.
        likelihood: p(x | z) of the decoder's features; made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or a slot that is neither module nor maker.

    Shapes: x (B, *event_shape), z (B, L).
    Source: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114; the default networks are those of Burda et al. 2016.

    >>> from pyrovae.conditionals import LearnedNormal
    >>> vae = VAE((1, 8, 8), latent_dim=2, hidden=(100, 50), likelihood=LearnedNormal)
    >>> vae.decoder(torch.zeros(3, 2)).shape
    torch.Size([3, 100])
    """

    default_encoder: ClassVar[type[MLP]] = MLP

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int,
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        decoder: nn.Module | Callable[..., nn.Module] | None = None,
        prior: nn.Module | Callable[..., nn.Module] = StandardNormal,
        posterior: nn.Module | Callable[..., nn.Module] = DiagonalNormal,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__()
        event_shape = as_shape(event_shape)
        (latent_dim,) = as_shape(latent_dim, "latent_dim")
        self.event_shape, self.latent_dim = event_shape, latent_dim
        self.encoder = filled(
            "encoder", self.default_encoder(event_shape, hidden) if encoder is None else encoder, event_shape
        )
        self.decoder = filled(
            "decoder", MLP(latent_dim, hidden[::-1]) if decoder is None else decoder, latent_dim, event_shape
        )
        self.prior = filled("prior", prior, latent_dim)
        self.posterior = filled("posterior", posterior, feature_shape(self.encoder, event_shape), latent_dim)
        self.likelihood = filled("likelihood", likelihood, feature_shape(self.decoder, (latent_dim,)), event_shape)
        bind = getattr(self.prior, "bind", None)  # of priors that are made of q(z | x)
        if callable(bind):
            bind(self.posterior_of, event_shape)

    def model(self, x: Tensor) -> None:
        """z ~ p(z), x | z ~ p(x | z), for each row of x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x), for each row of x."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior_of(x))

    def posterior_of(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) as a distribution, for x (..., *event_shape)."""
        return self.posterior(self.encoder(x))


def filled(slot: str, value: Any, *arguments: Any) -> nn.Module:
    """The module in a pair's slot: `value` itself, or what it makes of the arguments.

    Raises:
        TypeError: if that is no module.
    """
    if slot == "decoder" and value is MLP:
        raise TypeError(
            "decoder is MLP, which takes no event_shape; leave it out and pass hidden=, or pass an MLP(...)"
        )
    made = value if isinstance(value, nn.Module) else value(*arguments) if callable(value) else None
    if not isinstance(made, nn.Module):
        raise TypeError(f"{slot} is {value!r}, not a module nor a class that makes one; pass an nn.Module")
    return made


def feature_shape(network: nn.Module, *event_shapes: Sequence[int]) -> tuple[int, ...]:
    """Shape of one datum's features: as the network states it, or as it comes out for a row of zeros of each input."""
    stated = getattr(network, "feature_shape", None)
    if stated is not None:
        return tuple(stated)
    example = next(iter(network.parameters()), torch.zeros(()))
    with torch.no_grad(), evaluation_mode(network):
        return tuple(network(*(example.new_zeros((1, *shape)) for shape in event_shapes)).shape[1:])
