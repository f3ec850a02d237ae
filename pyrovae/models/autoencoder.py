"""Auto-encoders: a code, and what it decodes to. There is no density of x, and no bound on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, Point
from pyrovae.distributions import Flat
from pyrovae.models.base import Pair
from pyrovae.models.vae import feature_shape, filled
from pyrovae.nets import MLP, as_shape, as_size

__all__ = ["Autoencoder"]

Slot = nn.Module | Callable[..., nn.Module]


class Autoencoder(Pair):
    r"""Auto-encoder, deterministic or denoising.

        p(z) = 1        x | z ~ p(x | z)        q(z | x) = Delta(z - f(x~))        x~ ~ corruption(x~ | x)

    p(z) is flat and improper, so that there is no p(x) and no bound on it: what objectives maximise is the
    reconstruction E log p(x | f(x~)), minus a cross-entropy or half a squared error with their constants, and it is
    labelled so. `pyrovae.elbo` reports it, and what estimates log p(x) refuses the pair.

    The corruption is drawn in training mode only, one for each datum; evaluation encodes x as it is given.

    Args:
        event_shape: shape of one x.
        latent_dim: L, length of the code z.
        hidden: sizes of the hidden layers of the default networks, from x to z; the decoder has them reversed.
        encoder, decoder: as in `VAE`.
        posterior: of the encoder's features, its mean is the code f(x); made by `posterior(feature_shape, latent_dim)`.
        likelihood: p(x | z) of the decoder's features; made by `likelihood(feature_shape, event_shape)`. `Bernoulli`
            for bits, `CrossEntropy` for grey x in [0, 1], `FixedNormal` for half the squared error.
        corruption: x to x~, a module that does nothing in evaluation mode: `pyrovae.nets.Masking`, `GaussianNoise`,
            `SaltAndPepper`, `nn.Dropout`; or what makes one, called without arguments. None: no corruption.

    Raises:
        TypeError, ValueError: as in `VAE`.

    Shapes: x (B, *event_shape), z (B, L).
    Source: Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html, sections 2.2 and 3.1.

    >>> from functools import partial
    >>> from pyrovae.nets import Masking
    >>> pair = Autoencoder((1, 8, 8), latent_dim=2, hidden=(100, 50), corruption=partial(Masking, p=0.3))
    >>> pair.corruption
    Masking(p=0.3)
    """

    origin: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int,
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Slot | None = None,
        decoder: Slot | None = None,
        posterior: Slot = Point,
        likelihood: Slot = Bernoulli,
        corruption: Slot | None = None,
    ) -> None:
        super().__init__()
        event_shape, hidden = as_shape(event_shape), as_shape(hidden, "hidden")
        latent_dim = as_size(latent_dim, "latent_dim")
        self.event_shape, self.latent_dim = event_shape, latent_dim
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)
        self.corruption = nn.Identity() if corruption is None else filled("corruption", corruption)
        self.encoder = filled("encoder", MLP(event_shape, hidden) if encoder is None else encoder, event_shape)
        self.decoder = filled(
            "decoder", MLP(latent_dim, hidden[::-1]) if decoder is None else decoder, latent_dim, event_shape
        )
        self.posterior = filled("posterior", posterior, feature_shape(self.encoder, event_shape), latent_dim)
        self.likelihood = filled("likelihood", likelihood, feature_shape(self.decoder, (latent_dim,)), event_shape)

    @classmethod
    def of(cls, pair: Any, *, corruption: Slot | None = None) -> Self:
        """The auto-encoder of a pair's own modules: to fit it is to pretrain the pair, in place.

        The code is the mean of the pair's q(z | x); its prior is left out, and what else its posterior has (scales, for
        one) stays as it is.

        Args:
            pair: with the modules `encoder`, `posterior`, `decoder` and `likelihood` of a `VAE`, and its `event_shape`
                and `latent_dim`.
            corruption: see the constructor.

        Raises:
            TypeError: for a pair that lacks one of them.

        >>> from pyrovae.models import VAE
        >>> vae = VAE(8, latent_dim=2, hidden=(5,))
        >>> Autoencoder.of(vae).decoder is vae.decoder
        True
        """
        slots = ("encoder", "posterior", "decoder", "likelihood")
        lacking = [slot for slot in slots if not isinstance(getattr(pair, slot, None), nn.Module)]
        lacking += [name for name in ("event_shape", "latent_dim") if not hasattr(pair, name)]
        if lacking:
            raise TypeError(
                f"pair is a {type(pair).__name__} without {', '.join(lacking)}; pass one with the parts of a VAE, "
                "or make an Autoencoder(event_shape, latent_dim, encoder=, decoder=, ...) of your modules"
            )
        modules = {slot: getattr(pair, slot) for slot in slots}
        return cls(pair.event_shape, pair.latent_dim, **modules, corruption=corruption)

    def model(self, x: Tensor) -> None:
        """Any z, x | z ~ p(x | z), for each row of x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Flat(self.origin))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        """The code of x, corrupted in training mode, for each row of x."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior_of(self.corruption(x)))

    def posterior_of(self, x: Tensor) -> dist.TorchDistribution:
        """The code f(x) as a distribution, for x (..., *event_shape)."""
        q = self.posterior(self.encoder(x))
        try:
            return dist.Delta(q.mean, event_dim=1)
        except NotImplementedError as error:
            raise TypeError(
                f"posterior is a {type(self.posterior).__name__}, whose {type(q).__name__} has no mean to be the code; "
                "pass posterior=Point, or DiagonalNormal"
            ) from error
