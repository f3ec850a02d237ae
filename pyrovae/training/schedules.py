"""Weights that change while training: KL warm-up, cyclical annealing, capacity.

A schedule holds its value in a tensor that `update` overwrites in place: a captured step reads the new one, where a
Python number would have been frozen into the graph.

The tensor has no dims, so that it takes no part in type promotion with the entries of a ledger, which have; and it has
the default dtype at construction, so that a float32 loss without dims stays float32 too (a float64 weight would turn it
to float64). In float64 work call `.double()` on the schedule, or on the module that holds it: `update` then sets the
exact value instead of the nearest float32.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor, nn

__all__ = ["Constant", "Cyclical", "Linear", "Schedule", "Sigmoid", "as_weight"]


class Schedule(nn.Module):
    """A weight as a function of the epoch.

    A subclass sets its numbers, defines `at`, and ends its constructor with `self.update(0.0)`. Validation is with the
    weight `at_end`, so that epochs compare: define it too where the weight still changes after a million epochs.

    Shapes: `value` (), in units of what it weighs.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))

    def at(self, epoch: float) -> float:
        """The weight after `epoch` epochs; 2.5 is the middle of the third."""
        raise NotImplementedError(f"{type(self).__name__} has no formula; define at(self, epoch) -> float")

    def at_end(self) -> float:
        """The weight when all change is over."""
        return self.at(1e6)  # a plan's last epoch would compare otherwise where a run is resumed with more

    def update(self, epoch: float) -> None:
        """Set `value` to the weight after `epoch` epochs, in place.

        Raises:
            ValueError: the epoch is below 0 or not finite.
        """
        if not 0 <= epoch < math.inf:
            raise ValueError(f"epoch is {epoch}, wanted a finite number of at least 0; count epochs from 0.0")
        self.value.fill_(self.at(epoch))

    def forward(self) -> Tensor:
        """The weight, ()."""
        return self.value


