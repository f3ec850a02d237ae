"""Distributions that torch and Pyro lack, or get wrong in float32.

All but `BagOfWords`, `Implicit` and `TolerantDelta` are over one number, with batch shape that of their parameters;
`.to_event` makes events of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from pyro.distributions import Delta, TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from pyrovae.implicit import Implicit

__all__ = [
    "BagOfWords",
    "ContinuousBernoulli",
    "CrossEntropy",
    "DiscretizedLogistic",
    "Implicit",
    "TolerantDelta",
    "log_coefficient",
]


class _Univariate(TorchDistribution):
    """Over one number: each parameter (a name in `arg_constraints`) has the batch shape."""

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        return new


class _Levels(constraints.Constraint):
    """The numbers k / (levels - 1), up to a hundredth of a bin: float32 holds them to less."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        k = value * (self.levels - 1)
        return ((k - k.round()).abs() < 1e-2) & (k > -0.5) & (k < self.levels - 0.5)

    def __repr__(self) -> str:
        return f"Levels({self.levels})"


class DiscretizedLogistic(_Univariate):
    r"""A logistic variable rounded to the nearest of `levels` values 0, w, 2w, ..., 1, where w = 1 / (levels - 1).

        P(x) = S((x + w/2 - loc) / scale) - S((x - w/2 - loc) / scale),    S(t) = 1 / (1 + exp(-t))

    where the first value takes all the mass below it, and the last all the mass above. With a the lower and b the upper
    argument, log P(x) = log S(b) + log S(-a) + log(1 - exp(a - b)), which loses no digits at any loc and scale.

    Args:
        loc: centre of the logistic, in the units of x.
        scale: its scale, positive; broadcast with loc.
        levels: number of values, at least 2; 256 for 8-bit data x = k / 255.

    Returns:
        From `log_prob(x)`: nats (a probability mass, so at most 0), shape (..., *batch_shape).

    Raises:
        ValueError: if levels is below 2, or (with argument validation on) scale is not positive or x is not a level.

    Source: Salimans et al. 2017, https://arxiv.org/abs/1701.05517, eq. 2, for one component. Their code switches to the
    density at the centre of the bin where the mass is below 1e-5; here the same formula holds throughout.

    >>> d = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.1), levels=3)
    >>> d.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
    tensor([0.3775, 0.6115, 0.0110])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, levels: int = 256, validate_args: bool | None = None
    ) -> None:
        if levels < 2:
            raise ValueError(f"levels is {levels}, expected at least 2; pass levels=256 for 8-bit data")
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels."""
        return _Levels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the level `value`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        first, last = value < half, value > 1 - half
        lower = (value - half - self.loc) / self.scale
        upper = (value + half - self.loc) / self.scale
        log_below_upper = logsigmoid(upper).masked_fill(last, 0)
        log_above_lower = logsigmoid(-lower).masked_fill(first, 0)
        log_width = torch.log(-torch.expm1(-2 * half / self.scale)).masked_fill(first | last, 0)
        return log_below_upper + log_above_lower + log_width

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Levels drawn from the distribution, shape (*sample_shape, *batch_shape)."""
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        x = self.loc + self.scale * torch.logit(u)
        return (x * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """Sum of x P(x) over the levels, one level at a time so that memory does not grow with them."""
        return self._expectation(lambda x: x)

    @property
    def variance(self) -> Tensor:
        """Sum of (x - mean)^2 P(x) over the levels."""
        mean = self.mean
        return self._expectation(lambda x: (x - mean) ** 2)

    def _expectation(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        total = torch.zeros_like(self.loc)
        for x in torch.linspace(0, 1, self.levels, dtype=self.loc.dtype, device=self.loc.device):
            total = total + f(x) * self.log_prob(x.expand(self.batch_shape)).exp()
        return total


class _Grey(_Univariate):
    """Over a grey value in [0, 1], with a parameter like the Bernoulli's."""

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def _bernoulli_log_prob(self, value: Tensor) -> Tensor:
        """x log S(l) + (1 - x) log S(-l)."""
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")


