"""The contract of an objective: a `pyro.infer.ELBO` whose mathematics is one function of the site ledger."""

from __future__ import annotations

import copy
import inspect
import math
import re
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any
from weakref import WeakKeyDictionary

import pyro.infer
import torch
from pyro.infer.enum import get_importance_trace
from torch import Tensor, nn

from pyrovae.models.base import Functions, Structure, structure
from pyrovae.objectives.weights import Ledger, Term, ledger

__all__ = ["Objective", "number", "spelled", "weight", "whole"]


class Objective(pyro.infer.ELBO):
    """Base class of objectives: a subclass says what each datum contributes, in nats.

    It works in stock `pyro.infer.SVI`, where its loss is minus the sum over the data (over all N where the data plate
    subsamples), as Pyro's own losses are, and in `pyrovae.fit`, which takes the mean per datum.

    Args:
        num_particles: K, drawn at once.
        plate: name of the data plate, where it is not plain.

    Attributes:
        is_bound: whether the value is a lower bound on log p(x), whatever the pair.
        couples_rows: whether a datum's value depends on the other rows of its batch.
        reparametrised: whether its gradient for the guide goes through the samples, which discrete sites do not let by.
        closed_form: whether KLs are in closed form where that is valid.
        critic: a module of its own that is trained by turns with the pair, see `density_ratio.RatioObjective`; or None.
    """

    is_bound = True
    couples_rows = False
    reparametrised = True
    closed_form = True
    critic: nn.Module | None = None

    def __init__(self, num_particles: int = 1, *, plate: str | None = None):
        super().__init__(num_particles=whole("num_particles", num_particles), vectorize_particles=True)
        self.plate = plate
        self._known: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict[Any, Structure]]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        words = [f"{name}={spelled(getattr(self, name))}" for name in inspect.signature(type(self)).parameters]
        return f"{type(self).__name__}({', '.join(words)})"

    def draw(self, pair: Any, *batch: Any, known: Structure) -> Ledger:
        """K particles of a pair on a batch."""
        return ledger(pair, *batch, num_particles=self.num_particles, known=known)

    @abstractmethod
    def per_datum(self, drawn: Ledger) -> Tensor:
        """What is maximised, for each datum: shape (B,), nats."""

    def mean(self, drawn: Ledger) -> Tensor:
        """The mean per datum, nats; sites outside the data plate count once for all N data."""
        if self.reparametrised and torch.is_grad_enabled():
            _check_reparametrised(drawn)
        value = self.per_datum(drawn).mean()
        shared = drawn.global_elbo(self._weight, closed_form=self.closed_form)
        return value + shared.mean() / drawn.size if isinstance(shared, Tensor) else value

    def _weight(self, term: Term) -> float | Tensor:
        """What a site outside the data plate is multiplied by."""
        return term.scale

    @property
    def schedules(self) -> dict[str, Any]:
        """What changes while training, by the argument's name (and the site's): `pyrovae.training.schedules`, say."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name.startswith("_"):
                continue
            parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            found |= {key: part for key, part in parts.items() if hasattr(part, "value") and hasattr(part, "update")}
        return found

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What the objective has learned so far and can't compute anew: part of a checkpoint."""
        learned = {name: schedule for name, schedule in self.schedules.items() if not hasattr(schedule, "at")}
        buffers = {f"{name}.{key}": buffer for name, part in learned.items() for key, buffer in part.named_buffers()}
        if self.critic is not None:
            state = [*self.critic.named_parameters(), *self.critic.named_buffers()]
            buffers |= {f"critic.{key}": tensor for key, tensor in state}
        return buffers

    def for_validation(self) -> Objective:
        """What to validate with: this objective, its schedules at their end."""
        if not self.schedules:
            return self
        ended = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):
                setattr(ended, name, {key: _at_end(part) for key, part in value.items()})
            else:
                setattr(ended, name, _at_end(value))
        return ended

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the sum over the data, as a differentiable scalar in nats."""
        pair = Functions(partial(model, **kwargs), partial(guide, **kwargs)) if kwargs else Functions(model, guide)
        by_guide = self._known.setdefault(getattr(model, "__self__", model), WeakKeyDictionary())
        by_call = by_guide.setdefault(getattr(guide, "__self__", guide), {})
        # One pair may have other sites for other calls: model(x, y) and model(x) with y=None, or another method.
        call = *map(_kind, (model, guide, *args)), *((name, _kind(kwargs[name])) for name in sorted(kwargs))
        if call not in by_call:
            by_call[call] = structure(pair, *args, plate=self.plate)
        drawn = self.draw(pair, *args, known=by_call[call])
        return -drawn.size * self.mean(drawn)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the sum over the data, nats."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss, its gradients added to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", float("inf"), model, guide, args, kwargs)


def number(name: str, value: Any) -> Any:
    """The value.

    Raises:
        ValueError: unless it is a finite number of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, a number of at least 0 is wanted; pass {name}=1.0, say")
    return value


def whole(name: str, value: Any) -> int:
    """The value.

    Raises:
        ValueError: unless it is a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; pass a whole number of at least 1")
    return int(value)


def weight(name: str, value: Any) -> Any:
    """The value: a number as `number` takes it, or what changes, a schedule or a tensor of such numbers.

    Raises:
        ValueError: for anything else.
    """
    if not hasattr(value, "value"):
        for element in value.flatten().tolist() if isinstance(value, Tensor) else [value]:
            number(name, element)
    return value


def spelled(value: Any) -> str:
    """A value on one line, alike in any process: functions and classes by their names, nothing by its place in memory.

    >>> spelled({"kernel": partial(torch.cdist, p=1.0)})
    "{'kernel': cdist(p=1.0)}"
    """
    match value:
        case partial():
            options = [f"{name}={spelled(option)}" for name, option in value.keywords.items()]
            return f"{spelled(value.func)}({', '.join([*map(spelled, value.args), *options])})"
        case dict():
            return f"{{{', '.join(f'{key!r}: {spelled(item)}' for key, item in value.items())}}}"
        case list():
            return f"[{', '.join(map(spelled, value))}]"
    if name := getattr(value, "__qualname__", None):
        return name
    if type(value).__repr__ is object.__repr__:
        return type(value).__qualname__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(value).split()))  # a module's has several lines


def _kind(value: Any) -> Any:
    """What of an argument may decide which sites there are: of numbers and tensors it is not the value."""
    return value if value is None or isinstance(value, (bool, str)) else getattr(value, "__func__", type(value))


def _at_end(value: Any) -> Any:
    return value.at_end() if hasattr(value, "value") and hasattr(value, "at_end") else value


def _check_reparametrised(drawn: Ledger) -> None:
    for term in drawn.terms:
        sampled = term.kind == "guide" and not term.enumerated and not term.site["is_observed"]
        if sampled and not term.site["fn"].has_rsample and term.log_prob.requires_grad:
            raise ValueError(
                f"guide site {term.name!r} ({type(term.site['fn']).__name__}) has no reparametrised samples, so this "
                'objective has no gradient for it; mark it infer={"enumerate": "parallel"} or pass '
                "objective=pyrovae.VIMCO(5), pyrovae.ReweightedWakeSleep(5) or pyro.infer.TraceGraph_ELBO()"
            )
