r"""Conditionals: modules whose `forward(features)` returns a Distribution, posterior q(z | x) or likelihood p(x | z).

The contract: `Conditional(feature_shape, event_shape, **options)`, options keyword-only, so that a class or a
`functools.partial` of it fills a pair's slot (`likelihood=partial(FixedNormal, scale=0.1)`). Features
(..., \*feature_shape) give a distribution of batch shape (...) and event shape `event_shape`; the values it takes are
its `.support`. Each holds a `Head`, which maps the features to the distribution's parameters.

>>> from functools import partial
>>> likelihood = partial(FixedNormal, scale=0.1)(200, (1, 8, 8))
>>> d = likelihood(torch.zeros(5, 3, 200))
>>> d.batch_shape, d.event_shape
(torch.Size([5, 3]), torch.Size([1, 8, 8]))
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae import distributions
from pyrovae.nets import Head, as_shape

__all__ = [
    "BagOfWords",
    "Bernoulli",
    "Categorical",
    "Conditional",
    "ContinuousBernoulli",
    "CrossEntropy",
    "DiagonalNormal",
    "DiscretizedLogistic",
    "FixedNormal",
    "LearnedNormal",
    "Multinomial",
    "NormalisedNormal",
    "ProductOfExperts",
    "SoftplusNormal",
    "TopicMixture",
]


class Conditional(nn.Module, ABC):
    """Base of the conditionals: a head on the features. A subclass says `forward(features)`.

    `is_density` is False where log_prob is no log-density (or log-mass), so that bounds made of it are no bounds.

    Args:
        feature_shape: shape of one datum's features; an int stands for a vector.
        event_shape: shape of one value of the distribution; an int stands for a vector.
        num_parameters: how many numbers the head gives per element of the event.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or at the call if the features have another shape.
    """

    is_density: ClassVar[bool] = True

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, num_parameters: int = 1
    ) -> None:
        super().__init__()
        self.head = Head(feature_shape, event_shape, num_parameters)
        self.event_shape = self.head.event_shape

    @abstractmethod
    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The distribution given the features."""


class DiagonalNormal(Conditional):
    """x ~ N(loc(h), scale(h)^2), element by element; as posterior z | x, or as likelihood x | z.

        scale = min_scale + exp(v / 2)

    where the head gives loc and v, up to the floor the log-variance: the paper's parameterisation, in which -log scale,
    the KL's barrier against collapse, is linear in v. The floor is this library's: it keeps scale positive where exp
    underflows, and the likelihood bounded, which maximum likelihood is not when scale may go to 0 (Mattei & Frellsen).

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x (or z).
        min_scale: the floor, in the units of x; 0 for none.

    Returns:
        From `forward(features)`: a Normal over reals.

    Raises:
        ValueError: if min_scale is negative; sizes as in `Conditional`.

    Source: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114, appendix C.2; Mattei & Frellsen 2018,
    https://arxiv.org/abs/1802.04826.

    >>> q = DiagonalNormal(200, 16)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, min_scale: float = 1e-4
    ) -> None:
        super().__init__(feature_shape, event_shape, num_parameters=2)
        if min_scale < 0:
            raise ValueError(f"min_scale is {min_scale}, expected at least 0; pass min_scale=1e-4")
        self.min_scale = min_scale

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale(h)^2)."""
        loc, log_variance = self.head(features)
        scale = self.min_scale + torch.exp(log_variance / 2)
        return dist.Normal(loc, scale).to_event(len(self.event_shape))


class SoftplusNormal(DiagonalNormal):
    """z ~ N(loc(h), scale(h)^2) with variance softplus(v) of the head's v, and min_scale^2 more.

    Its variance grows with v no faster than v itself, where that of `DiagonalNormal` is exp(v).

    Args:
        feature_shape, event_shape, min_scale: as for `DiagonalNormal`.

    Returns:
        From `forward(features)`: a Normal over reals.

    Source: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282; the floor is this library's.
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), softplus(v(h)) + min_scale^2)."""
        loc, v = self.head(features)
        scale = (softplus(v) + self.min_scale**2).sqrt()  # the floor inside: the root of 0 has no derivative
        return dist.Normal(loc, scale).to_event(len(self.event_shape))


