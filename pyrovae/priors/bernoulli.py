"""Independent bits."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.nets import as_shape

__all__ = ["FactorisedBernoulli"]


class FactorisedBernoulli(nn.Module):
    """z ~ Bernoulli(sigmoid(logits)), element by element, with learned logits, whatever the context.

    Args:
        event_shape: shape of one z, of zeros and ones; an int stands for a vector of that length.
        logit: of every element at the start; -1 is the authors'.

    Returns:
        From `forward(context=None)`: a Bernoulli of batch shape () and event shape `event_shape`.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive.

    Source: Bornschein & Bengio 2015, https://arxiv.org/abs/1406.2751, the top of a belief net, and its authors' code,
    https://github.com/jbornschein/reweighted-ws (learning/models/sbn.py).

    >>> FactorisedBernoulli(3, logit=0.0)().log_prob(torch.ones(2, 3)).exp()
    tensor([0.1250, 0.1250], grad_fn=<ExpBackward0>)
    """

    def __init__(self, event_shape: int | Sequence[int], *, logit: float = -1.0) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.logits = nn.Parameter(torch.full(self.event_shape, float(logit)))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        return dist.Bernoulli(logits=self.logits).to_event(len(self.event_shape))
