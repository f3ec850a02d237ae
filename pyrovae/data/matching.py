"""Data matched to a model's parameters: by name where the data have names, else by position."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from pyrovae.data.rows import Data, Split, Stream, first_item, item_width
from pyrovae.data.sparse import is_sparse

__all__ = ["match"]


def match(data: Any, function: Callable[..., Any]) -> Split | Stream:
    """The data as a model takes them: one tensor for each positional parameter.

    A `Split`, `Stream`, `Data` (its train split), dict or Dataset of dicts is matched by name, and what the function
    does not take is left out. Tensors, arrays, tuples of them and other Datasets are matched by position. ``*args``
    takes the rest.

    Args:
        data: Split, Stream, Data, dict, tensor (N, ...), array, sparse matrix, tuple or list of these, or torch
            Dataset.
        function: a model: function, bound method or module.

    Returns:
        Split or Stream with batches that are the function's arguments.

    Raises:
        TypeError: for other data.
        ValueError: for a required parameter that the data lack, or more tensors than parameters.

    >>> match({"y": np.arange(3), "x": np.eye(3)}, lambda x: None).names
    ('x',)
    """
    if isinstance(data, Data):
        data = data.train
    elif isinstance(data, Mapping):
        data = Split(data)
    elif isinstance(data, Dataset) and not isinstance(data, TensorDataset):
        item = first_item(data)
        data = Stream(data, None if isinstance(item, Mapping) else _by_position(function, item_width(item)))
    elif not isinstance(data, Split | Stream):
        data = data.tensors if isinstance(data, TensorDataset) else data
        items = data if isinstance(data, tuple | list) else [data]
        known = [isinstance(item, Tensor | np.ndarray) or is_sparse(item) for item in items]
        if wrong := [type(item).__name__ for item, is_known in zip(items, known, strict=True) if not is_known]:
            raise TypeError(f"data hold a {wrong[0]}, tensors or arrays are wanted; convert it, or call load first")
        data = Split(dict(zip(_by_position(function, len(items)), items, strict=True)))
    return data.select(*_by_name(function, data.names))


def _parameters(function: Callable[..., Any]) -> tuple[str, list[inspect.Parameter], str | None]:
    """The function's name, its positional parameters, and the name of its ``*args``."""
    function = function.forward if isinstance(function, nn.Module) else function
    if not callable(function):
        raise TypeError(f"function is a {type(function).__name__}, a model to call is wanted; pass pair.model")
    label = getattr(function, "__name__", type(function).__name__)
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise ValueError(f"{label} wants {parameter.name!r} by keyword, batches are positional; give it a default")
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return label, positional, next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)


def _by_name(function: Callable[..., Any], names: Sequence[str]) -> list[str]:
    label, positional, rest = _parameters(function)
    chosen: list[str] = []
    have, gap = ", ".join(names), None
    for parameter in positional:
        if parameter.name in names and gap is None:
            chosen.append(parameter.name)
        elif parameter.name in names:
            fix = f"add {gap!r}, or leave {parameter.name!r} out with select"
            raise ValueError(f"{label} takes {gap!r} before {parameter.name!r}, the data have only {have}; {fix}")
        elif parameter.default is parameter.empty:
            raise ValueError(f"{label} wants {parameter.name!r}, the data have {have}; rename one of them")
        else:
            gap = gap or parameter.name
    if rest and gap is None:
        chosen += [name for name in names if name not in chosen]
    if not chosen:
        raise ValueError(f"{label} takes none of the data's {have}; rename one of them")
    return chosen


def _by_position(function: Callable[..., Any], count: int) -> list[str]:
    label, positional, rest = _parameters(function)
    required = sum(parameter.default is parameter.empty for parameter in positional)
    if count < max(required, 1) or (count > len(positional) and rest is None):
        takes = ", ".join([parameter.name for parameter in positional] + ([f"*{rest}"] if rest else []))
        raise ValueError(f"{label} takes ({takes}), the data are {count} tensors; pass as many, or name them in a dict")
    names = [parameter.name for parameter in positional[:count]]
    return names + [f"{rest}{number}" for number in range(count - len(names))]
