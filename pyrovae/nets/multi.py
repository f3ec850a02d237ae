"""Layers and networks of several inputs, whose leading dims broadcast."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyrovae.nets.layers import as_shape, as_size, leading_shape

__all__ = ["MultiLinear", "MultiMLP"]


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
        self.out_features = as_size(out_features, "out_features")
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