class ContinuousBernoulli(_Grey):
    r"""The density on [0, 1] proportional to the Bernoulli's expression, normalised.

        log p(x) = x log S(l) + (1 - x) log S(-l) + log C(l),    C(l) = l / tanh(l / 2),    S(t) = 1 / (1 + exp(-t))

    torch has one, whose constant goes through clamped probabilities: in float32 the density of logits 20 integrates
    to 0.80 and that of logits 200 to 0.08, with no gradient through the constant beyond |l| = 16, which decoders of
    black pixels reach. Here all is a function of the logits. Near 0, where the closed forms divide 0 by 0,
    their series take over (|l| < 0.1, exact to double precision).

    Args:
        logits: l, any real.

    Returns:
        From `log_prob(x)`: nats, shape (..., *batch_shape); unbounded above as |l| grows.

    Raises:
        ValueError: with argument validation on, if x is outside [0, 1].

    Source: Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845.

    >>> ContinuousBernoulli(torch.tensor([0.0, 200.0])).log_prob(torch.tensor([0.7, 1.0]))  # uniform, and log 200
    tensor([0.0000, 5.2983])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density at `value`, in nats."""
        small, h, t = self._halves()
        log_constant = torch.where(
            small,
            t / 3 - 7 * t**2 / 90 + 62 * t**3 / 2835 - 127 * t**4 / 18900,
            torch.log(h / torch.tanh(h)),
        )
        return self._bernoulli_log_prob(value) + math.log(2) + log_constant

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Values drawn by inverting the distribution function, shape (*sample_shape, *batch_shape)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        rate = self.logits.abs().clamp(min=1e-6)  # closer to 0 it is uniform to rounding
        y = -torch.log1p(u * torch.expm1(-rate)) / rate  # density proportional to exp(-rate y)
        y = y.clamp(max=1)  # rounding must not leave the support, whatever the device's log1p
        return torch.where(self.logits > 0, 1 - y, y)

    @property
    def mean(self) -> Tensor:
        """Mean, (coth(l/2) - 2/l + 1) / 2."""
        small, h, t = self._halves()
        series = self.logits / 2 * (1 / 3 - t / 45 + 2 * t**2 / 945 - t**3 / 4725)
        return (1 + torch.where(small, series, 1 / torch.tanh(h) - 1 / h)) / 2

    @property
    def variance(self) -> Tensor:
        """Variance, 1/l^2 - 1 / (4 sinh(l/2)^2)."""
        small, h, t = self._halves()
        series = 1 / 3 - t / 15 + 2 * t**2 / 189 - t**3 / 675
        return torch.where(small, series, 1 / h**2 - 1 / torch.sinh(h) ** 2) / 4

    def _halves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the series hold; l/2 where they do not; (l/2)^2 where they do. Elsewhere 1 and 0, for finite grads."""
        h = self.logits / 2
        small = h.abs() < 0.05
        return small, h.masked_fill(small, 1), h.masked_fill(~small, 0) ** 2


class CrossEntropy(_Grey):
    """The Bernoulli's log-probability at grey x in [0, 1]: a loss in common use, and not the log of a density.

        log_prob(x) = x log p + (1 - x) log(1 - p),    p = sigmoid(logits)

    At x in {0, 1} it is the Bernoulli. Over [0, 1] its exponential integrates to less than 1 (`ContinuousBernoulli`
    has the constant that is missing), so `is_density` is False and its values never stand beside log-likelihoods.
    Mean, variance and samples are those of the Bernoulli: a sample is 0 or 1.

    Args:
        logits: log p - log(1 - p).

    Returns:
        From `log_prob(x)`: minus the cross-entropy in nats, shape (..., *batch_shape).

    Raises:
        ValueError: with argument validation on, if x is outside [0, 1].

    Source: the "pervasive error" of Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845.

    >>> CrossEntropy(torch.tensor(0.0)).log_prob(torch.tensor([0.0, 0.5]))  # log 1/2 at any x
    tensor([-0.6931, -0.6931])
    """

    is_density = False

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the cross-entropy of `value` and p, in nats."""
        return self._bernoulli_log_prob(value)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Zeros and ones, shape (*sample_shape, *batch_shape)."""
        return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    @property
    def mean(self) -> Tensor:
        """The grey value p."""
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        """p (1 - p), that of the samples."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)


class TolerantDelta(Delta):
    r"""Pyro's `Delta`, where a value counts as the point if rounding alone could tell them apart.

        log p(x) = log_density  if |x_j - v_j| <= tolerance (1 + |v_j|) for all j,  else -inf

    What is computed along two ways, such as f(f^-1(x)), is hardly ever equal in each bit. The gradient is that of
    log_density: neither x nor v has one.

    Args:
        v: the point, (*batch, *event).
        log_density: what it counts with, in nats, (*batch).
        event_dim: number of dims of an event.
        tolerance: positive.

    Returns:
        From `log_prob(x)`: nats, shape (..., *batch).

    Raises:
        ValueError: if the tolerance is not positive.

    >>> x = torch.tensor(0.1) + torch.tensor([0.0, 1e-6, 0.5])
    >>> TolerantDelta(torch.tensor(0.1), torch.tensor(2.0)).log_prob(x)
    tensor([2., 2., -inf])
    """

    def __init__(
        self,
        v: Tensor,
        log_density: Tensor | float = 0.0,
        event_dim: int = 0,
        *,
        tolerance: float = 1e-3,
        validate_args: bool | None = None,
    ) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance is {tolerance}, expected a positive number; pass tolerance=1e-3")
        self.tolerance = tolerance
        super().__init__(v, log_density, event_dim, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same point in each place of `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.tolerance = self.tolerance
        return super().expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        """log_density near the point, -inf elsewhere."""
        near = (value - self.v).abs() <= self.tolerance * (1 + self.v.abs())
        if self.event_dim:
            near = near.flatten(-self.event_dim).all(-1)
        return torch.where(near, self.log_density, -torch.inf)


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
