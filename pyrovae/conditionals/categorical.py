"""Posteriors of categorical latents: sampled as they are, or with relaxed gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.conditionals.base import Conditional, positive
from pyrovae.distributions import GumbelOneHot

__all__ = ["GumbelSoftmax", "OneHotCategorical"]


class OneHotCategorical(Conditional):
    """y ~ Categorical(softmax(logits(h))) as a one-hot vector, or several of them; samples let no gradient by.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: (..., C); each row of C numbers is one category.

    Returns:
        From `forward(features)`: a Pyro `OneHotCategorical` with event shape `event_shape`.

    Raises:
        TypeError, ValueError: as in `Conditional`.
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """OneHotCategorical(softmax(logits(h)))."""
        (logits,) = self.head(features)
        return dist.OneHotCategorical(logits=logits).to_event(len(self.event_shape) - 1)


class GumbelSoftmax(Conditional):
    """The same categories, whose samples in training mode have the gradient of relaxed ones: `GumbelOneHot`.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: (..., C).
        temperature: of the relaxation, at the start: a buffer, which a callback of `fit` can lower as it trains, and
            which a checkpoint keeps.
        hard: whether samples are one-hot, with the relaxed ones' gradient (straight-through), or relaxed themselves;
            the value of an objective is then that of no model. In evaluation mode they are always one-hot.

    Returns:
        From `forward(features)`: a `GumbelOneHot` in training mode, else a Pyro `OneHotCategorical`.

    Raises:
        TypeError, ValueError: as in `Conditional`, and for a temperature that is not positive.

    Source: Jang, Gu & Poole 2017, https://arxiv.org/abs/1611.01144; Maddison et al. 2017,
    https://arxiv.org/abs/1611.00712; the schedule of the example is the former's, section 4.

    >>> import math
    >>> import pyrovae as pv
    >>> class Anneal(pv.Callback):
    ...     def on_step(self, run):
    ...         for posterior in run.pair.posteriors:
    ...             posterior.temperature.fill_(max(0.5, math.exp(-1e-2 * run.step)))
    >>> pair = pv.CategoricalVAE(5, num_latents=2, num_classes=3, posterior=GumbelSoftmax)
    >>> x = torch.rand(60, 5).round()
    >>> run = pv.fit(pair, x, max_epochs=2, batch_size=10, callbacks=[Anneal()], seed=0, progress=False)
    >>> pair.posteriors[0].temperature  # exp(-0.12)
    tensor(0.8869)
    """

    temperature: Tensor

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        temperature: float = 0.5,
        hard: bool = True,
    ) -> None:
        super().__init__(feature_shape, event_shape)
        self.register_buffer("temperature", torch.tensor(positive("temperature", temperature)))
        self.hard = hard

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """GumbelOneHot(softmax(logits(h)))."""
        (logits,) = self.head(features)
        one: dist.TorchDistribution = dist.OneHotCategorical(logits=logits)
        if self.training:
            one = GumbelOneHot(self.temperature, logits, hard=self.hard)
        return one.to_event(len(self.event_shape) - 1)
