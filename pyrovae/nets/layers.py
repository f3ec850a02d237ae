"""Networks of one input, dense and convolutional, and the last layer of a conditional."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from numbers import Integral

import torch
from torch import Tensor, nn

__all__ = [
    "MLP",
    "BatchNorm",
    "ConvDecoder",
    "ConvEncoder",
    "Head",
    "as_shape",
    "as_size",
    "channel_numbers",
    "halvings",
    "image_shape",
    "leading_shape",
    "near_zero_",
]


def as_shape(shape: int | Sequence[int], name: str = "event_shape") -> tuple[int, ...]:
    """`shape` as a tuple of positive ints; an int stands for a vector of that length.

    Args:
        shape: an int or a sequence of ints; () is the shape of a scalar.
        name: the argument's name, for the error message.

    Returns:
        The sizes as Python ints.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive.

    >>> as_shape(3), as_shape([1, 8, 8])
    ((3,), (1, 8, 8))
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not all(isinstance(size, Integral) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"{name} is {shape!r}, expected an int or a sequence of ints; pass whole numbers")
    if not all(size > 0 for size in sizes):
        raise ValueError(f"{name} is {shape!r}, expected sizes of at least 1; pass a positive {name}")
    return tuple(int(size) for size in sizes)


def as_size(size: int | Sequence[int], name: str) -> int:
    """`size`, which has to be one positive int.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is not positive, or several.
    """
    sizes = as_shape(size, name)
    if len(sizes) != 1:
        raise ValueError(f"{name} is {size!r}, expected one whole number; pass {name}={prod(sizes)}")
    return sizes[0]


def leading_shape(
    x: Tensor, event_shape: tuple[int, ...], *, name: str = "x", argument: str = "event_shape"
) -> torch.Size:
    """The dims of `x` before its event.

    Args:
        x: tensor (..., *event_shape).
        event_shape: what the rightmost dims must be.
        name: what the message calls `x`.
        argument: the constructor's argument that sets `event_shape`, for the message.

    Raises:
        ValueError: if the rightmost dims of `x` are not `event_shape`.
    """
    split = x.dim() - len(event_shape)
    if split < 0 or x.shape[split:] != event_shape:
        got = tuple(x.shape[max(split, 0) :])
        raise ValueError(
            f"{name} has event shape {got}, the network expects {event_shape}; pass {argument}={got} to the constructor"
        )
    return x.shape[:split]


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of vectors with any leading dims: statistics are taken over all of these, particles included.

    Args:
        num_features: length of the vector; further arguments as `nn.BatchNorm1d` takes them.

    Returns:
        From `forward(x)`: (..., num_features) of x (..., num_features).

    Raises:
        ValueError: at the call in training mode if there is only one vector, which has no variance.

    Source: Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167

    >>> BatchNorm(3)(torch.randn(5, 2, 3)).shape
    torch.Size([5, 2, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The vectors, normalised."""
        if self.training and x.numel() == x.size(-1):
            raise ValueError("x has one row, which batch norm can't train on; pass a batch_size that leaves none alone")
        return super().forward(x.reshape(-1, x.size(-1))).reshape(x.shape)


class MLP(nn.Module):
    """Multi-layer perceptron: the flattened event, then a linear map and an activation for each hidden size.

    There is no output layer: the conditional that reads the features owns it. `hidden=()` only flattens, which makes
    the model linear. The defaults are the encoder and decoder of IWAE with one stochastic layer.

    Args:
        event_shape: shape of one input.
        hidden: sizes of the hidden layers.
        activation: class of the nonlinearity.
        batch_norm: put a `BatchNorm` before each activation, in place of the linear map's bias.

    Returns:
        From `forward(x)`: features (..., hidden[-1]) of x (..., *event_shape).

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or at the call if x has another event shape.

    Source: Burda et al. 2016, https://arxiv.org/abs/1509.00519 (200-200 tanh).

    >>> MLP((1, 8, 8), hidden=(200, 100))(torch.zeros(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 100])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden: Sequence[int] = (200, 200),
        *,
        activation: type[nn.Module] = nn.Tanh,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        sizes = (prod(self.event_shape), *as_shape(hidden, "hidden"))
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out, bias=not batch_norm)]
            layers += [BatchNorm(fan_out), activation()] if batch_norm else [activation()]
        self.layers = nn.Sequential(*layers)
        self.feature_shape = sizes[-1:]

    def forward(self, x: Tensor) -> Tensor:
        """Features of x."""
        leading = leading_shape(x, self.event_shape)
        return self.layers(x.reshape(*leading, prod(self.event_shape)))  # (..., hidden[-1])


