"""The variational auto-encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, DiagonalNormal
from pyrovae.models.base import Pair, evaluation_mode
from pyrovae.nets import MLP, as_shape, as_size
from pyrovae.priors import StandardNormal

__all__ = ["VAE", "feature_shape", "filled"]


_EVENT = {"prior": 0, "posterior": 1, "conditional": 1, "likelihood": 1}  # which argument is the shape of its events


class VAE(Pair):
    r"""Variational auto-encoder.

        z ~ p(z)        x | z ~ p(x | z)        q(z | x)

    Every slot takes a module, or a class (or `functools.partial`) that makes one.

    Args:
        event_shape: shape of one x.
        latent_dim: L, length of z.
        hidden: sizes of the hidden layers of the default networks, from x to z; the decoder has them reversed.
        encoder: x (..., *event_shape) to features; made by `encoder(event_shape)`. Default: an MLP, tanh. The length of
            the features is its attribute `feature_shape`, or is found out with a row of zeros, floating or else whole.
        decoder: z (..., L) to features; made by `decoder(latent_dim, event_shape)`. Default: an MLP, tanh.
        prior: p(z), called without arguments; made by `prior(latent_dim)`. One with a method `bind` is given q(z | x).
        posterior: q(z | x) of the encoder's features; made by `posterior(feature_shape, latent_dim)`.
        likelihood: p(x | z) of the decoder's features; made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, a slot that is neither module nor maker, or
            a module of another event shape.

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
        event_shape, hidden = as_shape(event_shape), as_shape(hidden, "hidden")
        latent_dim = as_size(latent_dim, "latent_dim")
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
        ValueError: if it is one of another event shape.
    """
    if slot == "decoder" and value is MLP:
        raise TypeError(
            "decoder is MLP, which takes no event_shape; leave it out and pass hidden=, or pass an MLP(...)"
        )
    made = value if isinstance(value, nn.Module) else value(*arguments) if callable(value) else None
    if not isinstance(made, nn.Module):
        raise TypeError(f"{slot} is {value!r}, not a module nor a class that makes one; pass an nn.Module")
    got = getattr(made, "event_shape", None)
    if slot in _EVENT and isinstance(got, int | Sequence):
        got, want = as_shape(got), as_shape(arguments[_EVENT[slot]])
        if got != want:
            raise ValueError(
                f"{slot} is a {type(made).__name__} of event shape {got}, wanted is {want}; pass a {slot} of event "
                f"shape {want}, or what makes one"
            )
    return made


def feature_shape(network: nn.Module, *event_shapes: Sequence[int]) -> tuple[int, ...]:
    """Shape of one datum's features: as the network states it, or as it comes out for a row of zeros of each input.

    Raises:
        ValueError: where it takes neither floating nor whole zeros.
    """
    stated = getattr(network, "feature_shape", None)
    if stated is not None:
        return tuple(stated)
    example = next(iter(network.parameters()), torch.zeros(()))
    zeros = [example.new_zeros((1, *shape)) for shape in event_shapes]
    with torch.no_grad(), evaluation_mode(network):
        try:
            return tuple(network(*zeros).shape[1:])
        except RuntimeError as error:
            with contextlib.suppress(RuntimeError):
                return tuple(network(*(each.long() for each in zeros)).shape[1:])  # as an nn.Embedding wants
            shapes, said = ", ".join(str(tuple(each.shape)) for each in zeros), str(error).partition("\n")[0]
            raise ValueError(
                f"{type(network).__name__} does not run on zeros of shape {shapes} ({said}); "
                "pass a network of such inputs, or give it an attribute feature_shape"
            ) from error
