"""Sequences of different lengths, padded to one, with their lengths beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.rows import Data, Split

__all__ = ["load_sequences", "padded"]

PARTS = {"train": "train", "validation": "valid", "test": "test"}


def padded(sequences: Sequence[Any], duration: int | None = None) -> dict[str, Tensor]:
    r"""Sequences as one tensor x (N, T, \*step), zeros after the end of each, and their lengths (N,).

    Args:
        sequences: tensors or arrays (length, \*step).
        duration: T. Default: the longest length.

    Returns:
        x and lengths, by name, as `HMM` takes them.

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
    x = tensors[0].new_zeros(len(tensors), duration or longest, *tensors[0].shape[1:])
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
        ValueError: for a file without the arrays, or lengths that do not add up to the steps.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path.absolute()}; pass the path of an .npz file of sequences")
    with np.load(path, allow_pickle=False) as file:
        content = {key: file[key] for key in file.files}
    if not {"train", "train_lengths"} <= set(content):
        raise ValueError(f"{path} has {', '.join(content)}, and no train and train_lengths; save sequences under these")
    parts: dict[str, list[np.ndarray]] = {}
    for part, key in PARTS.items():
        if key in content:
            lengths = content.get(f"{key}_lengths", np.zeros(0, int))
            if lengths.sum() != len(content[key]):
                raise ValueError(
                    f"{path} has {len(content[key])} steps in {key} and {int(lengths.sum())} in {key}_lengths; save "
                    "the length of each sequence"
                )
            parts[part] = np.split(content[key].astype(np.float32), lengths.cumsum()[:-1])
    longest = max(len(sequence) for sequences in parts.values() for sequence in sequences)
    splits = {part: Split(padded(sequences, longest)) for part, sequences in parts.items()}
    x = splits["train"]["x"]
    levels = 2 if ((x == 0) | (x == 1)).all() else None
    return Data(splits["train"], splits.get("validation"), splits.get("test"), name=path.stem, levels=levels)