class FixedNormal(Conditional):
    """x ~ N(loc(h), scale^2) with a given scale: half the squared error over scale^2, plus its constant.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.
        scale: standard deviation of each element, in the units of x.

    Returns:
        From `forward(features)`: a Normal over reals.

    Raises:
        ValueError: if scale is not positive; sizes as in `Conditional`.
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, scale: float = 1.0
    ) -> None:
        super().__init__(feature_shape, event_shape)
        self.scale = _positive("scale", scale)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale^2)."""
        (loc,) = self.head(features)
        # Filled on the device, where Normal(loc, float) copies from the host; and 0.1 in float64 is 0.1 in full.
        return dist.Normal(loc, loc.new_full((), self.scale)).to_event(len(self.event_shape))


class LearnedNormal(Conditional):
    """x ~ N(loc(h), scale^2) with one learned scale, shared by all elements and data.

    Learning it balances reconstruction against KL, which a fixed scale leaves to a hand-tuned weight. It has no floor:
    one scale for all data goes to 0 only if every datum is reproduced exactly.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.
        initial_scale: where the scale starts, in the units of x.

    Returns:
        From `forward(features)`: a Normal over reals.

    Raises:
        ValueError: if initial_scale is not positive; sizes as in `Conditional`.

    Source: Rybkin, Daniilidis & Levine 2021 (sigma-VAE), https://orybkin.github.io/sigma-vae
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, initial_scale: float = 1.0
    ) -> None:
        super().__init__(feature_shape, event_shape)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_positive("initial_scale", initial_scale))))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """N(loc(h), scale^2)."""
        (loc,) = self.head(features)
        return dist.Normal(loc, self.log_scale.exp()).to_event(len(self.event_shape))


class _Binary(Conditional):
    """A head that gives logits, and may start from the data's mean."""

    @torch.no_grad()
    def initialise_(self, x_mean: Tensor) -> Self:
        """Set the head's bias to logit of the data's mean, clipped to [0.001, 0.999]; the weights stay.

        A 1 x 1 convolution has one bias per channel and starts from the channel's mean.

        Args:
            x_mean: mean of the training data, shape event_shape.

        Returns:
            This module.

        Raises:
            ValueError: if x_mean has another shape.

        Source: `get_train_bias_np` in https://github.com/yburda/iwae (datasets.py).
        """
        if x_mean.shape != self.event_shape:
            raise ValueError(
                f"x_mean has shape {tuple(x_mean.shape)}, the event has {self.event_shape}; pass x.mean(0) of the data"
            )
        mean = x_mean.mean((1, 2)) if self.head.pointwise else x_mean.flatten()
        assert self.head.layer.bias is not None
        self.head.layer.bias.copy_(mean.clamp(0.001, 0.999).logit())
        return self


class Bernoulli(_Binary):
    """x ~ Bernoulli(sigmoid(logits(h))), element by element, for x in {0, 1}.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.

    Returns:
        From `forward(features)`: a Bernoulli, whose support is 0 and 1: grey pixels are no Bernoulli data.

    Raises:
        TypeError, ValueError: as in `Conditional`.

    Source: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114, appendix C.1
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Bernoulli(sigmoid(logits(h)))."""
        (logits,) = self.head(features)
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))


class CrossEntropy(_Binary):
    """Bernoulli's log_prob at grey x in [0, 1]: a loss, not a density (`is_density` is False).

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.

    Returns:
        From `forward(features)`: a `pyrovae.distributions.CrossEntropy`; its mean is grey, its samples are 0 or 1.

    Raises:
        TypeError, ValueError: as in `Conditional`.
    """

    is_density = False

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """CrossEntropy(logits(h))."""
        (logits,) = self.head(features)
        return distributions.CrossEntropy(logits).to_event(len(self.event_shape))


