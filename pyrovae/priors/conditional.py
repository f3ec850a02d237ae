"""Priors that depend on a context, p(z | y)."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyrovae.conditionals import DiagonalNormal
from pyrovae.nets import MLP, as_shape, as_size

__all__ = ["ClassConditional", "ConditionalNormal"]


class ConditionalNormal(nn.Module):
    r"""z | y ~ N(loc(y), scale(y)^2), element by element, with a network of the context y.

    For labels y is one-hot; `hidden=()` is then one mean and one scale for each class.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.
        context_shape: shape of one y.
        hidden: sizes of the hidden layers, tanh.
        min_scale: see `pyrovae.conditionals.DiagonalNormal`.

    Returns:
        From `forward(context)`, of y (..., *context_shape): a Normal of batch shape (...) and event shape
        `event_shape`.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or at the call if there is no context, or one of another shape.

    Source: Sohn, Lee & Yan 2015, "Learning structured output representation", section 4.1.

    >>> prior = ConditionalNormal(2, context_shape=10)
    >>> prior(torch.eye(10)[:5]).batch_shape
    torch.Size([5])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        context_shape: int | Sequence[int],
        hidden: Sequence[int] = (200,),
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.network = MLP(as_shape(context_shape, "context_shape"), hidden)
        self.conditional = DiagonalNormal(self.network.feature_shape, self.event_shape, min_scale=min_scale)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z | context)."""
        return self.conditional(self.network(_given(self, context)))


class ClassConditional(nn.Module):
    r"""z | y ~ p_y(z): a prior of its own for each class, of any kind that needs no context.

    Every class's prior scores every z and y picks one, so that labels may be enumerated; the time is that of C priors.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.
        num_classes: C.
        prior: makes the prior of a class, by `prior(event_shape)`; `functools.partial(RealNVP, num_layers=4)`, say.
            One that is made of q(z | x) (`bind`) is not bound by this class.

    Returns:
        From `forward(context)`: a distribution of event shape `event_shape`. The context is labels, integers (...) in
        0 ... C - 1 or one-hot floats (..., C); its leading dims (...) are the batch shape.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or at the call if there is no context, one-hot labels of another C, or a
            label that is not among 0 ... C - 1 (in eager steps, where torch validates arguments).

    >>> from functools import partial
    >>> from pyrovae.priors import GaussianMixture
    >>> prior = ClassConditional(2, num_classes=3, prior=partial(GaussianMixture, num_components=4))
    >>> y = torch.tensor([2, 0])
    >>> z = torch.zeros(2, 2)
    >>> torch.equal(prior(y).log_prob(z), prior(torch.eye(3)[y]).log_prob(z))
    True
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        num_classes: int,
        prior: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.num_classes = as_size(num_classes, "num_classes")
        self.classes = nn.ModuleList(prior(event_shape) for _ in range(self.num_classes))

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """p(z | context)."""
        y = _given(self, context)
        if y.is_floating_point():
            if y.shape[-1:] != (self.num_classes,):
                raise ValueError(
                    f"one-hot labels have shape {tuple(y.shape)}, the prior has {self.num_classes} classes in the last "
                    "dim; pass labels of that many, or integers"
                )
            y = y.argmax(-1)
        return _Picked([prior() for prior in self.classes], y)


class _Picked(TorchDistribution):
    """The one of several distributions, of batch shape (), that a label picks; y has the batch shape."""

    def __init__(self, each: list[TorchDistribution], y: Tensor, validate_args: bool | None = None) -> None:
        self.each, self.y = each, y
        super().__init__(y.shape, each[0].event_shape, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Which labels there are: torch names one that is not, where it validates arguments."""
        return {"y": constraints.integer_interval(0, len(self.each) - 1)}

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        new.y = self.y.expand(batch_shape)
        return new

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of each."""
        return self.each[0].support

    @property
    def has_rsample(self) -> bool:
        """Whether all of them have."""
        return all(one.has_rsample for one in self.each)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density at `value`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = torch.stack([one.log_prob(value) for one in self.each], -1)  # (..., C)
        shape = torch.broadcast_shapes(log_prob.shape[:-1], self.y.shape)
        y = self.y.expand(shape).unsqueeze(-1)
        return log_prob.expand(*shape, -1).gather(-1, y).squeeze(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """One value of the picked distribution, shape (*sample_shape, *batch_shape, *event_shape)."""
        return self._picked([one.sample(torch.Size(sample_shape) + self.y.shape) for one in self.each])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The same, with a gradient."""
        return self._picked([one.rsample(torch.Size(sample_shape) + self.y.shape) for one in self.each])

    def _picked(self, drawn: list[Tensor]) -> Tensor:
        y = self.y.reshape(*self.y.shape, *[1] * len(self.event_shape))
        value = drawn[0]
        for index, other in enumerate(drawn[1:], 1):
            value = torch.where(y == index, other, value)
        return value


def _given(prior: nn.Module, context: Tensor | None) -> Tensor:
    if context is None:
        raise ValueError(f"{type(prior).__name__} is p(z | y), and was called without y; call prior(y)")
    return context
