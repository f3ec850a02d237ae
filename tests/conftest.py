"""Settings of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_param_store():
    """Each test has Pyro's param store to itself."""
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def data_root() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    root = Path(os.environ.get("PYROVAE_DATA", ""))
    if not root.is_dir() or not os.environ.get("PYROVAE_DATA"):
        pytest.skip("PYROVAE_DATA names no folder of data sets")
    return root


@pytest.fixture
def untouched() -> Iterator[None]:
    """Fails the test if it moved torch's or NumPy's global generator."""
    before, legacy = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
