"""What `fit` and `fit_em` say of arguments that are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyrovae.training.loop import Callback

__all__ = ["check_callbacks", "check_numbers"]


def check_numbers(**numbers: Any) -> None:
    """Arguments of a training that count or weigh something are positive."""
    for name, value in numbers.items():
        optional = name in ("clip_norm", "patience", "batch_size", "tolerance")
        whole = name in ("max_epochs", "batch_size", "patience")
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise TypeError(f"{name} is {value!r}, a {'whole ' if whole else ''}number is wanted; pass {name}=1, say")
        if not value > 0 or value == float("inf"):
            raise ValueError(
                f"{name} is {value}, it must be positive and finite; pass {name}={'1' if whole else '1e-3'}, say"
            )


def check_callbacks(callbacks: Any) -> None:
    """What is to be called after each epoch can be."""
    if not isinstance(callbacks, Sequence) or not all(isinstance(c, Callback) or callable(c) for c in callbacks):
        raise TypeError(f"callbacks is {callbacks!r}, a list of functions or Callbacks is wanted; pass callbacks=[...]")
