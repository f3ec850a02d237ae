"""Likelihoods of bits, fractions, codes, counts and pixels."""

from collections.abc import Sequence
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrovae import distributions
from pyrovae.conditionals.base import Conditional
from pyrovae.nets import as_size

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "CrossEntropy",
    "DiscretizedLogistic",
    "Multinomial",
]


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
        return distributions.Bernoulli(logits=logits).to_event(len(self.event_shape))


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
        as_size(num_classes, "num_classes")
        super().__init__(feature_shape, event_shape, num_parameters=num_classes)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Categorical(softmax(logits(h)))."""
        logits = torch.stack(self.head(features), -1)  # (..., *event, C)
        return dist.Categorical(logits=logits).to_event(len(self.event_shape))


class Multinomial(Conditional):
    """x ~ Multinomial(total_count, softmax(logits(h))) over the last event dim, for counts x.

    x of another sum have no probability: they are refused, before training too. `BagOfWords` takes documents that have
    each a length of their own.

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
        self.total_count = as_size(total_count, "total_count")
        if not self.event_shape:
            raise ValueError("event_shape is (), a Multinomial expects a last dim of categories; pass their number")

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Multinomial(total_count, softmax(logits(h)))."""
        (logits,) = self.head(features)
        return distributions.Multinomial(self.total_count, logits=logits).to_event(len(self.event_shape) - 1)


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
