"""A pair made ready for training: on its device, its structure known, and the data checked against it."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrovae.data import Data, Split, Stream, match
from pyrovae.data.sparse import SparseRows
from pyrovae.models.base import (
    Functions,
    PairLike,
    Structure,
    evaluation_mode,
    isolated_random_state,
    structure,
)
from pyrovae.models.batches import check_rows
from pyrovae.objectives import Objective
from pyrovae.training.step import Step

__all__ = ["check_batches", "check_support", "first_rows_hash", "moved", "prepare", "splits"]


def prepare(
    pair: PairLike,
    train: Split | Stream,
    batch_size: int,
    plate: str | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[Structure, tuple[Tensor, ...]]:
    """The pair on its device, its structure, and the batch that it was found on."""
    with moved(pair, device, dtype):
        if isinstance(pair.guide, AutoGuide) and pair.guide.create_plates is None and len(train) > batch_size:
            _check_autoguide(pair, train, batch_size, plate)
        known, batch = _first_run(pair, train, batch_size, plate)
    for parameter in known.parameters.values():
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    if not any(parameter.requires_grad for parameter in known.parameters.values()):
        raise ValueError(
            "the pair has no parameters, so there is nothing to fit; register modules with pyro.module, use "
            "pyro.param, or derive the pair from pyrovae.Pair"
        )
    if known.global_latent and _mini_batches(known, train, batch) and not known.subsampled:
        raise ValueError(
            f"latent sites {list(known.global_latent)} lie outside the plate {known.plate!r}, which has size "
            f"{known.size} for {len(train)} data; write pyro.plate({known.plate!r}, {len(train)}, "
            f"subsample=torch.arange(len(x))), or pass batch_size={len(train)}"
        )
    if known.subsampled and known.rows == len(batch[0]) and known.size < len(train):
        raise ValueError(
            f"the plate {known.plate!r} has size {known.size}, fewer than the {len(train)} data; pass "
            f"data_size={len(train)} to the constructor, or write pyro.plate({known.plate!r}, {len(train)}, ...)"
        )
    return known, batch


@contextlib.contextmanager
def moved(pair: PairLike, device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """The pair's modules on a device and in a dtype, those that plain functions call as they run."""

    def move(module: nn.Module, _: Any = None) -> None:
        module.to(device=device, dtype=dtype)

    for part in pair if isinstance(pair, tuple) else [pair]:
        if isinstance(part, nn.Module):
            move(part)
    hook = register_module_forward_pre_hook(move)
    try:
        yield
    finally:
        hook.remove()


def _first_run(
    pair: PairLike, train: Split | Stream, batch_size: int, plate: str | None
) -> tuple[Structure, tuple[Tensor, ...]]:
    """The structure, found on a batch, or on all rows for a model that draws its own rows among all of them."""
    batch = next(train.sequential(batch_size))
    check_rows(pair, batch, "data")  # before it runs on them, which would say less
    try:
        return structure(pair, *batch, plate=plate), batch
    except ValueError:
        if batch_size == len(train) or not isinstance(train, Split):
            raise
        batch = next(train.sequential(len(train)))
        with contextlib.suppress(ValueError):
            known = structure(pair, *batch, plate=plate)
            if known.subsampled:
                return known, batch
        raise


def _mini_batches(known: Structure, train: Split | Stream, batch: tuple[Tensor, ...]) -> bool:
    return known.rows == len(batch[0]) < len(train)


def _check_autoguide(pair: PairLike, train: Split | Stream, batch_size: int, plate: str | None) -> None:
    """Refuse parameters for each row with mini-batches, before the guide makes them for the rows of the first one.

    With `create_plates=` it makes them for all rows, and knows which ones it is given.
    """
    prior = poutine.block(pair.model, hide_fn=lambda site: site.get("is_observed"))
    known, batch = _first_run(Functions(pair.model, prior), train, batch_size, plate)
    guided = set(known.latent) - set(known.global_latent) - set(known.enumerated)
    if _mini_batches(known, train, batch) and guided:
        raise ValueError(
            f"{type(pair.guide).__name__} has parameters of its own for each row, but batch_size is {batch_size} of "
            f"{len(train)} rows; write a guide that computes them from the data (amortisation), or pass batch_size="
            f"{len(train)}"
        )


