r"""Networks of x and a mask that says which of its elements are observed; whatever is not has no influence.

A mask is True (or 1) where x is observed, in the shape of x. What x holds elsewhere is never read, NaN included.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

from pyrovae.nets.layers import MLP, ConvEncoder, channel_numbers, halvings, image_shape, leading_shape

__all__ = ["MaskedConvEncoder", "MaskedMLP", "PartialConv2d", "PartialConvEncoder"]


def observed(x: Tensor, mask: Tensor, event_shape: tuple[int, ...]) -> tuple[torch.Size, Tensor, Tensor]:
    """The leading dims of x and mask, x with zeros where it is missing, and the mask as booleans.

    Raises:
        ValueError: if x does not end in event_shape, or the mask has not the shape of x.
    """
    leading = leading_shape(x, event_shape)
    if mask.shape != x.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, x {tuple(x.shape)}; pass a mask with one element for each of x, "
            "True where it is observed"
        )
    mask = mask.bool()
    return leading, torch.where(mask, x, x.new_zeros(())), mask


class MaskedMLP(MLP):
    """The `MLP` of x with zeros where it is missing, and of the mask beside it: zero-imputation with a mask channel.

    Args:
        event_shape: shape of one x.
        hidden, activation: as in `MLP`.

    Returns:
        From `forward(x, mask)`: features (..., hidden[-1]) of x and mask (..., *event_shape).

    Raises:
        TypeError, ValueError: as in `MLP`; at the call if the mask has another shape than x.

    Source: Nazabal et al. 2020, https://arxiv.org/abs/1807.03653, section 2.2 (zeros); the mask as a further input, as
    in Ivanov et al. 2019, https://arxiv.org/abs/1806.02382, tells an observed zero from a missing one.

    >>> x, mask = torch.full((5, 1, 8, 8), torch.nan), torch.zeros(5, 1, 8, 8, dtype=torch.bool)
    >>> MaskedMLP((1, 8, 8), hidden=(20,))(x, mask).shape
    torch.Size([5, 20])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden: Sequence[int] = (200, 200),
        *,
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__(_doubled(event_shape), hidden, activation=activation)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]  # one input more
        """Features of x and mask."""
        return super().forward(_beside(x, mask, self.event_shape))


class MaskedConvEncoder(ConvEncoder):
    """The `ConvEncoder` of x with zeros where it is missing and of the mask, as further channels.

    Args:
        event_shape: (C, H, W) of one image; the convolutions see 2 C channels.
        channels, activation: as in `ConvEncoder`.

    Returns:
        From `forward(x, mask)`: features (..., F) of x and mask (..., C, H, W).

    Raises:
        TypeError, ValueError: as in `ConvEncoder`; at the call if the mask has another shape than x.

    Source: as `MaskedMLP`.

    >>> x = torch.zeros(5, 1, 28, 28)
    >>> MaskedConvEncoder((1, 28, 28))(x, x == 0).shape
    torch.Size([5, 3136])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        c, height, width = image_shape(event_shape)
        super().__init__((2 * c, height, width), channels, activation=activation)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]  # one input more
        """Features of x and mask."""
        c, height, width = self.event_shape
        both = _beside(x, mask, (2, c // 2, height, width))
        return super().forward(both.flatten(-4, -3))  # (..., 2 C, H, W)


class PartialConv2d(nn.Conv2d):
    r"""Convolution of the observed pixels only, renormalised by how many of them each window holds.

        out = W (x m) sum(1) / sum(m) + b  and m' = 1    where the window has an observed pixel
        out = 0                            and m' = 0    where it has none

    Sums are over the window's pixels and channels; those that lie in the zero padding count in neither, so that a full
    mask gives the plain convolution wherever a window has a pixel. (In the authors' code the padding counts as missing,
    and a full mask raises the outputs at the border.) The new mask is the same for all output channels.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, bias: as in `nn.Conv2d`; no dilation and no groups.

    Returns:
        From `forward(x, mask)`: the convolution (N, C', H', W') of x (N, C, H, W), and the new mask in its shape.

    Raises:
        ValueError: at the call if the mask has another shape than x.

    Source: Liu et al. 2018, https://arxiv.org/abs/1804.07723, eqs. 1 and 2.

    >>> layer = PartialConv2d(1, 1, 3)
    >>> x = torch.tensor([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1), layer.bias.fill_(0.5)
    >>> layer(x, x < 4)[0].item()  # (1 + 2 + 3) 9 / 3 + 0.5
    18.5
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The convolution and the new mask."""
        _, x, mask = observed(x, mask, tuple(x.shape[1:]))
        seen = mask.sum(1, keepdim=True).to(self.weight.dtype)  # (N, 1, H, W) observed channels
        count, full = self._summed(seen), self._summed(torch.full_like(seen[:1], x.size(1)))
        some = count > 0
        ratio = full / count.clamp(min=1)
        padding: Any = self.padding
        out = conv2d(x, self.weight, None, self.stride, padding) * ratio
        if self.bias is not None:
            out = out + self.bias[:, None, None]
        return torch.where(some, out, out.new_zeros(())), some.expand(out.shape)

    def _summed(self, image: Tensor) -> Tensor:
        """Sums over windows, exact in any dtype's mantissa and left alone by autocast."""
        kernel: Any = self.kernel_size
        stride: Any = self.stride
        padding: Any = self.padding
        height, width = padding
        padded = pad(image, (width, width, height, height))  # by hand: pooling takes half a window at most, Conv2d more
        return avg_pool2d(padded, kernel, stride, divisor_override=1)


class PartialConvEncoder(nn.Module):
    """The `ConvEncoder` with partial convolutions: a full mask gives its features, and missing pixels have no part.

    The features do not say how much was observed, for that is what the renormalisation takes out: a posterior that is
    to widen as pixels go missing learns it better from a mask channel (`MaskedConvEncoder`).

    Args:
        event_shape: (C, H, W) of one image.
        channels: channels after each convolution.
        activation: class of the nonlinearity.

    Returns:
        From `forward(x, mask)`: features (..., F) of x and mask (..., C, H, W).

    Raises:
        TypeError, ValueError: as in `ConvEncoder`; at the call if the mask has another shape than x.

    Source: Liu et al. 2018, https://arxiv.org/abs/1804.07723.

    >>> x = torch.zeros(5, 1, 28, 28)
    >>> PartialConvEncoder((1, 28, 28))(x, x == 0).shape
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
        self.layers = nn.ModuleList(
            PartialConv2d(fan_in, fan_out, 3, stride=2, padding=1) for fan_in, fan_out in pairwise(widths)
        )
        self.activation = activation()
        height, width = halvings(self.event_shape, len(widths) - 1)[-1]
        self.feature_shape = (widths[-1] * height * width,)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features of the observed pixels."""
        leading, h, mask = observed(x, mask, self.event_shape)
        h, mask = (image.reshape(prod(leading), *self.event_shape) for image in (h, mask))  # (N, C, H, W)
        for layer in self.layers:
            h, mask = layer(h, mask)
            h = self.activation(h)
        return h.reshape(*leading, *self.feature_shape)  # (..., F)


def _doubled(event_shape: int | Sequence[int]) -> tuple[int, ...]:
    return (2, *event_shape) if isinstance(event_shape, Sequence) else (2, event_shape)


def _beside(x: Tensor, mask: Tensor, doubled: tuple[int, ...]) -> Tensor:
    """(..., 2, *event): x with zeros where it is missing, and the mask."""
    _, x, mask = observed(x, mask, doubled[1:])
    return torch.stack([x, mask.to(x.dtype)], -len(doubled))
