"""Training, validation and test rows of data that have not all of them."""

from typing import Any

import torch

from pyrovae.data.readers import Parts
from pyrovae.data.rows import Split
from pyrovae.data.seeds import SPLIT, seeded_generator

__all__ = ["hold_out"]


def hold_out(
    name: str, parts: Parts, asked: dict[str, int | float | None], last: int | None, seed: int
) -> dict[str, Any]:
    """The splits of what was read: its own, and rows of the training data where it has none.

    Args:
        name: of the data, for messages.
        parts: what was read.
        asked: rows to hold out for validation and test, see `load`.
        last: hold out the last rows, so many by default; None: rows drawn from `seed`.
        seed: of those.
    """
    train = Split(parts["train"])
    defaults = {"validation": 0.1 if last is None else last, "test": 0.1}
    counts = []
    for part, value in asked.items():
        if isinstance(value, bool):
            raise ValueError(f"{part} is {value}, a number of rows or their fraction is wanted; pass {part}=0.1, say")
        if part in parts and value is not None:
            raise ValueError(f"{part} is {value}, but {name} has {part} rows of its own; leave {part}=None")
        size = value if value is not None else 0 if part in parts else defaults[part]
        counts.append(round(size * len(train)) if isinstance(size, float) else size)
        if not 0 <= counts[-1] < len(train):
            raise ValueError(f"{part} is {size} of the {len(train)} rows of {name}; pass fewer, or a fraction below 1")
    left = len(train) - sum(counts)
    if left < 1:
        raise ValueError(f"validation and test take all {len(train)} rows of {name}; pass validation= or test= smaller")
    generator = seeded_generator("cpu", seed, SPLIT)
    order = torch.arange(len(train)) if last else torch.randperm(len(train), generator=generator)
    splits = {"train": train.subset(order[:left])}
    for part, rows in zip(asked, order[left:].split(counts), strict=True):
        if part in parts or len(rows):
            splits[part] = Split(parts[part]) if part in parts else train.subset(rows)
    return splits
