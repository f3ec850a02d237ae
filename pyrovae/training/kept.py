"""What the checkpoints of a run hold, and one sentence about one that was edited."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from pyrovae.training.history import History

__all__ = ["FIX", "check_config", "check_continues", "checked_state", "short", "taken_from"]

FIX = "copy the run again from its source, or fit anew"
LARGEST = 2**31  # numbers of the batch that stands for data, which an edited file could ask any memory for
MAY_CHANGE = ("max_epochs", "patience", "processes", "data_hash")  # between a run and its resumption, or told apart

_STATE: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "epoch": (int,),
    "in_epoch": (list,),
    "best": (list,),
    "returns_best": (bool,),
    "seconds": (float, int),
    "history": (list,),
}
_CONFIG: dict[str, tuple[type, ...]] = {
    "pair": (dict, type(None)),
    "batch": (list,),
    "plate": (str, type(None)),
    "objective": (str,),
    "seed": (int,),
}
_FLOATING = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
_DTYPES = (*_FLOATING, "bool", "uint8", "int8", "int16", "int32", "int64")


def checked_state(state: dict[str, Any], file: str) -> History:
    """The history, once all of the state is what `load` takes."""
    _check_types(state, _STATE, file)
    for name in ("step", "epoch"):
        _check(state[name] >= 0, file, name, state[name], "at least 0")
    begun = state["in_epoch"]
    _check([type(value) for value in begun] == [int, int, float], file, "in_epoch", begun, "steps, rows and a loss")
    best = state["best"]
    is_best = len(best) == 2 and type(best[0]) in (int, type(None)) and type(best[1]) in (float, int)
    _check(is_best, file, "best", best, "an epoch or none, and its loss")
    try:
        return History(state["history"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} has history: {short(state['history'])}, no rows of numbers ({error}); {FIX}"
        ) from error


def check_config(config: dict[str, Any], file: str) -> None:
    """A configuration is what `load` takes."""
    _check_types(config, _CONFIG, file)
    batch = config["batch"]
    pairs = bool(batch) and all(type(like) is list and len(like) == 2 for like in batch)
    _check(pairs, file, "batch", batch, "a shape and a dtype for each tensor")
    for shape, dtype in batch:
        sizes = type(shape) is list and all(type(size) is int and size >= 0 for size in shape)
        _check(sizes, file, "batch", batch, "shapes of whole numbers")
        fits = math.prod(max(1, size) for size in shape) <= LARGEST
        _check(fits, file, "batch", batch, f"tensors of at most {LARGEST} numbers")
        _check(dtype in _DTYPES, file, "batch", batch, f"dtypes out of {', '.join(_DTYPES)}")


def check_continues(config: dict[str, Any], kept: dict[str, Any], folder: str) -> None:
    """A run that is to go on in `folder` is configured as the one that was kept there."""
    size, here = kept.get("processes", 1), config["processes"]
    if size != here:  # its random states and its parts of batches are theirs
        raise ValueError(
            f"the run in {folder!r} was trained by {size} process{'es' * (size > 1)}, here are {here}; pass "
            f"devices={size} or start it with torchrun --nproc_per_node={size}"
        )
    if kept.get("data_hash") not in (None, config["data_hash"]):  # runs of earlier versions have none
        raise ValueError(
            f"the first rows of data are not those of the run in {folder!r}; pass the same data to go on with it, or "
            "another folder to start anew"
        )
    for name, value in config.items():
        if name not in MAY_CHANGE and kept.get(name) != value:
            raise ValueError(
                f"{name} is {value!r}, the run in {folder!r} has {kept.get(name)!r}; "
                f"pass {name}={kept.get(name)!r} to go on with it, or another folder to start anew"
            )


@contextlib.contextmanager
def taken_from(file: str) -> Iterator[None]:
    """Name the file where torch or a schedule finds that its values are none of theirs."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {short(error, 200)}"
        raise ValueError(f"{file} has values from which no training goes on ({why}); {FIX}") from error


def _check_types(values: dict[str, Any], wanted: dict[str, tuple[type, ...]], file: str) -> None:
    for name, kinds in wanted.items():
        if name not in values:
            raise ValueError(f"{file} has no {name}; {FIX}")
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        _check(type(values[name]) in kinds, file, name, values[name], names)  # a bool is no int here


def _check(is_right: bool, file: str, name: str, value: Any, wanted: str) -> None:
    if not is_right:
        raise ValueError(f"{file} has {name}: {short(repr(value))}, wanted {wanted}; {FIX}")


def short(value: Any, limit: int = 60) -> str:
    """One line of what may be any length."""
    return " ".join(str(value).split())[:limit]
