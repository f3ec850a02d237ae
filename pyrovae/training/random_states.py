"""States of the random number generators, as tensors."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.training.plain_values import decode, dump, encode, load

__all__ = ["random_state", "remembered", "set_random_state"]


def remembered() -> Callable[[], None]:
    """A function that puts every generator back to where it is now: the quick form, for this process only."""
    cpu, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for device, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, device)

    return restore


def random_state() -> dict[str, Tensor]:
    """States of torch's generators ("cpu", and "cuda:0", ... once CUDA is in use), Python's and numpy's global ones.

    Python's and numpy's are here because `pyro.set_rng_seed` seeds them, so that a model may draw from them.

    Returns:
        A uint8 tensor on the CPU for each name.
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {f"cuda:{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    state: dict[str, Any] = dict(np.random.get_state(legacy=False))  # noqa: NPY002  (the global one is what is wanted)
    state["state"] = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in state["state"].items()}
    for name, value in (("python", random.getstate()), ("numpy", state)):
        states[name] = torch.tensor(list(dump({"state": encode(value, name, None)})), dtype=torch.uint8, device="cpu")
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    """Put generators back to what `random_state` returned; those that are not named are left alone.

    States of CUDA devices that this machine lacks are left out: another device draws other numbers anyway.

    Raises:
        ValueError: a name or a state is not one of `random_state`'s; no generator is changed then.
    """
    before = random_state()
    name = ""
    try:
        for name, state in states.items():
            _set_one(name, state)
    except Exception as error:  # torch, random and numpy each raise their own on a state that is none
        for known, state in before.items():
            _set_one(known, state)
        why = f"random state {name!r} is not a generator's state ({error})"
        raise ValueError(f"{why}; pass what random_state() returned, or leave {name!r} out") from error


def _set_one(name: str, state: Tensor) -> None:
    if name == "cpu":
        torch.set_rng_state(state)
    elif re.fullmatch(r"cuda:\d{1,4}", name):
        if torch.cuda.is_available() and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))
    elif name in ("python", "numpy"):
        value = decode(load(bytes(state.tolist()), name)["state"], {})
        if name == "python":
            random.setstate(value)
        else:
            np.random.set_state(value)  # noqa: NPY002  (the global one is what is wanted)
    else:
        raise ValueError("unknown name; wanted cpu, cuda:N, python or numpy")
