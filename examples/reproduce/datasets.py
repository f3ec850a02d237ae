"""Data of the papers that `pyrovae.data.load` does not know."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from pyrovae.data import Data, Split


def folder(root: str | None, name: str) -> Path:
    """One of the folder of all data.

    Raises:
        FileNotFoundError: if it is not there.
    """
    path = Path(root or os.environ.get("PYROVAE_DATA", "data")) / name
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there; pass --root, the folder that holds {name}")
    return path


def static_mnist(root: str | None) -> Data:
    """MNIST binarised once for all (Larochelle), 50,000 / 10,000 / 10,000 rows.

    It is read from `binarized_mnist/binarized_mnist.npz`: arrays train, valid and test of 784 bits, packed in rows.
    """
    with np.load(folder(root, "binarized_mnist") / "binarized_mnist.npz", allow_pickle=False) as packed:
        parts = [
            Split({"x": torch.from_numpy(np.unpackbits(packed[part], axis=1)).float().unflatten(1, (1, 28, 28))})
            for part in ("train", "valid", "test")
        ]
    return Data(*parts, name="static MNIST", levels=2)
