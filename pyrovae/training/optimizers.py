"""A torch optimizer, made of what `fit` is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

__all__ = ["made"]


def made(optimizer: Callable[..., torch.optim.Optimizer], parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """The optimizer of these parameters.

    Raises:
        TypeError: for what makes no torch optimizer, or one that wants to compute losses itself.
        ValueError: for a learning rate in the partial, which that of `fit` would replace.
    """
    name = str(optimizer)[:60]
    if isinstance(optimizer, partial) and optimizer.keywords.get("lr", lr) != lr:
        raise ValueError(
            f"optimizer is {name!r} with lr={optimizer.keywords['lr']}, which fit's lr={lr} would replace; pass the "
            "rate as fit(..., lr=)"
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is an optimizer already, of parameters that fit does not look at; pass "
            f"torch.optim.{type(optimizer).__name__}, the class, or a functools.partial of it"
        )
    found: Any = optimizer
    said = ""
    if callable(optimizer) and not isinstance(optimizer, PyroOptim):
        try:
            found = optimizer(parameters, lr=lr)
        except TypeError as error:
            said = f" ({error})"
    if not isinstance(found, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is {name!r}, which makes no torch optimizer{said}; "
            "pass torch.optim.Adam or functools.partial(torch.optim.Adam, betas=(0.9, 0.99))"
        )
    closure = inspect.signature(type(found).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer is {type(found).__name__}, whose steps compute the loss several times, which fit's do not; "
            "pass torch.optim.Adam, say"
        )
    return found