class Constant(Schedule):
    """The same weight always.

    Args:
        weight: that weight.

    >>> Constant(0.5)()
    tensor(0.5000)
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = _finite("weight", weight)
        self.update(0.0)

    def at(self, epoch: float) -> float:
        """The weight, whatever the epoch."""
        return self.weight

    def at_end(self) -> float:
        """The weight."""
        return self.weight

    def extra_repr(self) -> str:
        """The argument."""
        return f"{self.weight}"


class Linear(Schedule):
    r"""From `start` to `end` along a line, then `end`.

        start + (end - start) min(1, max(0, epoch - delay) / epochs)

    Args:
        start: the weight until `delay`.
        end: the weight from `delay` + `epochs` on.
        epochs: how long the line takes.
        delay: epochs before it begins.

    Source: KL warm-up, Soenderby et al. 2016, https://arxiv.org/abs/1602.02282

    >>> beta = Linear(0.0, 1.0, epochs=10)
    >>> seen = beta.value
    >>> beta.update(2.5)
    >>> seen
    tensor(0.2500)
    """

    def __init__(self, start: float, end: float, epochs: float, *, delay: float = 0.0) -> None:
        super().__init__()
        self.start, self.end = _finite("start", start), _finite("end", end)
        self.epochs, self.delay = _positive("epochs", epochs), _finite("delay", delay)
        if self.delay < 0:
            raise ValueError(f"delay is {delay}, wanted at least 0; leave it out to begin at once")
        self.update(0.0)

    def at(self, epoch: float) -> float:
        """The weight after `epoch` epochs."""
        return _between(self.start, self.end, min(1.0, max(0.0, epoch - self.delay) / self.epochs))

    def at_end(self) -> float:
        """The weight in the limit, `end`."""
        return self.at(math.inf)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.start}, {self.end}, epochs={self.epochs}, delay={self.delay}"


class Cyclical(Schedule):
    r"""From `start` to `end` and back to `start` at once, `num_cycles` times, then `end`.

        start + (end - start) min(1, t / ratio),    t the part of the present cycle that has passed, in [0, 1)

    The paper counts whole steps; here time is continuous and each cycle epochs / num_cycles long.

    Args:
        start: the weight at the beginning of each cycle; the paper's is 0.
        end: the weight at the end of each cycle and ever after; the paper's is 1.
        epochs: how long all cycles take together.
        num_cycles: how many; the paper's is 4.
        ratio: the part of each cycle that the rise takes; the paper's is 0.5.

    Source: Fu et al. 2019, https://arxiv.org/abs/1903.10145

    >>> beta = Cyclical(0.0, 1.0, epochs=40, num_cycles=4, ratio=0.5)
    >>> [beta.at(epoch) for epoch in (0, 2.5, 5, 9, 10, 12.5, 40)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0]
    """

    def __init__(self, start: float, end: float, epochs: float, *, num_cycles: int = 4, ratio: float = 0.5) -> None:
        super().__init__()
        self.start, self.end = _finite("start", start), _finite("end", end)
        self.epochs, self.ratio = _positive("epochs", epochs), _positive("ratio", ratio)
        if isinstance(num_cycles, bool) or not isinstance(num_cycles, int) or num_cycles < 1:
            raise ValueError(f"num_cycles is {num_cycles!r}, wanted an int of at least 1; pass num_cycles=4")
        if self.ratio > 1:
            raise ValueError(f"ratio is {ratio}, wanted at most 1; pass ratio=1.0 to rise for the whole cycle")
        self.num_cycles = num_cycles
        self.update(0.0)

    def at(self, epoch: float) -> float:
        """The weight after `epoch` epochs."""
        if epoch >= self.epochs:
            return self.end
        return _between(self.start, self.end, min(1.0, epoch * self.num_cycles / self.epochs % 1.0 / self.ratio))

    def at_end(self) -> float:
        """The weight in the limit, `end`."""
        return self.at(math.inf)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.start}, {self.end}, epochs={self.epochs}, num_cycles={self.num_cycles}, ratio={self.ratio}"


class Sigmoid(Schedule):
    r"""From `start` to `end` along a logistic curve, half of the way at `midpoint`.

        start + (end - start) / (1 + exp(-(epoch - midpoint) / width))

    Args:
        start: the weight long before `midpoint`.
        end: the weight long after it.
        midpoint: where the weight is (start + end) / 2.
        width: epochs from there to 73 % of the way; 98 % takes 4.

    Source: the curve of Bowman et al. 2016, figure 2, https://arxiv.org/abs/1511.06349, which gives no formula.

    >>> Sigmoid(0.0, 1.0, midpoint=10, width=2).at(10)
    0.5
    """

    def __init__(self, start: float, end: float, midpoint: float, *, width: float) -> None:
        super().__init__()
        self.start, self.end = _finite("start", start), _finite("end", end)
        self.midpoint, self.width = _finite("midpoint", midpoint), _positive("width", width)
        self.update(0.0)

    def at(self, epoch: float) -> float:
        """The weight after `epoch` epochs."""
        # The logistic function as a tanh, which does not overflow.
        return _between(self.start, self.end, 0.5 + 0.5 * math.tanh((epoch - self.midpoint) / self.width / 2))

    def at_end(self) -> float:
        """The weight in the limit, `end`."""
        return self.at(math.inf)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.start}, {self.end}, midpoint={self.midpoint}, width={self.width}"


def as_weight(value: float | Schedule) -> Schedule:
    """A schedule as it is, a number as a `Constant`.

    Raises:
        TypeError: it is neither.
        ValueError: the number is not finite.

    >>> as_weight(2)
    Constant(2.0)
    """
    return value if isinstance(value, Schedule) else Constant(value)


def _between(start: float, end: float, part: float) -> float:
    """Linear interpolation; the rounded sum need not be `end` where it should."""
    return end if part == 1 else start + (end - start) * part


def _finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, wanted a number; pass a float")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, wanted a finite number; pass a float")
    return float(value)


def _positive(name: str, value: float) -> float:
    if not _finite(name, value) > 0:
        raise ValueError(f"{name} is {value}, wanted more than 0; pass a positive number")
    return float(value)
