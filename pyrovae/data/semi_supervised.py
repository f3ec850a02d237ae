"""Data of which few rows have a label: -1 stands for an unknown one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.rows import Data, Index, Split, Stream
from pyrovae.data.seeds import LABELS, seeded_generator

__all__ = ["UNKNOWN", "PartlyLabelled", "hide_labels"]

UNKNOWN = -1


class PartlyLabelled(Split):
    """Rows with and without labels, in whose epochs every batch has its share of labelled rows, to one.

    Both kinds are permuted on their own, from (seed, epoch), and spread evenly: of U unlabelled and L labelled rows a
    batch of B has B L / (U + L) labelled ones, rounded up or down, so that no step is without a label where others have
    many. Labelled rows may recur: an epoch has each `times` times, and each unlabelled one once.

    Args:
        tensors: as for `Split`, with int64 labels, -1 where unknown, called `label`.
        transform: as for `Split`.
        times: how often a labelled row comes in an epoch; it is held so often, and `divided` holds out all its copies.
        label: name of the labels.

    Raises:
        ValueError: for labels that are no whole numbers from -1 on, or none at all that is known.

    >>> split = PartlyLabelled({"x": torch.zeros(6, 2), "y": torch.tensor([1, -1, -1, 0, -1, -1])})
    >>> [int((y >= 0).sum()) for x, y in split.batches(3, seed=0, epoch=0)]
    [1, 1]
    """

    def __init__(self, tensors: Mapping[str, Any], *, transform: Any = None, times: int = 1, label: str = "y") -> None:
        super().__init__(tensors, transform=transform)
        if label not in self.tensors:
            raise ValueError(f"the data have {', '.join(self.fields)} and no {label!r}; pass label=")
        y = _labels(self.tensors[label], label)
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise ValueError(f"times is {times!r}, a whole number of at least 1 is wanted; pass times=1")
        if not (y >= 0).any():
            raise ValueError(f"{label} has no label but -1, none is known; keep some, see pyrovae.data.hide_labels")
        self.label = label
        self._copied = torch.arange(len(y), device="cpu")  # which of the given rows each row is a copy of
        if times > 1:
            again = (y >= 0).nonzero()[:, 0].repeat(times - 1)
            index = torch.cat([torch.arange(len(y), device=y.device), again])
            self.tensors = {name: tensor[index] for name, tensor in self.tensors.items()}
            self._copied = index.cpu()

    def subset(self, index: Index) -> Self:
        """The split of the rows at `index`, which may all be of one kind."""
        split = super().subset(index)
        split._copied = self._copied[self._numbers(index).cpu()]
        return split

    def divided(self, fraction: float, generator: torch.Generator | None = None) -> tuple[Self, Self]:
        """As of any split, but copies of a row are on one side, held out once; each class keeps a label in training.

        Raises:
            ValueError: for a fraction that would take the last labelled row of a class.
        """
        _, first = np.unique(self._copied.numpy(), return_index=True)
        once = torch.from_numpy(np.sort(first))
        order = once[torch.randperm(len(once), generator=generator, device="cpu")]
        last = self._last_of_each_class(order)
        free, count = order[~torch.isin(order, last)], max(1, round(fraction * len(once)))
        if count > len(free):
            raise ValueError(
                f"{count} of {len(once)} rows are to be held out, but {len(last)} are the last labelled ones of their "
                "class; pass validation=0.1, say"
            )
        held = free[:count]
        again = ~torch.isin(self._copied, self._copied[held])
        again[once] = False
        left = order[~torch.isin(order, held)]
        return self.subset(torch.cat([left, again.nonzero()[:, 0]])), self.subset(held)

    def _last_of_each_class(self, order: Tensor) -> Tensor:
        """The labelled row of each class that comes last in an order of rows."""
        y = self.tensors[self.label].cpu()
        labelled = order[y[order] >= 0].flip(0)
        _, first = np.unique(y[labelled].numpy(), return_index=True)
        return labelled[torch.from_numpy(first)]

    def _order(self, generator: torch.Generator) -> Tensor:
        order = super()._order(generator)
        known = self.tensors[self.label][order] >= 0
        # The rank of each row among those of its kind, a place in (0, 1): sorted by it, both are spread evenly.
        place = torch.where(known, (known.cumsum(0) - 0.5) / known.sum(), ((~known).cumsum(0) - 0.5) / (~known).sum())
        return order[place.argsort(stable=True)]


def hide_labels(data: Data, num_labels: int, *, seed: int = 0, times: int = 1, label: str = "y") -> Data:
    """The data with the labels of all but a few training rows hidden, as many of each class.

    Rows are drawn from `seed` in each class on its own; where the classes do not divide `num_labels`, the first ones
    have one more. Validation and test rows keep their labels.

    Args:
        data: with labels 0, 1, ... of the training rows, called `label`.
        num_labels: how many training rows keep theirs.
        seed: which ones.
        times: how often these come in an epoch, see `PartlyLabelled`.
        label: name of the labels.

    Returns:
        Data whose training split is `PartlyLabelled`, the hidden labels -1.

    Raises:
        TypeError: for training rows that are not in memory.
        ValueError: for data without labels, fewer labels than classes, or more than a class has rows.

    >>> import pyrovae
    >>> few = hide_labels(pyrovae.data.load("digits"), 50)
    >>> few.train["y"][few.train["y"] >= 0].bincount()
    tensor([5, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    """
    train = data.train if isinstance(data, Data) else None
    if train is None or isinstance(train, Stream):
        raise TypeError(
            f"data is {type(data).__name__}, Data with rows in memory is wanted; pass pyrovae.data.Data(...)"
        )
    if label not in train.fields:
        raise ValueError(f"the data have {', '.join(train.fields)} and no {label!r}; pass label= with the labels' name")
    y = _labels(train[label], label)
    (rows,) = torch.where(y >= 0)
    classes, counts = y[rows].unique(return_counts=True)
    if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < max(1, len(classes)):
        raise ValueError(
            f"num_labels is {num_labels!r} for {len(classes)} classes, each needs one at least; "
            f"pass num_labels={10 * max(1, len(classes))}, say"
        )
    generator = seeded_generator("cpu", seed, LABELS)
    kept = []
    for number, (value, count) in enumerate(zip(classes.tolist(), counts.tolist(), strict=True)):
        wanted = num_labels // len(classes) + (number < num_labels % len(classes))
        if wanted > count:
            raise ValueError(
                f"num_labels is {num_labels}, {wanted} of each class, but class {value} has {count} labelled; pass "
                f"num_labels={len(classes) * int(counts.min())} at most"
            )
        of_class = torch.where(y.cpu() == value)[0]
        kept.append(of_class[torch.randperm(count, generator=generator)[:wanted]])
    chosen = torch.cat(kept).to(y.device)
    hidden = torch.full_like(y, UNKNOWN).index_copy(0, chosen, y[chosen])
    tensors = {**train.tensors, label: hidden}
    split = PartlyLabelled(tensors, transform=train.transform, times=times, label=label)
    return dataclasses.replace(data, train=split.select(*train.names))


def _labels(y: Any, label: str) -> Tensor:
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point() or y.dtype == torch.bool:
        kind = f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y)
        raise ValueError(f"{label} is {kind}, labels are int64 of shape (N,); pass y.long()")
    if (y < UNKNOWN).any():
        row = int((y < UNKNOWN).nonzero()[0, 0])
        raise ValueError(f"{label} has label {int(y[row])} in row {row}; number the classes from 0, -1 is for unknown")
    return y
