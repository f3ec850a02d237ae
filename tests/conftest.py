"""Settings of all tests."""

import os
from pathlib import Path

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
