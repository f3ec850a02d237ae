"""A conditional without a density: what a network makes of features and noise."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.conditionals.base import Conditional
from pyrovae.nets import MLP, MultiMLP, as_shape, as_size

__all__ = ["Implicit"]


class Implicit(Conditional):
    r"""z = g(h, eps), eps ~ N(0, I): any distribution that a network can make of noise, and no density.

    As posterior q(z | x) of an encoder's features, or as likelihood p(x | z), a simulator, of a decoder's. It is drawn
    from and never scored: bounds refuse it by its site's name. `AdversarialVB` trains a guide that has one,
    `JointRatio` a model too, `AdversarialAutoencoder` any encoder; `pyrovae.ais` evaluates a pair with such a guide.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one z.
        noise_dim: length of eps. Default: as many numbers as z has. With 0, z is a point: a deterministic encoder.
        hidden: sizes of the hidden layers of g, at least one.
        activation: class of their nonlinearity.

    Returns:
        From `forward(features)`: a `pyrovae.distributions.Implicit`.

    Raises:
        TypeError, ValueError: as in `Conditional`, for the sizes of g too.

    Source: Mescheder, Nowozin & Geiger 2017, https://arxiv.org/abs/1701.04722 (their g is the whole encoder).

    >>> q = Implicit(200, 2)(torch.zeros(5, 200))
    >>> q.rsample((3,)).shape
    torch.Size([3, 5, 2])
    """

    is_density = False

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        noise_dim: int | None = None,
        hidden: Sequence[int] = (200,),
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        feature_shape = as_shape(feature_shape, "feature_shape")
        hidden = as_shape(hidden, "hidden")
        if not hidden:
            raise ValueError("hidden is empty, but features and noise meet in a hidden layer; pass hidden=(200,)")
        super().__init__(hidden[-1], event_shape)
        self.feature_shape = feature_shape
        if noise_dim is None:
            noise_dim = torch.Size(self.event_shape).numel()
        self.noise_dim = 0 if noise_dim == 0 else as_size(noise_dim, "noise_dim")
        self.network: nn.Module = (
            MultiMLP([feature_shape, self.noise_dim], hidden, activation=activation)
            if self.noise_dim
            else MLP(feature_shape, hidden, activation=activation)
        )

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """What g makes of h and noise."""
        leading = features.shape[: features.dim() - len(self.feature_shape)]
        weight = self.head.layer.weight  # its dtype, under autocast too
        noise = dist.Normal(weight.new_zeros(()), weight.new_ones(())).expand((*leading, self.noise_dim)).to_event(1)

        def generator(noise: Tensor) -> Tensor:
            (z,) = self.head(self.network(*((features, noise) if self.noise_dim else (features,))))
            return z.expand(*noise.shape[:-1], *self.event_shape)

        return distributions.Implicit(generator, noise, self.event_shape)