def splits(data: Any, pair: PairLike, validation: Any) -> tuple[Split | Stream, Split | Stream | None]:
    """What to train on and what to validate on, as the model's arguments."""
    if isinstance(data, Data) and data.levels is not None and getattr(pair, "continuous", False):
        raise ValueError(
            f"x of {data.name or 'data'} takes {data.levels} values, on which the density of {type(pair).__name__} has "
            f"no bound; pass Data of splits with transform=pyrovae.data.dequantize({data.levels}) and levels=None"
        )
    train = match(data, pair.model)
    if validation is None:
        validation = data.validation if isinstance(data, Data) else None
    if validation is None or validation is False:
        return train, None
    if isinstance(validation, float):
        if not 0 < validation < 1 or not isinstance(train, Split):
            raise ValueError(
                f"validation is {validation}, a fraction between 0 and 1 of rows in memory is wanted; "
                "pass validation=0.1, or the data to validate on"
            )
        left, held = train.divided(validation, torch.Generator().manual_seed(0))
        return left, held.fixed(0)
    held_out = match(validation, pair.model)
    if held_out.event_shape != train.event_shape:
        raise ValueError(
            f"validation has event shape {held_out.event_shape}, the training data {train.event_shape}; pass one shape"
        )
    return train, held_out.fixed(0) if isinstance(held_out, Split) else held_out


def first_rows_hash(data: Split | Stream) -> str | None:
    """Of what is in memory, before its transform; other data of as many rows are told apart by it."""
    if not isinstance(data, Split):
        return None
    found = hashlib.sha256()
    for name in data.names:
        rows = data.tensors[name][:32]
        rows = rows.to_dense() if isinstance(rows, SparseRows) else rows
        found.update(rows.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_batches(step: Step, train: Split | Stream, held_out: Split | Stream | None, batch_size: int) -> None:
    """The smaller batches that come after the first epoch, or at its end, are such that the pair can run on them.

    Raises:
        ValueError: for a pair that fails on a last batch of one row, or on what it is validated on.
    """
    pair, known, objective = step.pair, step.known, step.objective
    if len(train) % batch_size == 1 and len(train) > 1:
        why = f"the last batch of an epoch has one row, of {len(train)} rows in batches of {batch_size}"
        _tried(
            step, next(train.sequential(1)), why, f"pass another batch_size, such as {_divided(len(train), batch_size)}"
        )
    if held_out is not None:
        batch = next(held_out.sequential(batch_size))
        why = f"after each epoch the pair is validated, in batches of {len(batch[0])} rows at first"
        validated = Step(pair, objective.for_validation() if isinstance(objective, Objective) else objective, known)
        with evaluation_mode(pair, *known.modules), torch.no_grad():
            _tried(validated, batch, why, "pass validation=False, or a pair that takes any rows")


def _divided(rows: int, batch_size: int) -> int:
    """The next smaller size of batches whose last one has more rows than one."""
    return next(size for size in range(batch_size - 1, 0, -1) if rows % size != 1)


def _tried(step: Step, batch: tuple[Tensor, ...], why: str, fix: str) -> None:
    buffers = {name: buffer.clone() for name, buffer in step.known.buffers.items()}
    try:
        with isolated_random_state(0), pyro.validation_enabled(False):
            step(*batch)
    except Exception as error:
        raise ValueError(f"{why}, at which it fails ({str(error).splitlines()[0][:200]}); {fix}") from error
    finally:
        with torch.no_grad():  # a critic's parameters are among them
            for name, value in buffers.items():
                step.known.buffers[name].copy_(value)


def check_support(pair: PairLike, known: Structure, data: Split | Stream, argument: str) -> None:
    """Every observed value is one that its likelihood can give, and `check_batch` and `check_size` agree, if any."""
    own_size = getattr(pair, "check_size", None)
    if callable(own_size) and argument == "data":  # what is validated on may be less
        own_size(len(data))
    at_once = max(1, min(8192, 2**24 // max(1, math.prod(data.event_shape))))  # sparse rows are made dense for it
    batches = data.sequential(at_once) if isinstance(data, Split) else [next(data.sequential(256))]
    seen = 0
    for batch in batches:
        for site, (position, support) in known.supports.items():
            value = batch[position]
            try:
                valid = support.check(value).reshape(len(value), -1).all(1)
            except (NotImplementedError, RuntimeError):  # supports that depend on parameters, or on other rows
                continue
            if not valid.all():
                row = int((~valid).nonzero()[0])
                low, high = value[row].min().item(), value[row].max().item()
                raise ValueError(
                    f"{data.names[position]} of {argument} has values that site {site!r} cannot give: row "
                    f"{seen + row} lies in [{low:g}, {high:g}], wanted is {_support_name(support)}; scale or binarise "
                    "the data, or choose another likelihood"
                )
        check_rows(pair, batch, argument, seen)
        seen += len(batch[0])


def _support_name(support: Any) -> str:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return {"Boolean()": "0 or 1", "_Boolean()": "0 or 1"}.get(str(support), str(support))
