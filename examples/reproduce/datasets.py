"""Data of the papers that `pyrovae.data.load` does not know."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

import pyrovae as pv
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


def all_rows(name: str, root: str | None) -> Data:
    """Training, validation and test rows of images together, grey."""
    data = pv.data.load(name, root=root, binarize=None)
    return Data(
        Split({key: torch.cat([split[key] for split in data.splits.values()]) for key in ("x", "y")}), name=name
    )


def wisdm(root: str | None) -> Data:
    """WISDM's 5,418 activity windows of a phone's accelerometer, 42 features that vary, standardised.

    Missing peaks take the mean of their feature, which is 0 after standardising.
    """
    with np.load(folder(root, "wisdm") / "wisdm_transformed.npz", allow_pickle=False) as arrays:
        x, y = arrays["features"].astype(np.float64), arrays["labels"].astype(np.int64)
    x = x[:, np.nanstd(x, 0) > 0]
    x = np.nan_to_num((x - np.nanmean(x, 0)) / np.nanstd(x, 0))
    return Data(Split({"x": torch.from_numpy(x).float(), "y": torch.from_numpy(y)}), name="wisdm")
