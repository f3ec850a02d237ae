"""Random streams of their own: one for each use of a seed, none of them torch's or NumPy's global one."""

import numpy as np
import torch

__all__ = ["BITS", "CRITIC", "DRAWS", "LABELS", "ORDER", "PROCESS", "SPLIT", "derived_seed", "seeded_generator"]

# What a seed is used for: each use has a stream of its own.
ORDER, SPLIT, BITS, PROCESS, CRITIC, LABELS, DRAWS = range(7)


def derived_seed(seed: int, *use: int) -> int:
    """A seed of 64 bits for one use of `seed`: by the number of the use, then whatever tells its draws apart."""
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}, an integer of at least 0 is wanted; pass seed=0")
    return int(np.random.SeedSequence(seed, spawn_key=use).generate_state(1, np.uint64)[0])


def seeded_generator(device: torch.device | str, seed: int, *use: int) -> torch.Generator:
    """A generator on `device`, seeded for one use of `seed` as in `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, *use))
