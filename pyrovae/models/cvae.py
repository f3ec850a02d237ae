"""The conditional VAE: everything given a label, or a part of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, DiagonalNormal
from pyrovae.models.base import Pair
from pyrovae.models.vae import feature_shape, filled
from pyrovae.nets import MultiMLP, as_shape, as_size, leading_shape
from pyrovae.priors import StandardNormal

__all__ = ["CVAE"]


class CVAE(Pair):
    r"""Conditional variational auto-encoder, for a condition y that is always given: a label or a tensor.

        z ~ p(z), or p(z | y)        x | z, y ~ p(x | z, y)        q(z | x, y)

    Its bound is one on log p(x | y); nothing is said of p(y). Labels enter the networks as one-hot vectors.

    Args:
        event_shape: shape of one x.
        latent_dim: L, length of z.
        num_classes: C; y are labels 0, ..., C - 1, unless condition_shape is given.
        condition_shape: shape of one y that is a tensor, such as the visible part of an image; an int for a vector.
        hidden: sizes of the hidden layers of the default networks, from (x, y) to z; the decoder has them reversed.
        encoder: x (..., *event_shape) and y (..., *c) to features; made by `encoder([event_shape, c])`, c being (C,) or
            condition_shape. Default: a `MultiMLP`.
        decoder: z (..., L) and y to features; made by `decoder([latent_dim, c])`. Default: a `MultiMLP`.
        prior: called with y (..., *c); one that ignores it is p(z), one of y's leading dims p(z | y). Made by
            `prior(latent_dim)`.
        posterior: q(z | x, y) of the encoder's features; made by `posterior(feature_shape, latent_dim)`.
        likelihood: p(x | z, y) of the decoder's features; made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or a slot that is neither module nor maker;
            at the call for a y of another shape; in `fit` and evaluations for labels out of range, elsewhere NaN.

    Shapes: x (B, *event_shape), y (B,) of whole numbers or (B, *condition_shape), z (B, L).
    Source: Sohn, Lee & Yan 2015, "Learning Structured Output Representation using Deep Conditional Generative Models",
    NIPS; with labels and p(z): Kingma et al. 2014, https://arxiv.org/abs/1406.5298, M2 where all labels are known.

    >>> pair = CVAE((1, 8, 8), latent_dim=2, num_classes=10, hidden=(50,))
    >>> pair.condition(torch.tensor([1, 3])).shape
    torch.Size([2, 10])
    >>> CVAE(32, latent_dim=2, condition_shape=(1, 4, 8), hidden=(50,)).decoder.event_shapes
    ((2,), (1, 4, 8))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int,
        *,
        num_classes: int = 10,
        condition_shape: int | Sequence[int] | None = None,
        hidden: Sequence[int] = (200, 200),
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        decoder: nn.Module | Callable[..., nn.Module] | None = None,
        prior: nn.Module | Callable[..., nn.Module] = StandardNormal,
        posterior: nn.Module | Callable[..., nn.Module] = DiagonalNormal,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.latent_dim = as_size(latent_dim, "latent_dim")
        classes = as_size(num_classes, "num_classes")
        self.num_classes = classes if condition_shape is None else None
        given = (classes,) if condition_shape is None else as_shape(condition_shape, "condition_shape")
        self.condition_shape = given
        made = MultiMLP([self.event_shape, given], hidden) if encoder is None else encoder
        self.encoder = filled("encoder", made, [self.event_shape, given])
        made = MultiMLP([self.latent_dim, given], as_shape(hidden, "hidden")[::-1]) if decoder is None else decoder
        self.decoder = filled("decoder", made, [self.latent_dim, given])
        self.prior = filled("prior", prior, self.latent_dim)
        features = feature_shape(self.encoder, self.event_shape, given)
        self.posterior = filled("posterior", posterior, features, self.latent_dim)
        features = feature_shape(self.decoder, (self.latent_dim,), given)
        self.likelihood = filled("likelihood", likelihood, features, self.event_shape)

    def model(self, x: Tensor, y: Tensor) -> None:
        """z ~ p(z | y), x | z, y ~ p(x | z, y), for each row of x and y."""
        given = self.condition(y)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(given))
            pyro.sample("x", self.likelihood(self.decoder(z, given)), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(z | x, y), for each row of x and y."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(x, self.condition(y))))

    def check_batch(self, x: Tensor, y: Tensor) -> None:
        """Refuse a y that is no condition, before `fit` or an evaluation starts.

        Raises:
            ValueError: for labels that are no whole numbers or out of range, with their number and the first one's row,
                or a y of another shape.
        """
        if self.num_classes is None:
            self.condition(y)
            return
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, labels have shape ({len(x)},), one for each row of x; pass one label "
                "for each, or condition_shape= for a y that is a tensor"
            )
        wrong = self.condition(y).isnan().any(-1)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"y has {int(wrong.sum())} labels that are none of 0, ..., {self.num_classes - 1}, the first in row "
                f"{row} ({y[row]:g}); number the classes from 0, or pass num_classes="
            )

    def condition(self, y: Tensor) -> Tensor:
        """What the networks see of y: its one-hot vectors (..., C) if it is labels, else y itself.

        No value is looked at, as a captured step can't: a label that is none of 0, ..., C - 1 becomes NaN.

        Raises:
            ValueError: for a y that is a tensor of another shape.
        """
        if self.num_classes is None:
            leading_shape(y, self.condition_shape, name="y", argument="condition_shape")
            return y
        matches = y[..., None] == torch.arange(self.num_classes, device=y.device)
        dtype = next(self.posterior.parameters()).dtype
        return matches.to(dtype).masked_fill(~matches.any(-1, keepdim=True), math.nan)
