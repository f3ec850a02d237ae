"""Sequences of different lengths, padded to one, with their lengths beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.readers import contents
from pyrovae.data.rows import Data, Split

__all__ = ["load_sequences", "padded"]

PARTS = {"train": "train", "validation": "valid", "test": "test"}


def padded(sequences: Sequence[Any], duration: int | None = None) -> dict[str, Tensor]:
    r"""Sequences as one tensor x (N, T, \*step), zeros after the end of each, and their lengths (N,).

    Args:
        sequences: tensors or arrays (length, \*step).
        duration: T. Default: the longest length.

    Returns:
        x, of the dtype that holds all sequences, and lengths, by name, as `HMM` takes them.

    Raises:
        ValueError: for none, sequences without steps, steps of different shapes, or a duration that is too short.

    >>> padded([torch.ones(2, 3), torch.ones(1, 3)])["lengths"]
    tensor([2, 1])
    """
    tensors = [torch.as_tensor(sequence) for sequence in sequences]
    lengths = [len(tensor) if tensor.dim() else 0 for tensor in tensors]
    if not tensors or 0 in lengths:
        at = f", the first in row {lengths.index(0)}" if tensors else ""
        raise ValueError(f"sequences are {len(tensors)}, {lengths.count(0)} without steps{at}; pass those with some")
    if len(steps := {tuple(tensor.shape[1:]) for tensor in tensors}) > 1:
        raise ValueError(f"sequences have steps of shapes {sorted(steps)}, one is wanted; give one to all")
    longest = max(lengths)
    if duration is not None and duration < longest:
        raise ValueError(f"duration is {duration}, the longest sequence has {longest} steps; pass duration={longest}")
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    x = tensors[0].new_zeros(len(tensors), duration or longest, *tensors[0].shape[1:], dtype=dtype)
    for row, tensor in zip(x, tensors, strict=True):
        row[: len(tensor)] = tensor
    return {"x": x, "lengths": torch.tensor(lengths)}


def load_sequences(path: str | os.PathLike[str]) -> Data:
    r"""Sequences of a .npz file: x (T, \*step) padded to the longest of all parts, and lengths.

    The file has for each part, train and maybe valid and test, all its sequences one after the other, (steps, \*step),
    under the part's name, and their lengths under that name with _lengths. Whole numbers become floats.

    Args:
        path: of the file, such as this project's JSB chorales.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a damaged file or one without the arrays, or lengths that do not add up to the steps.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path.absolute()}; pass the path of an .npz file of sequences")
    content = contents(path)
    if not {"train", "train_lengths"} <= set(content):
        raise ValueError(f"{path} has {', '.join(content)}, and no train and train_lengths; save sequences under these")
    parts = {part: _sequences(path, content, key) for part, key in PARTS.items() if key in content}
    longest = max(len(sequence) for sequences in parts.values() for sequence in sequences)
    splits = {part: Split(padded(sequences, longest)) for part, sequences in parts.items()}
    x = splits["train"]["x"]
    levels = 2 if ((x == 0) | (x == 1)).all() else None
    return Data(splits["train"], splits.get("validation"), splits.get("test"), name=path.stem, levels=levels)


def _sequences(path: Path, content: dict[str, Any], key: str) -> list[np.ndarray]:
    """The sequences of one part."""
    if f"{key}_lengths" not in content:
        raise ValueError(f"{path} has {key} and no {key}_lengths; save the length of each sequence")
    steps, lengths = content[key], content[f"{key}_lengths"]
    if steps.dtype.kind not in "biuf" or steps.ndim == 0:
        raise ValueError(
            f"{path} has {key} of {steps.dtype} and shape {steps.shape}, numbers (steps, ...) are wanted; convert them"
        )
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or len(lengths) == 0:
        raise ValueError(
            f"{path} has {key}_lengths of {lengths.dtype} and shape {lengths.shape}, whole numbers (N,) are wanted; "
            "save the length of each sequence"
        )
    if (lengths < 1).any():
        row = int((lengths < 1).argmax())
        raise ValueError(
            f"{path} has a length of {lengths[row]} in row {row} of {key}_lengths, at least 1 is wanted; leave it out"
        )
    if lengths.sum() != len(steps):
        raise ValueError(
            f"{path} has {len(steps)} steps in {key} and {int(lengths.sum())} in {key}_lengths; save the length of "
            "each sequence"
        )
    return np.split(steps.astype(np.float32), lengths.cumsum()[:-1])