class ContinuousBernoulli(Conditional):
    """x ~ the continuous Bernoulli of logits(h), element by element, a density over x in [0, 1].

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.

    Returns:
        From `forward(features)`: a `pyrovae.distributions.ContinuousBernoulli`, exact in float32 where torch's is not.

    Raises:
        TypeError, ValueError: as in `Conditional`.

    Source: Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """ContinuousBernoulli(logits(h))."""
        (logits,) = self.head(features)
        return distributions.ContinuousBernoulli(logits).to_event(len(self.event_shape))


class Categorical(Conditional):
    """x ~ Categorical(softmax(logits(h))), element by element, for integer codes x in 0 ... C - 1.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.
        num_classes: C; the head gives C logits per element.

    Returns:
        From `forward(features)`: a Categorical with logits (..., *event_shape, C).

    Raises:
        TypeError, ValueError: as in `Conditional`, for num_classes too.
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, num_classes: int
    ) -> None:
        as_shape(num_classes, "num_classes")
        super().__init__(feature_shape, event_shape, num_parameters=num_classes)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Categorical(softmax(logits(h)))."""
        logits = torch.stack(self.head(features), -1)  # (..., *event, C)
        return dist.Categorical(logits=logits).to_event(len(self.event_shape))


class Multinomial(Conditional):
    """x ~ Multinomial(total_count, softmax(logits(h))) over the last event dim, for counts x.

    Pyro's log_prob takes its coefficient from the counts at hand: x that do not sum to total_count get
    the probability under their own sum, not zero. total_count sets the length of samples.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x; its last dim is the categories.
        total_count: sum of x over the categories.

    Returns:
        From `forward(features)`: a Multinomial, coefficient included.

    Raises:
        ValueError: if total_count is not positive or event_shape is (); sizes as in `Conditional`.
    """

    def __init__(
        self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int], *, total_count: int
    ) -> None:
        super().__init__(feature_shape, event_shape)
        (self.total_count,) = as_shape(total_count, "total_count")
        if not self.event_shape:
            raise ValueError("event_shape is (), a Multinomial expects a last dim of categories; pass their number")

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Multinomial(total_count, softmax(logits(h)))."""
        (logits,) = self.head(features)
        return dist.Multinomial(self.total_count, logits=logits).to_event(len(self.event_shape) - 1)


class DiscretizedLogistic(Conditional):
    r"""x ~ logistic(loc(h), scale(h)) rounded to `levels` values in [0, 1], element by element.

        loc = (1 + m) / 2,    scale = exp(s) / 2,    s = min_log_scale + softplus(r - min_log_scale)

    where the head gives m and r in the paper's units, pixels in [-1, 1]: m = 0 is mid-grey, and m is not squashed, so
    that black and white, which take the tails, are reached. The authors' code takes max(r, -7) for s; softplus departs
    from it by 1e-3 at r = 0 and never stops the gradient.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one x.
        levels: number of values; 256 for 8-bit data x = k / 255.
        min_log_scale: the floor of s; their -7 is about a tenth of an 8-bit bin.

    Returns:
        From `forward(features)`: a `pyrovae.distributions.DiscretizedLogistic`.

    Raises:
        ValueError: if levels is below 2; sizes as in `Conditional`.

    Source: Salimans et al. 2017, https://arxiv.org/abs/1701.05517, section 2.1, for one component, not autoregressive;
    https://github.com/openai/pixel-cnn (pixel_cnn_pp/nn.py)
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        levels: int = 256,
        min_log_scale: float = -7.0,
    ) -> None:
        super().__init__(feature_shape, event_shape, num_parameters=2)
        if levels < 2:
            raise ValueError(f"levels is {levels}, expected at least 2; pass levels=256 for 8-bit data")
        self.levels = levels
        self.min_log_scale = min_log_scale

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """DiscretizedLogistic(loc(h), scale(h), levels)."""
        m, r = self.head(features)
        log_scale = self.min_log_scale + softplus(r - self.min_log_scale)
        d = distributions.DiscretizedLogistic((1 + m) / 2, log_scale.exp() / 2, self.levels)
        return d.to_event(len(self.event_shape))


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, expected a positive number; pass {name}=1.0")
    return float(value)


# The rest has a module of its own, and is derived from `Conditional`.
from pyrovae.topic_conditionals import BagOfWords, NormalisedNormal, ProductOfExperts, TopicMixture  # noqa: E402
