"""Layers and networks of one or several inputs: dense, convolutional, and the last layer of a conditional."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = [
    "MLP",
    "BatchNorm",
    "ConvDecoder",
    "ConvEncoder",
    "Head",
    "MultiLinear",
    "MultiMLP",
    "as_shape",
    "channel_numbers",
    "halvings",
    "image_shape",
    "leading_shape",
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


class MultiLinear(nn.Module):
    r"""A linear map of several inputs: `nn.Linear` of their concatenation, which is never formed.

        out = x_1 W_1^T + ... + x_n W_n^T + b

    Each block of weights meets its input at that input's own leading dims, and the sum broadcasts. Where K labels are
    enumerated along a leading dim, y (K, 1, C) beside x (B, D), the products with x are computed once and not K times.

    Its parameters have the names, the shapes and, from one seed, the values of those of
    `nn.Linear(sum(in_features), out_features)`: each loads the other's state.

    Args:
        in_features: length of each input.
        out_features: length of the output.
        bias: whether to add b.

    Returns:
        From `forward(*inputs)`: (..., out_features) of inputs (..., in_features[i]), whose leading dims broadcast.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive or in_features is empty, or at the call if the inputs are not as many,
            have other lengths or do not broadcast.

    >>> x, y = torch.zeros(5, 784), torch.eye(10).unsqueeze(-2)
    >>> MultiLinear((784, 10), 200)(x, y).shape
    torch.Size([10, 5, 200])
    """

    def __init__(self, in_features: Sequence[int], out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_features = as_shape(in_features, "in_features")
        if not self.in_features:
            raise ValueError("in_features is empty, expected the length of each input; pass in_features=(784, 10), say")
        (self.out_features,) = as_shape(out_features, "out_features")
        joint = nn.Linear(sum(self.in_features), self.out_features, bias=bias)
        self.weight, self.bias = joint.weight, joint.bias

    def forward(self, *inputs: Tensor) -> Tensor:
        """The sum of the products."""
        if len(inputs) != len(self.in_features):
            raise ValueError(
                f"the layer got {len(inputs)} inputs, it has weights for {len(self.in_features)} of lengths "
                f"{self.in_features}; call it with one tensor for each"
            )
        for index, (x, length) in enumerate(zip(inputs, self.in_features, strict=True)):
            leading_shape(x, (length,), name=f"input {index}", argument=f"in_features[{index}]")
        leading = [x.shape[:-1] for x in inputs]
        try:
            torch.broadcast_shapes(*leading)
        except RuntimeError as error:
            raise ValueError(
                f"the inputs have leading dims {', '.join(str(tuple(dims)) for dims in leading)}, which do not "
                "broadcast; pass x (B, D) with y (K, 1, C) or (B, C), say"
            ) from error
        blocks = self.weight.split(self.in_features, -1)
        out = linear(inputs[0], blocks[0], self.bias)
        for x, block in zip(inputs[1:], blocks[1:], strict=True):
            out = out + linear(x, block)  # (..., out_features)
        return out

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class MultiMLP(nn.Module):
    """The `MLP` of several inputs together, their flattened events side by side, whose leading dims broadcast.

    The first layer is a `MultiLinear`, so that an input without the dims of another (x beside enumerated labels y, y
    beside particles of z) passes through its part of that layer once. From one seed it has the parameters of the MLP
    of the concatenation, names included.

    Args:
        event_shapes: shape of one event of each input.
        hidden: sizes of the hidden layers, at least one.
        activation: class of the nonlinearity.

    Returns:
        From `forward(*inputs)`: features (..., hidden[-1]) of inputs (..., *event_shapes[i]).

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or there is no input or no hidden layer, or at the call if the inputs
            are not as many, have other event shapes or do not broadcast.

    >>> x, y = torch.zeros(5, 1, 8, 8), torch.eye(10).unsqueeze(-2)
    >>> MultiMLP([(1, 8, 8), 10], hidden=(200, 100))(x, y).shape
    torch.Size([10, 5, 100])
    """

    def __init__(
        self,
        event_shapes: Sequence[int | Sequence[int]],
        hidden: Sequence[int] = (200, 200),
        *,
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        if not isinstance(event_shapes, Sequence) or not event_shapes:
            raise ValueError(
                f"event_shapes is {event_shapes!r}, expected a shape for each input; "
                "pass event_shapes=[(1, 28, 28), 10], say"
            )
        self.event_shapes = tuple(as_shape(shape, f"event_shapes[{i}]") for i, shape in enumerate(event_shapes))
        sizes = as_shape(hidden, "hidden")
        if not sizes:
            raise ValueError("hidden is empty, but the inputs meet in the first hidden layer; pass hidden=(200,), say")
        layers: list[nn.Module] = [MultiLinear([prod(shape) for shape in self.event_shapes], sizes[0]), activation()]
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        self.layers = nn.Sequential(*layers)
        self.feature_shape = sizes[-1:]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Features of the inputs together."""
        if len(inputs) != len(self.event_shapes):
            raise ValueError(
                f"the network got {len(inputs)} inputs, it was made for {len(self.event_shapes)} of event shapes "
                f"{self.event_shapes}; call it with one tensor for each"
            )
        flat = []
        for i, (x, shape) in enumerate(zip(inputs, self.event_shapes, strict=True)):
            leading = leading_shape(x, shape, name=f"input {i}", argument=f"event_shapes[{i}]")
            flat.append(x.reshape(*leading, prod(shape)))
        first, *rest = self.layers
        h = first(*flat)
        for layer in rest:
            h = layer(h)
        return h  # (..., hidden[-1])


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
        self.feature_shape = (widths[-1] * height * width,)

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
        self.latent_shape = as_shape(latent_dim, "latent_dim")
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
        (self.num_parameters,) = as_shape(num_parameters, "num_parameters")
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
