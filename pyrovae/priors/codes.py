"""Priors over grids of codes: uniform, and a masked convolutional network that gives each code given those before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pyrovae.distributions import AutoregressiveCategorical
from pyrovae.nets import CausalConv2d, as_shape, as_size
from pyrovae.nets.grids import Residual

__all__ = ["PixelCNN", "UniformCodes"]

LARGEST = 1024  # places of a grid: each takes a pass of the network to be drawn


class UniformCodes(nn.Module):
    """k_i ~ Uniform{0, ..., K - 1} at each place of a grid, whatever the context: -n log K nats.

    Args:
        event_shape: shape of the grid.
        num_codes: K.
        context_shape: of a context, which is not used.

    Returns:
        From `forward(context=None)`: a Categorical of batch shape () and event shape `event_shape`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers.

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, section 3.2.

    >>> UniformCodes((2, 3), 4)().log_prob(torch.zeros(2, 3))  # - 6 log 4
    tensor(-8.3178)
    """

    logits: Tensor

    def __init__(
        self, event_shape: int | Sequence[int], num_codes: int, *, context_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.num_codes = as_size(num_codes, "num_codes")
        self.register_buffer("logits", torch.zeros(*self.event_shape, self.num_codes), persistent=False)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(k)."""
        return dist.Categorical(logits=self.logits).to_event(len(self.event_shape))


class PixelCNN(nn.Module):
    r"""Codes of a grid one after another, row by row, each from a masked convolutional network of those before.

        p(k | c) = prod_i Categorical(k_i; softmax l_i(k_1, ..., k_{i-1}, c))

    An embedding of the codes, one masked convolution as large as the grid, so that every place sees all that are
    before it (3 x 3 ones alone leave a blind spot), what each place adds of its own, masked residual blocks, and a
    1 x 1 convolution to the logits. A context passes through as many unmasked blocks first: what a place sees of it
    lies up to num_blocks + 1 cells of the context's grid away, on all sides, and beyond that what masked blocks bring.

    Args:
        event_shape: shape of the grid, one or two sizes, of 1024 places at most.
        num_codes: K.
        hidden: channels.
        num_blocks: residual blocks, of the codes and again of the context.
        context_shape: (C, H', W') of what the codes depend on besides; it is stretched to the grid.

    Returns:
        From `forward(context=None)`: an `AutoregressiveCategorical` of event shape `event_shape` and the context's
        leading dims as batch shape.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, a grid of more than two dims or too many
            places; at the call where the context is missing or of another shape.

    Source: van den Oord et al. 2016, https://arxiv.org/abs/1601.06759 (masked convolutions); as a prior over codes van
    den Oord et al. 2017, https://arxiv.org/abs/1711.00937, section 3.2.

    >>> prior = PixelCNN((4, 4), 8, hidden=5)
    >>> k = prior().sample((3,))
    >>> prior().log_prob(k).shape
    torch.Size([3])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_codes: int,
        *,
        hidden: int = 64,
        num_blocks: int = 3,
        context_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.num_codes, hidden = as_size(num_codes, "num_codes"), as_size(hidden, "hidden")
        if len(self.event_shape) > 2 or prod(self.event_shape) > LARGEST:
            raise ValueError(
                f"event_shape is {self.event_shape}, of {prod(self.event_shape)} codes; PixelCNN takes one or "
                f"two sizes and {LARGEST} codes, each of which takes a pass to be drawn; pass one more number in "
                "channels=, which halves the grid"
            )
        self._grid = (1, *self.event_shape) if len(self.event_shape) == 1 else self.event_shape
        height, width = self._grid
        self.embedding = nn.Embedding(self.num_codes, hidden)
        self.first = CausalConv2d(hidden, hidden, (2 * height - 1, 2 * width - 1), here=False)
        self.place = nn.Parameter(0.1 * torch.randn(hidden, height, width))
        self.context_shape = None if context_shape is None else as_shape(context_shape, "context_shape")
        self.given: nn.Module | None = None
        if self.context_shape is not None:
            # Unmasked: through the masked blocks alone a place would see what is above and to the left of it.
            blocks = (Residual(hidden) for _ in range(num_blocks))
            self.given = nn.Sequential(nn.Conv2d(self.context_shape[0], hidden, 3, padding=1), *blocks)
        self.blocks = nn.Sequential(*(Residual(hidden, causal=True) for _ in range(num_blocks)), nn.ReLU())
        self.last = nn.Conv2d(hidden, self.num_codes, 1)

    def forward(self, context: Tensor | None = None) -> AutoregressiveCategorical:
        """p(k | context)."""
        if self.given is None or self.context_shape is None:
            return AutoregressiveCategorical(self.logits, self.event_shape, self.num_codes)
        got = None if context is None else tuple(context.shape[-len(self.context_shape) :])
        if context is None or got != self.context_shape:
            raise ValueError(
                f"context has shape {got}, the prior expects {self.context_shape}; pass context_shape={got} to it"
            )
        leading = context.shape[: -len(self.context_shape)]
        features = interpolate(
            self.given(context.reshape(-1, *self.context_shape)), size=self._grid
        )  # (N, hidden, H, W)
        logits_of = partial(self.logits, features=features.reshape(*leading, *features.shape[1:]))
        return AutoregressiveCategorical(logits_of, self.event_shape, self.num_codes, leading)

    def logits(self, k: Tensor, features: Tensor | None = None) -> Tensor:
        """l (..., *event_shape, K) of k (..., *event_shape), each from what is before it and the context's features."""
        leading = k.shape[: k.dim() - len(self.event_shape)]
        if features is not None:
            leading = torch.broadcast_shapes(leading, features.shape[:-3])
        k = k.reshape(*k.shape[: k.dim() - len(self.event_shape)], *self._grid).expand(*leading, *self._grid)
        h = self.first(self.embedding(k.reshape(-1, *self._grid)).movedim(-1, 1)) + self.place  # (N, hidden, H, W)
        if features is not None:
            h = h + features.expand(*leading, *features.shape[-3:]).reshape(h.shape)
        logits = self.last(self.blocks(h)).to(self.last.weight.dtype).movedim(1, -1)  # (N, H, W, K)
        return logits.reshape(*leading, *self.event_shape, self.num_codes)
