"""A pair and the batches it is run on: whether it takes them, where they have to be, and the plate of their rows."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.models.base import PairLike, structure

__all__ = ["check_rows", "data_plate", "home", "placed"]


def data_plate(x: Tensor, size: int | None) -> Any:
    """The plate "data" of the rows x, which are a part of `size` data, or by default all of them."""
    if size is None:
        return pyro.plate("data", len(x))
    return pyro.plate("data", size, subsample=torch.arange(len(x), device=x.device))


def check_rows(pair: Any, batch: tuple[Any, ...], argument: str, start: int = 0) -> None:
    """Have a pair refuse what is no batch of its own, by its `check_batch`, if it has one.

    Args:
        pair: any.
        batch: rows of the data from number `start` on.
        argument: what the data are called.

    Raises:
        ValueError: what `check_batch` says, and of which data.
    """
    own = getattr(pair, "check_batch", None)
    if callable(own):
        try:
            own(*batch)
        except ValueError as error:
            raise ValueError(f"{argument}{f', rows from {start} on' if start else ''}: {error}") from None


def home(
    pair: PairLike, batch: tuple[Tensor, ...], plate: str | None = None
) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and dtype that the pair's parameters have in common."""
    owners = [getattr(part, "__self__", part) for part in (pair if isinstance(pair, tuple) else [pair])]
    inner = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
    modules = [module for module in [*owners, *inner] if isinstance(module, nn.Module)]
    tensors = [tensor for module in modules for tensor in module.parameters()]
    if not tensors:
        return _home_in_store(pair, batch, plate)
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return _only({tensor.device for tensor in tensors}), _only(dtypes)


def _home_in_store(
    pair: PairLike, batch: tuple[Tensor, ...], plate: str | None
) -> tuple[torch.device | None, torch.dtype | None]:
    """The same of parameters in Pyro's store, which may be another program's: their dtype if the batch's own fails."""
    tensors = [tensor for _, tensor in pyro.get_param_store().named_parameters()]
    device = _only({tensor.device for tensor in tensors if tensor.device.type != "cpu"})
    held = _only({tensor.dtype for tensor in tensors if tensor.is_floating_point()})
    if held in (None, *(tensor.dtype for tensor in batch)):
        return device, None
    for dtype in (None, held):
        with contextlib.suppress(ValueError):
            structure(pair, *placed(batch, device, dtype), plate=plate)
            return device, dtype
    return device, None


def placed(batch: tuple[Tensor, ...], device: torch.device | None, dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    """A batch on a device, numbers that are no integers in a dtype."""
    return tuple(tensor.to(device, dtype if tensor.is_floating_point() else None) for tensor in batch)


def _only(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else None
