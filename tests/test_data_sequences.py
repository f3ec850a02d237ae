"""Sequences of different lengths from memory and from files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrovae.data import load_sequences, padded


def test_padding_keeps_values_and_lengths():
    sequences = [torch.ones(2, 3), 2 * torch.ones(1, 3)]
    made = padded(sequences, 4)
    assert made["x"].shape == (2, 4, 3)
    assert made["lengths"].tolist() == [2, 1]
    assert torch.equal(made["x"].sum((1, 2)), torch.tensor([6.0, 6.0]))
    assert torch.equal(made["x"][1, 0], torch.full((3,), 2.0))


def test_padding_takes_the_dtype_that_holds_all():
    made = padded([[1, 2, 3], [0.5, 0.7]])["x"]
    assert torch.equal(made, torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.7, 0.0]]))
    half = [torch.ones(2, dtype=torch.float16), torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool)]
    assert padded(half)["x"].dtype == torch.float64
    assert padded(half[2:])["x"].dtype == torch.bool


@pytest.mark.parametrize(
    ("sequences", "duration", "message"),
    [
        ([], None, "sequences are 0"),
        ([np.ones((2, 1)), np.ones((0, 1))], None, "1 without steps, the first in row 1"),
        ([np.ones((2, 1)), np.ones((1, 2))], None, "steps of shapes"),
        ([np.ones((2, 1))], 1, "the longest sequence has 2"),
    ],
)
def test_what_can_not_be_padded_is_said(sequences, duration, message):
    with pytest.raises(ValueError, match=message):
        padded(sequences, duration)


def test_files_hold_parts_and_their_lengths(tmp_path):
    file = tmp_path / "s.npz"
    steps = np.arange(10, dtype=np.uint8).reshape(5, 2)
    np.savez(file, train=steps, train_lengths=[3, 2], test=steps[:4], test_lengths=[4])
    data = load_sequences(file)
    assert data.event_shape == (4, 2)
    assert data.validation is None
    assert data.train["lengths"].tolist() == [3, 2]
    assert data.train["x"][1].tolist() == [[6, 7], [8, 9], [0, 0], [0, 0]]
    np.savez(file, train=steps, train_lengths=[3, 1])
    with pytest.raises(ValueError, match="5 steps in train and 4 in train_lengths"):
        load_sequences(file)
    np.savez(file, x=steps)
    with pytest.raises(ValueError, match="no train and train_lengths"):
        load_sequences(file)
    with pytest.raises(FileNotFoundError):
        load_sequences(tmp_path / "none.npz")


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "s.npz"
    np.savez(file, train=np.ones((5, 2)), train_lengths=[3, 2])
    whole = file.read_bytes()
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"s\.npz is truncated or damaged"):
            load_sequences(file)
    np.save(tmp_path / "s.npy", np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"s\.npy has x, and no train and train_lengths"):
        load_sequences(tmp_path / "s.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_lengths": [3.0, 2.0]}, r"train_lengths of float64 and shape \(2,\), whole numbers \(N,\) are wanted"),
        ({"train_lengths": [[3, 2]]}, r"train_lengths of int64 and shape \(1, 2\), whole"),
        ({"train_lengths": 5}, r"train_lengths of int64 and shape \(\), whole"),
        ({"train_lengths": ["3", "2"]}, r"train_lengths of <U1 and shape"),
        ({"train_lengths": [7, -2]}, r"a length of -2 in row 1 of train_lengths, at least 1 is wanted"),
        ({"train_lengths": [5, 0]}, r"a length of 0 in row 1 of train_lengths"),
        (
            {"train_lengths": np.array([], int), "train": np.ones((0, 2))},
            r"train_lengths of int64 and shape \(0,\), whole",
        ),
        ({"test": np.ones((4, 2))}, r"test and no test_lengths; save"),
        ({"train": np.array(["a"] * 5)}, r"train of <U1 and shape \(5,\), numbers \(steps, ...\) are wanted; convert"),
        ({"train": 5.0}, r"train of float64 and shape \(\), numbers"),
        ({"train": np.ones(5) + 1j}, r"train of complex128 and shape"),
    ],
)
def test_lengths_and_steps_of_another_kind_are_refused_by_file(arrays, message, tmp_path):
    np.savez(tmp_path / "s.npz", **{"train": np.ones((5, 2)), "train_lengths": [3, 2], **arrays})
    with pytest.raises(ValueError, match=r"s\.npz has " + message):
        load_sequences(tmp_path / "s.npz")


@pytest.mark.data
@pytest.mark.skipif("PYROVAE_DATA" not in os.environ, reason="PYROVAE_DATA is not set")
def test_chorales():
    file = Path(os.environ["PYROVAE_DATA"]) / "jsb_chorales" / "jsb_chorales.npz"
    if not file.exists():
        pytest.skip("no chorales")
    data = load_sequences(file)
    assert [len(split) for split in data.splits.values()] == [229, 76, 77]
    assert int(data.test["lengths"].sum()) == 4725
    assert data.levels == 2
