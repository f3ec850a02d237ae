"""Convolutions from an image to a grid of features and back, and the masked one of an autoregressive grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from pyrovae.nets.layers import (
    ConvDecoder,
    ConvEncoder,
    channel_numbers,
    halvings,
    image_shape,
    leading_shape,
)

__all__ = ["CausalConv2d", "GridDecoder", "GridEncoder", "Residual"]


class Residual(nn.Module):
    """h + W2 relu(W1 relu(h)): a 3 x 3 and a 1 x 1 convolution."""

    def __init__(self, channels: int, *, causal: bool = False) -> None:
        super().__init__()
        inner: nn.Module = (
            CausalConv2d(channels, channels, 3) if causal else nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.layers = nn.Sequential(nn.ReLU(), inner, nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """The sum."""
        return h + self.layers(h)


class GridEncoder(ConvEncoder):
    """The `ConvEncoder` without its last step: a grid of features, after two residual blocks.

    Args:
        event_shape, channels, activation: as in `ConvEncoder`; each convolution halves height and width.
        num_blocks: residual blocks at the end.

    Returns:
        From `forward(x)`: features (..., channels[-1], H', W') of x (..., C, H, W).

    Raises:
        TypeError, ValueError: as in `ConvEncoder`.

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, section 4.1.

    >>> GridEncoder((1, 28, 28))(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 64, 7, 7])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        activation: type[nn.Module] = nn.ReLU,
        num_blocks: int = 2,
    ) -> None:
        super().__init__(event_shape, channels, activation=activation)
        widths = channel_numbers(channels)
        self.feature_shape = (widths[-1], *halvings(self.event_shape, len(widths))[-1])
        self.blocks = nn.Sequential(*(Residual(widths[-1]) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Features of x, on a grid."""
        leading = leading_shape(x, self.event_shape)
        h = self.blocks(self.layers(x.reshape(-1, *self.event_shape)))
        return h.reshape(*leading, *self.feature_shape)  # (..., C', H', W')


class GridDecoder(ConvDecoder):
    """The mirror of `GridEncoder`: a 3 x 3 convolution of a grid of vectors and two residual blocks, then upwards.

    Args:
        latent_dim: (D, H', W'), the shape of z.
        event_shape: (C, H, W) of the image to decode, whose H and W halve to H' and W' by len(channels) steps.
        channels, activation: as in `ConvDecoder`.
        num_blocks: residual blocks at the start.

    Returns:
        From `forward(z)`: an image of features (..., channels[-1], H, W) of z (..., D, H', W').

    Raises:
        TypeError, ValueError: as in `ConvDecoder`; for a grid that is not that of the event.

    >>> GridDecoder((16, 7, 7), (1, 28, 28))(torch.zeros(5, 16, 7, 7)).shape
    torch.Size([5, 32, 28, 28])
    """

    def __init__(
        self,
        latent_dim: Sequence[int],
        event_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        activation: type[nn.Module] = nn.ReLU,
        num_blocks: int = 2,
    ) -> None:
        super().__init__(1, event_shape, channels, activation=activation)
        self.latent_shape = image_shape(latent_dim)
        if self.latent_shape[1:] != self.grid_shape[1:]:
            raise ValueError(
                f"the grid of codes is {self.latent_shape[1:]}, and {len(channels)} halvings of {tuple(event_shape)} "
                f"give {self.grid_shape[1:]}; pass as many channels to the encoder as to the decoder"
            )
        width = self.grid_shape[0]
        blocks = (Residual(width) for _ in range(num_blocks))
        self.project = nn.Sequential(nn.Conv2d(self.latent_shape[0], width, 3, padding=1), *blocks, activation())

    def forward(self, z: Tensor) -> Tensor:
        """Features of z."""
        leading = leading_shape(z, self.latent_shape, name="z", argument="latent_dim")
        h = self.layers(self.project(z.reshape(prod(leading), *self.latent_shape)))
        return h.reshape(*leading, *self.feature_shape)  # (..., C', H, W)


class CausalConv2d(nn.Conv2d):
    """A convolution whose output at a place depends on places before it alone, row by row; with `here` on itself too.

    Args:
        in_channels, out_channels: as in `nn.Conv2d`.
        kernel_size: odd height and width; the output has the input's.
        here: whether the place itself counts (type B of the paper) or not (type A).

    Returns:
        From `forward(h)`: (N, C', H, W) of h (N, C, H, W).

    Raises:
        ValueError: for an even size.

    Source: van den Oord et al. 2016, https://arxiv.org/abs/1601.06759, section 3.4.

    >>> layer = CausalConv2d(1, 1, 3, here=False)
    >>> layer.mask.int().tolist()
    [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    """

    mask: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], *, here: bool = True
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if not height % 2 or not width % 2:
            raise ValueError(f"kernel_size is {kernel_size}, odd sizes are wanted; pass kernel_size=3, say")
        super().__init__(in_channels, out_channels, (height, width), padding=(height // 2, width // 2))
        before = torch.arange(height * width) < height * width // 2 + here
        self.register_buffer("mask", before.reshape(height, width), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """The convolution with what is before."""
        padding = tuple(size // 2 for size in self.mask.shape)
        return conv2d(h, self.weight * self.mask, self.bias, padding=padding)
