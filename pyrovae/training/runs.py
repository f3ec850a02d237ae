"""A run's folder, read back."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

from pyrovae.models.base import PairLike, Structure, as_pair, structure
from pyrovae.models.rebuild import build
from pyrovae.training import checkpoint
from pyrovae.training.history import History
from pyrovae.training.loop import Run
from pyrovae.training.step import OBJECTIVE

__all__ = ["load"]

CRITIC = f"{OBJECTIVE}critic."
FILLED_WITH = (0, 1)  # what stands for data; logarithms, shares and lengths want some that are above 0
LARGEST = 2**31  # numbers of the batch that stands for data, which an edited file could ask any memory for
FIX = "copy the run again from its source, or fit anew"

_STATE: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "epoch": (int,),
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


def load(folder: str | os.PathLike[str], pair: Any = None, *, critic: nn.Module | None = None) -> Run:
    """The run that `fit(..., out=folder)` returned, from its newest checkpoint, on the CPU.

    Args:
        folder: the run's.
        pair: the pair that was fitted, which gets the parameters. Pairs of the library are rebuilt from their name and
            arguments where it is left out; somebody's own has to be passed: no file says what to import.
        critic: a module like the critic of the run's objective, which gets its parameters.

    Raises:
        FileNotFoundError: where the folder has no checkpoint.
        ValueError: where the checkpoint is damaged, is another pair's, or the pair is needed.
    """
    folder = Path(folder)
    path = checkpoint.latest(folder / "checkpoints")
    if path is None:
        raise FileNotFoundError(f"{str(folder)!r} has no complete checkpoint; pass the folder given to fit as out=")
    kept = checkpoint.read(path)
    state, config = kept.state, kept.config
    history = _checked_state(state, f"{path / checkpoint.STATE}")
    _check_config(config, f"{path / checkpoint.CONFIG}")
    if pair is None:
        if config.get("pair") is None:
            raise ValueError(
                f"the run in {str(folder)!r} is of a pair of your own; pass it as pair= (--pair file.py:Name)"
            )
        pair = _built(config["pair"], f"{path / checkpoint.CONFIG}")
    pair = as_pair(pair)
    best = {name[5:]: tensor for name, tensor in kept.parameters.items() if name.startswith("best/")}
    last = {name: tensor for name, tensor in kept.parameters.items() if not name.startswith("best/")}
    kept_values = best if state["returns_best"] else last
    values = {name: tensor for name, tensor in kept_values.items() if not name.startswith(OBJECTIVE)}
    floating = [tensor.dtype for tensor in values.values() if tensor.is_floating_point()]
    for part in pair if isinstance(pair, tuple) else [pair]:
        if isinstance(part, nn.Module) and floating:
            part.to(device="cpu", dtype=floating[0])
    try:
        known = _structure(pair, config["batch"], config["plate"])
    except TypeError as error:
        what = f"{path / checkpoint.CONFIG} has a batch that the pair does not take ({error})"
        raise ValueError(f"{what}; pass the pair that was fitted, or {FIX}") from error
    checkpoint.load_state({**known.parameters, **known.buffers}, values)
    if critic is not None:
        of_critic = {n.removeprefix(CRITIC): tensor for n, tensor in kept_values.items() if n.startswith(CRITIC)}
        critic.to(next(iter(of_critic.values()), torch.zeros(())).dtype)
        checkpoint.load_state({**dict(critic.named_parameters()), **dict(critic.named_buffers())}, of_critic)
    return Run(
        pair=pair,
        objective=config["objective"],
        history=history,
        config=config,
        known=known,
        seed=config["seed"],
        out=folder,
        step=state["step"],
        epoch=state["epoch"],
        best_epoch=state["best"][0],
        best_loss=state["best"][1],
        seconds=state["seconds"],
    )


def _structure(pair: PairLike, like: Sequence[tuple[Sequence[int], str]], plate: str | None) -> Structure:
    """A pair's structure, from tensors of these shapes and dtypes; what they hold is not what the pair was made for."""
    errors = []
    for value in FILLED_WITH:
        batch = [torch.full(tuple(shape), value, dtype=getattr(torch, dtype)) for shape, dtype in like]
        try:
            with pyro.validation_enabled(False):
                return structure(pair, *batch, plate=plate)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


# What an edited file may hold ----------------------------------------------------------------------------------------


def _checked_state(state: dict[str, Any], file: str) -> History:
    """The history, once all of the state is what `load` takes."""
    _check_types(state, _STATE, file)
    for name in ("step", "epoch"):
        _check(state[name] >= 0, file, name, state[name], "at least 0")
    best = state["best"]
    is_best = len(best) == 2 and type(best[0]) in (int, type(None)) and type(best[1]) in (float, int)
    _check(is_best, file, "best", best, "an epoch or none, and its loss")
    try:
        return History(state["history"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} has history: {_short(state['history'])}, no rows of numbers ({error}); {FIX}"
        ) from error


def _check_config(config: dict[str, Any], file: str) -> None:
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


def _built(description: dict[str, Any], file: str) -> Any:
    try:
        return build(description)
    except Exception as error:  # whatever constructors say of arguments that nobody gave, or of too little memory
        raise ValueError(f"{file} has a pair that can't be made ({_short(error, 200)}); {FIX}") from error


def _check_types(values: dict[str, Any], wanted: dict[str, tuple[type, ...]], file: str) -> None:
    for name, kinds in wanted.items():
        if name not in values:
            raise ValueError(f"{file} has no {name}; {FIX}")
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        _check(type(values[name]) in kinds, file, name, values[name], names)  # a bool is no int here


def _check(is_right: bool, file: str, name: str, value: Any, wanted: str) -> None:
    if not is_right:
        raise ValueError(f"{file} has {name}: {_short(repr(value))}, wanted {wanted}; {FIX}")


def _short(value: Any, limit: int = 60) -> str:
    return " ".join(str(value).split())[:limit]
