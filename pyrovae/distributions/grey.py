"""Over one grey value: a density or a mass on [0, 1], with batch shape that of the parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

__all__ = ["ContinuousBernoulli", "CrossEntropy", "DiscretizedLogistic"]


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