class ConvEncoder(nn.Module):
    """Strided 3 x 3 convolutions, each halving height and width (rounding up), then flattened.

    Args:
        event_shape: (C, H, W) of one image.
        channels: channels after each convolution.
        activation: class of the nonlinearity.

    Returns:
        From `forward(x)`: features (..., F) of x (..., C, H, W).

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive or event_shape has not three dims, or at the call if x has another one.

    >>> ConvEncoder((1, 28, 28))(torch.zeros(5, 1, 28, 28)).shape  # 64 channels of 7 x 7
    torch.Size([5, 3136])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.event_shape = image_shape(event_shape)
        widths = (self.event_shape[0], *channel_numbers(channels))
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), activation()]
        self.layers = nn.Sequential(*layers)
        height, width = halvings(self.event_shape, len(widths) - 1)[-1]
        self.feature_shape: tuple[int, ...] = (widths[-1] * height * width,)

    def forward(self, x: Tensor) -> Tensor:
        """Features of x."""
        leading = leading_shape(x, self.event_shape)
        h = self.layers(x.reshape(-1, *self.event_shape))  # (N, C', H', W')
        return h.reshape(*leading, *self.feature_shape)  # (..., F)


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: a linear map to a small grid, then transposed 3 x 3 convolutions of stride 2.

    The grids are the encoder's in reverse, odd sizes included, so the features have the event's own H and W.

    Args:
        latent_dim: length of z.
        event_shape: (C, H, W) of the image to decode; its C is left to the conditional.
        channels: channels of the smallest grid and of the next ones; the last is also the features'.
        activation: class of the nonlinearity.

    Returns:
        From `forward(z)`: an image of features (..., channels[-1], H, W) of z (..., latent_dim).

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive or event_shape has not three dims, or at the call if z has another length.

    >>> ConvDecoder(16, (1, 28, 28))(torch.zeros(5, 16)).shape
    torch.Size([5, 32, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.latent_shape: tuple[int, ...] = as_shape(latent_dim, "latent_dim")
        event_shape = image_shape(event_shape)
        widths = channel_numbers(channels)
        grids = halvings(event_shape, len(widths))[::-1]
        self.grid_shape = (widths[0], *grids[0])
        self.project = nn.Sequential(nn.Linear(prod(self.latent_shape), prod(self.grid_shape)), activation())
        layers: list[nn.Module] = []
        for fan_in, fan_out, small, large in zip(widths, (*widths[1:], widths[-1]), grids[:-1], grids[1:], strict=True):
            # A grid of n becomes 2n - 1, or 2n with one row of output padding.
            padding = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            convolution = nn.ConvTranspose2d(fan_in, fan_out, 3, stride=2, padding=1, output_padding=padding)
            layers += [convolution, activation()]
        self.layers = nn.Sequential(*layers)
        self.feature_shape = (widths[-1], *event_shape[1:])

    def forward(self, z: Tensor) -> Tensor:
        """Features of z."""
        leading = leading_shape(z, self.latent_shape, name="z", argument="latent_dim")
        grid = self.project(z.reshape(-1, prod(self.latent_shape))).reshape(-1, *self.grid_shape)  # (N, C', H', W')
        return self.layers(grid).reshape(*leading, *self.feature_shape)  # (..., C', H, W)


class Head(nn.Module):
    """The last layer of a conditional: one linear map for each parameter of a distribution over events.

    An image of features (C', H, W) meets an event (C, H, W) of the same height and width through a 1 x 1 convolution;
    in all other cases both are flattened, and the map is a dense one.

    The parameters have the dtype of the head's own weights, under autocast too: samples, log-probabilities and KLs of
    distributions made of them are then in float32, and only the products before them in half precision.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one parameter.
        num_parameters: how many parameters.

    Returns:
        From `forward(features)`: a tuple of num_parameters tensors (..., *event_shape) of features
        (..., *feature_shape).

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or at the call if the features have another shape.

    >>> loc, scale = Head(200, (1, 8, 8), num_parameters=2)(torch.zeros(5, 200))
    >>> loc.shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], num_parameters: int = 1
    ) -> None:
        super().__init__()
        self.feature_shape = as_shape(feature_shape, "feature_shape")
        self.event_shape = as_shape(event_shape)
        self.num_parameters = as_size(num_parameters, "num_parameters")
        self.pointwise = (
            len(self.feature_shape) == len(self.event_shape) == 3 and self.feature_shape[1:] == self.event_shape[1:]
        )
        self.layer: nn.Linear | nn.Conv2d
        if self.pointwise:
            self.layer = nn.Conv2d(self.feature_shape[0], self.num_parameters * self.event_shape[0], 1)
        else:
            self.layer = nn.Linear(prod(self.feature_shape), self.num_parameters * prod(self.event_shape))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """The parameters, one tensor each."""
        leading = leading_shape(features, self.feature_shape, name="features", argument="feature_shape")
        shape = self.feature_shape if self.pointwise else (prod(self.feature_shape),)
        out = self.layer(features.reshape(-1, *shape)).to(self.layer.weight.dtype)  # (N, P * C, H, W) or (N, P * D)
        return out.reshape(*leading, self.num_parameters, *self.event_shape).unbind(len(leading))  # P x (..., *event)


def image_shape(event_shape: int | Sequence[int]) -> tuple[int, ...]:
    """`event_shape` as (C, H, W)."""
    shape = as_shape(event_shape)
    if len(shape) != 3:
        raise ValueError(f"event_shape is {shape}, a convolution expects (C, H, W); pass three sizes, or use MLP")
    return shape


def channel_numbers(channels: Sequence[int]) -> tuple[int, ...]:
    """`channels` as a tuple of at least one positive int."""
    widths = as_shape(channels, "channels")
    if not widths:
        raise ValueError("channels is empty, expected one number per convolution; pass channels=(32, 64), say")
    return widths


def halvings(event_shape: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """(H, W) and the sizes after each of `times` convolutions of stride 2, the largest first."""
    _, height, width = event_shape
    sizes = [(height, width)]
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


@torch.no_grad()
def near_zero_(layer: nn.Module, rows: slice = slice(None)) -> None:
    """Make some outputs of a linear layer a hundredth of what torch starts them with, without bias.

    Not zero: then the layers before it, or the factors beside it, would have no gradient.
    """
    assert isinstance(layer, nn.Linear)
    layer.weight[rows] *= 0.01
    layer.bias[rows] = 0.0
