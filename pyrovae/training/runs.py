"""A run's folder, read back."""

from __future__ import annotations

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
from pyrovae.training.kept import FIX, check_config, checked_state, short
from pyrovae.training.loop import Run
from pyrovae.training.precision import default_dtype
from pyrovae.training.preparation import moved
from pyrovae.training.step import OBJECTIVE

__all__ = ["load"]

CRITIC = f"{OBJECTIVE}critic."
FILLED_WITH = (0, 1)  # what stands for data; logarithms, shares and lengths want some that are above 0


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
    history = checked_state(state, f"{path / checkpoint.STATE}")
    check_config(config, f"{path / checkpoint.CONFIG}")
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
    dtype = next((tensor.dtype for tensor in values.values() if tensor.is_floating_point()), None)
    try:
        with default_dtype(dtype if config.get("precision") else None), moved(pair, torch.device("cpu"), dtype):
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


def _built(description: dict[str, Any], file: str) -> Any:
    try:
        return build(description)
    except Exception as error:  # whatever constructors say of arguments that nobody gave, or of too little memory
        raise ValueError(f"{file} has a pair that can't be made ({short(error, 200)}); {FIX}") from error
