"""Counts of words, in documents that have each a length of their own."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["BagOfWords", "log_coefficient"]


class BagOfWords(TorchDistribution):
    r"""How often each of V words occurs in a document of n words: a multinomial, given the document's own length.

        log p(x | n) = log n! - sum_v log x_v! + sum_v x_v log p_v    if sum_v x_v = n, else minus infinity

    torch's Multinomial has one total count for all documents, and ignores it in `log_prob`. Here each has its own.
    Without a total_count the density is the one given the length of the x at hand, and there are no samples.

    Args:
        total_count: n of each document, whole numbers; broadcast with the batch shape of the probabilities. None: that
            of the x at hand.
        probs: p, (..., V), not negative; divided by their sum.
        logits: log p up to a constant, (..., V); instead of probs.

    Returns:
        From `log_prob(x)` of counts x (..., V): nats, shape (..., *batch_shape), coefficient included; from
        `word_log_prob(x)` the same without it, which is what perplexities are made of.

    Raises:
        ValueError: for both or none of probs and logits; with argument validation on, for negative or fractional x;
            from `sample`, `mean` and `variance` without a total_count, or with one that is no whole number.

    >>> d = BagOfWords(torch.tensor([1.0, 2.0]), probs=torch.tensor([0.25, 0.75]))
    >>> d.log_prob(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).exp()  # 2 * 0.25 * 0.75
    tensor([0.7500, 0.3750])
    >>> d.word_log_prob(torch.tensor([1.0, 1.0])).exp()
    tensor([0.1875, 0.1875])
    >>> d.sample((5,)).sum(-1).unique(dim=0)
    tensor([[1., 2.]])
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError("probs and logits are both given or both missing, one is wanted; pass logits=")
        if logits is None:
            assert probs is not None
            some = probs > 0  # log 0 has no gradient, and its value is minus infinity all the same
            logits = probs.masked_fill(~some, 1).log().masked_fill(~some, -math.inf)
        # Normalised once: x log p would otherwise meet the sum over the vocabulary in each of the densities.
        self.logits = logits.log_softmax(-1)
        self.total_count = None
        batch_shape = self.logits.shape[:-1]
        if total_count is not None:
            count = torch.as_tensor(total_count, dtype=self.logits.dtype, device=self.logits.device)
            batch_shape = torch.broadcast_shapes(batch_shape, count.shape)
            self.total_count = count.expand(batch_shape)
            self.logits = self.logits.expand(*batch_shape, -1)
        super().__init__(batch_shape, self.logits.shape[-1:], validate_args=validate_args)

    @property
    def probs(self) -> Tensor:
        """The probability p of each word, (*batch_shape, V)."""
        return self.logits.exp()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The distribution with another batch shape."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(*batch_shape, -1)
        new.total_count = None if self.total_count is None else self.total_count.expand(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the counts `value`, in nats."""
        words = self.word_log_prob(value) + log_coefficient(value)
        if self.total_count is None:
            return words
        return torch.where(value.sum(-1) == self.total_count, words, -math.inf)

    def word_log_prob(self, value: Tensor) -> Tensor:
        """sum_v x_v log p_v: that of the words in one order, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.where(value == 0, 0.0, value * self.logits).sum(-1)  # 0 log 0 is 0

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Counts that sum to each document's length, (*sample_shape, *batch_shape, V).

        The n words are divided between two halves of the vocabulary, the words of a half between its quarters, and so
        on: log2 V draws of binomials, whose shapes do not depend on the lengths.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        size = 1 << (shape[-1] - 1).bit_length()
        levels = [torch.nn.functional.pad(self.probs, (0, size - shape[-1]))]
        while levels[-1].shape[-1] > 1:
            levels.append(levels[-1].unflatten(-1, (-1, 2)).sum(-1))
        counts = self._lengths().expand(shape[:-1])[..., None]
        for halves in levels[-2::-1]:
            left, right = halves.unflatten(-1, (-1, 2)).unbind(-1)
            both = left + right
            share = torch.where(both > 0, left / both, 0.0).expand(counts.shape)
            first = torch.binomial(counts.contiguous(), share.contiguous())
            counts = torch.stack([first, counts - first], -1).flatten(-2)
        return counts[..., : shape[-1]]

    @property
    def mean(self) -> Tensor:
        """n p."""
        return self._lengths()[..., None] * self.probs

    @property
    def variance(self) -> Tensor:
        """n p (1 - p), of each word's count."""
        return self.mean * -torch.expm1(self.logits)

    def _lengths(self) -> Tensor:
        if self.total_count is None:
            raise ValueError("total_count is None, but samples and moments need the lengths; pass x.sum(-1)")
        if self._validate_args and not (valid := constraints.nonnegative_integer.check(self.total_count)).all():
            wrong = self.total_count[~valid][0].item()
            raise ValueError(f"total_count has {wrong:g}, whole numbers of at least 0 are wanted; pass x.sum(-1)")
        return self.total_count


def log_coefficient(x: Tensor) -> Tensor:
    """log n! - sum_v log x_v!, how many orders the words of a document have, in nats: (...) of counts x (..., V).

    >>> log_coefficient(torch.tensor([2.0, 1.0])).exp()
    tensor(3.)
    """
    return torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
