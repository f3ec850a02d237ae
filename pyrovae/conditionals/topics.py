"""The conditionals of topic models.

The likelihoods give a `pyrovae.distributions.BagOfWords`. Their `forward(features, total_count=None)` takes the length
of each document beside the features, for a model knows it from the x that it observes: a likelihood sees features only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, dropout

from pyrovae import distributions
from pyrovae.conditionals.base import Conditional

__all__ = ["BagOfWords", "NormalisedNormal", "ProductOfExperts", "TopicMixture"]


class _Words(Conditional):
    """A likelihood of counts whose head has one number for each word and each of L features."""

    def __init__(self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int]) -> None:
        super().__init__(feature_shape, event_shape)
        if len(self.event_shape) != 1 or len(self.head.feature_shape) != 1:
            raise ValueError(
                f"event_shape is {self.event_shape} and feature_shape {self.head.feature_shape}, vectors are wanted; "
                "pass the number of words and of topics"
            )

    @property
    def topics(self) -> Tensor:
        """What each feature, or topic, says about each word, (L, V): the larger, the more they go together."""
        return self.head.layer.weight.T

    def forward(self, features: Tensor, total_count: Tensor | None = None) -> distributions.BagOfWords:
        """The distribution given the features (..., L) and, for samples, the lengths (...)."""
        return distributions.BagOfWords(total_count, logits=self.log_odds(features))

    def log_odds(self, features: Tensor) -> Tensor:
        """log p of each word up to a constant, (..., V)."""
        raise NotImplementedError

    def _products(self, features: Tensor, weight: Tensor) -> Tensor:
        """features @ weight.T in the weight's dtype, under autocast too, as `Head` does."""
        return nn.functional.linear(features, weight).to(self.head.layer.weight.dtype)


class BagOfWords(_Words):
    r"""x | h ~ BagOfWords(softmax(h R + b)): every word's probability is proportional to exp(h . r_v + b_v).

    Args:
        feature_shape: length of h.
        event_shape: V, number of words.

    Returns:
        From `forward(features, total_count=None)`: a `pyrovae.distributions.BagOfWords`.

    Raises:
        ValueError: for shapes that are no vectors; sizes as in `Conditional`.

    Source: Miao, Yu & Blunsom 2016, https://arxiv.org/abs/1511.06038, eq. 2 and 3.
    """

    def log_odds(self, features: Tensor) -> Tensor:
        """H R + b."""
        (logits,) = self.head(features)
        return logits


