"""The prior of the paper: a standard Normal."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.nets import as_shape

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    """z ~ N(0, I), whatever the context.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.

    Returns:
        From `forward(context=None)`: a Normal of batch shape () and event shape `event_shape`.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive.

    Source: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114

    >>> StandardNormal(2)().log_prob(torch.zeros(5, 2))  # - log 2 pi
    tensor([-1.8379, -1.8379, -1.8379, -1.8379, -1.8379])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        # Constants, not state: a checkpoint has nothing to say about them.
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))