class ProductOfExperts(_Words):
    r"""x | h ~ BagOfWords(softmax(BN(theta beta))), theta = softmax(h): each topic votes on each word's log-odds.

    Batch norm centres and scales the log-odds of each word over the batch and adds a learned shift; it has no learned
    scale. That is what the authors' `tf.contrib.layers.batch_norm` does by default (center=True, scale=False,
    epsilon=0.001). Copies of it without the shift (Pyro's tutorial: affine=False) give every word the same average
    log-odds, so that topics have to spend themselves on how frequent words are; others learn a scale too.
    The authors' code normalises by the batch in its test as well; here running means take over in evaluation mode.

    Args:
        feature_shape: number of topics, length of h.
        event_shape: V, number of words.
        dropout: share of the topics left out of theta at random in each document while training.

    Returns:
        From `forward(features, total_count=None)`: a `pyrovae.distributions.BagOfWords`.

    Raises:
        ValueError: for shapes that are no vectors, or a dropout outside [0, 1); sizes as in `Conditional`.

    Source: Srivastava & Sutton 2017, https://arxiv.org/abs/1703.01488, section 3.3;
    https://github.com/akashgit/autoencoding_vi_for_topic_models (models/prodlda.py), whose
    dropout is 0.6; 0.2 is that of https://github.com/hyqneuron/pytorch-avitm.
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, dropout: float = 0.2
    ) -> None:
        super().__init__(feature_shape, event_shape)
        self.head.layer.bias = None  # batch norm takes any constant away, and has its own
        self.norm = ShiftedBatchNorm(*self.event_shape)
        self.dropout = rate("dropout", dropout)

    def shares(self, features: Tensor) -> Tensor:
        """Theta, how much of each document is about each topic, (..., L)."""
        return features.softmax(-1)

    def log_odds(self, features: Tensor) -> Tensor:
        """BN(dropout(theta) beta)."""
        theta = dropout(self.shares(features), self.dropout, self.training)
        return self.norm(self._products(theta, self.head.layer.weight))


class TopicMixture(_Words):
    r"""x | h ~ BagOfWords(theta softmax(beta)), theta = softmax(h): each word has a topic, as in LDA.

    The words' topics are summed. Theta is scaled to sum to 1 after dropout, which the paper's NVLDA does not do (its
    probabilities then sum to something else); nor is beta normalised over the topics here.

    Args:
        feature_shape: number of topics, length of h.
        event_shape: V, number of words.
        dropout: share of the topics left out of theta at random in each document while training.

    Returns:
        From `forward(features, total_count=None)`: a `pyrovae.distributions.BagOfWords`.

    Raises:
        ValueError: for shapes that are no vectors, or a dropout outside [0, 1); sizes as in `Conditional`.

    Source: Srivastava & Sutton 2017, https://arxiv.org/abs/1703.01488, section 3.2; Blei, Ng & Jordan 2003.
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, dropout: float = 0.0
    ) -> None:
        super().__init__(feature_shape, event_shape)
        self.head.layer.bias = None
        self.dropout = rate("dropout", dropout)

    @property
    def topics(self) -> Tensor:
        """log p(word | topic), (L, V)."""
        return self.head.layer.weight.T.log_softmax(-1)

    def shares(self, features: Tensor) -> Tensor:
        """Theta, how much of each document is about each topic, (..., L)."""
        return features.softmax(-1)

    def log_odds(self, features: Tensor) -> Tensor:
        """log(theta softmax(beta)), from which the distribution takes the log of theta's sum."""
        theta = dropout(self.shares(features), self.dropout, self.training)
        probs = self._products(theta, self.head.layer.weight.softmax(0))  # softmax over the words
        return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()  # all topics may be dropped


class NormalisedNormal(Conditional):
    """z ~ N(BN(m(h)), exp(BN(v(h)))), element by element: batch norm on mean and log-variance against collapse.

    It keeps a part of q from settling on the prior, for over a batch each mean has the variance 1 and each log-variance
    a learned average. Batch norm has a learned shift and no scale, see `ProductOfExperts`.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one z.

    Returns:
        From `forward(features)`: a Normal over reals.

    Raises:
        TypeError, ValueError: as in `Conditional`.

    Source: Srivastava & Sutton 2017, https://arxiv.org/abs/1703.01488, section 3.4, and its code (models/prodlda.py).
    """

    def __init__(self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int]) -> None:
        super().__init__(feature_shape, event_shape, num_parameters=2)
        self.head.layer.bias = None  # batch norm takes any constant away, and has its own
        self.norm = nn.ModuleList(ShiftedBatchNorm(prod(self.event_shape)) for _ in range(2))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale(h)^2)."""
        dims = len(self.event_shape)
        loc, log_variance = (
            norm(value.flatten(value.dim() - dims)).reshape(value.shape) if dims != 1 else norm(value)
            for norm, value in zip(self.norm, self.head(features), strict=True)
        )
        return dist.Normal(loc, torch.exp(log_variance / 2)).to_event(dims)


class ShiftedBatchNorm(nn.BatchNorm1d):
    """Batch norm over all leading dims, with a learned shift and no scale.

    A batch of a single row is normalised by the running statistics, as in evaluation mode: it has no variance.

    Args:
        num_features: length of the last dim.

    Returns:
        From `forward(x)`: x (..., num_features), centred and scaled over the leading dims, plus the shift.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-3, affine=False)
        self.shift = nn.Parameter(torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        """The normalised x."""
        rows = input.reshape(-1, self.num_features)
        of_batch = self.training and len(rows) > 1
        momentum = 0.0 if self.momentum is None else self.momentum
        out = batch_norm(rows, self.running_mean, self.running_var, training=of_batch, momentum=momentum, eps=self.eps)
        return out.reshape(input.shape) + self.shift


def rate(name: str, value: float) -> float:
    """A share of at least 0 and below 1.

    Raises:
        ValueError: otherwise.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}, expected at least 0 and below 1; pass {name}=0.2")
    return float(value)
