"""Rows of named tensors, in memory (`Split`) or read as they are needed (`Stream`), and the splits of a data set."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pyrovae.data.seeds import BITS, ORDER, derived_seed, seeded_generator
from pyrovae.data.sparse import SparseRows, is_sparse
from pyrovae.data.transforms import Transform

__all__ = ["Data", "Rows", "Split", "Stream", "first_item", "item_width"]

Index = Tensor | np.ndarray | Sequence[int] | slice


class Rows(ABC):
    """What `Split` and `Stream` share: names, and the order of an epoch."""

    fields: tuple[str, ...]  # all tensors of a row
    names: tuple[str, ...]  # those that a batch holds, in order
    _main: str  # the one of which a datum is a row

    @property
    def _device(self) -> torch.device:
        """Where the order of an epoch is drawn."""
        return torch.device("cpu")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, indices: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]: ...

    def select(self, *names: str) -> Self:
        """The same rows with only these names, in this order; a transform still sees every tensor."""
        if unknown := [name for name in names if name not in self.fields]:
            raise ValueError(f"{', '.join(unknown)} is not in the data; select among {', '.join(self.fields)}")
        rows = copy.copy(self)
        rows.names = names
        return rows

    def batches(
        self, batch_size: int, *, seed: int, epoch: int, skip: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, in an order that depends on (seed, epoch) and the kind of device only; all at once in their own.

        Args:
            batch_size: rows per batch; the last batch may be smaller.
            seed: not negative.
            epoch: not negative; each has its own permutation, drawn on the device.
            skip: leave out that many batches from the start without computing them, to resume within an epoch.
            part: (k, n) for the k-th of n parts of each batch, n >= 1, 0 <= k < n: sizes differ by one at most.

        Returns:
            iterator over tuples of tensors (B, ...), in the order of `names`; () for a part without rows.

        Raises:
            ValueError: for a batch_size below 1 or above the number of rows.
        """
        _check_batch_size(batch_size)
        if batch_size > len(self):
            raise ValueError(f"batch_size is {batch_size} for {len(self)} rows; pass batch_size<={len(self)}")
        if epoch < 0 or skip < 0:
            raise ValueError(f"epoch is {epoch} and skip is {skip}, at least 0 is wanted; count from 0")
        generator = seeded_generator(self._device, seed, ORDER, epoch)
        order = self._order(generator)
        if batch_size == len(self):  # a guide may have parameters of its own for each row
            order = torch.arange(len(self), device=self._device)
        return self._parts(order.split(batch_size)[skip:], generator, part)

    def sequential(self, batch_size: int, *, part: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, ...]]:
        """All rows in their order, for evaluation, or a part of each batch as in `batches`.

        batch_size may exceed the number of rows.
        """
        _check_batch_size(batch_size)
        order = torch.arange(len(self), device=self._device)
        return self._parts(order.split(batch_size), seeded_generator(self._device, 0), part)

    def _order(self, generator: torch.Generator) -> Tensor:
        """The rows of an epoch, one after the other."""
        return torch.randperm(len(self), generator=generator, device=self._device)

    def _parts(
        self, indices: Sequence[Tensor], generator: torch.Generator, part: tuple[int, int]
    ) -> Iterator[tuple[Tensor, ...]]:
        number, count = part
        mine = [index.tensor_split(count)[number] for index in indices]
        filled = self._read([index for index in mine if len(index)], generator)
        return (next(filled) if len(index) else () for index in mine)


class Split(Rows):
    """Named tensors with one row per datum, and a transform for each batch taken from them.

    NumPy arrays become tensors: floats of the default dtype, integers int64. Where ``x`` is bool or uint8 it becomes
    floating, its values as they are; elsewhere uint8 is a label, bool a mask. If none is called x, it is the first; or
    where that has a number for each row, or is a mask of their shape, the first of floating numbers.
    A sparse matrix, scipy's or torch's, stays sparse (`SparseRows`, floating); batches of its rows are dense.

    Args:
        tensors: name -> tensor, array (N, ...) or sparse matrix (N, V), on one device.
        transform: called with the tensors (B, ...) of each batch by name, all of them even after `select`; returns them
            all, in the same shapes. It runs on the data's device and may draw from torch's global generator.

    Raises:
        TypeError: for tensors that are no mapping, or not of numbers.
        ValueError: for no tensors, no rows, lengths that differ, NaN or infinity.

    >>> split = Split({"x": np.eye(3), "y": np.arange(3)})
    >>> split
    Split(3 rows: x (3,) float32, y () int64)
    >>> split.rows([2, 0])
    (tensor([[0., 0., 1.],
            [1., 0., 0.]]), tensor([2, 0]))
    """

    def __init__(self, tensors: Mapping[str, Any], *, transform: Transform | None = None) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors is a {type(tensors).__name__}, a mapping is wanted; pass {{'x': tensors}}")
        if not tensors:
            raise ValueError("tensors is empty, at least one named tensor is wanted; pass {'x': ...}")
        self.fields = self.names = tuple(tensors)
        self.transform = transform
        self._main = main = _main(tensors, row_dims=1)
        self.tensors = {name: _tensor(name, value, name == main) for name, value in tensors.items()}
        for name, tensor in self.tensors.items():
            if tensor.ndim == 0 or len(tensor) == 0:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} and no rows; pass shape (N, ...) with N >= 1")
            if len(tensor) != len(self):
                raise ValueError(
                    f"{name} has {len(tensor)} rows, {main} has {len(self)}; pass one row per datum in each"
                )
            count, row = tensor.not_finite() if isinstance(tensor, SparseRows) else _not_finite(tensor)
            if count:
                raise ValueError(
                    f"{name} has {count} NaN or infinite values, the first in row {row}; drop or fill them, or pass "
                    "pyrovae.data.incomplete(x) for NaN to mean missing"
                )

    def __len__(self) -> int:
        return len(self.tensors[self._main])

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]

    def __repr__(self) -> str:
        shapes = (f"{k} {tuple(v.shape[1:])} {str(v.dtype).removeprefix('torch.')}" for k, v in self.tensors.items())
        return f"Split({len(self)} rows: {', '.join(shapes)})"

    @property
    def _device(self) -> torch.device:
        return self.tensors[self._main].device

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one x, or of a row of what stands for it if none is called x."""
        return tuple(self.tensors[self._main].shape[1:])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The split on another device; floating tensors take `dtype`, the others keep theirs."""
        split = copy.copy(self)
        split.tensors = {name: _cast(tensor, device, dtype) for name, tensor in self.tensors.items()}
        return split

    def rows(self, index: Index) -> tuple[Tensor, ...]:
        """The tensors (B, ...) at the rows `index`, in the order of `names`, transformed."""
        if self.transform is None:
            return tuple(_dense(self._take(index, self.names)).values())
        tensors = self.transform(_dense(self._take(index, self.fields)))
        if lost := [name for name in self.names if name not in tensors]:
            raise ValueError(f"the transform returned no {', '.join(lost)}; return {{**tensors, 'x': ...}}")
        return tuple(tensors[name] for name in self.names)

    def replace(self, tensors: Mapping[str, Any], *, transform: Transform | None = None) -> Self:
        """A split of this one's own kind with other tensors of its rows, all of them selected, and their transform."""
        split = copy.copy(self)
        Split.__init__(split, tensors, transform=transform)  # not the kind's own, which may take something else
        return split

    def subset(self, index: Index) -> Self:
        """The split of the rows at `index`, of the same kind, with the same names and transform."""
        return self.replace(self._take(index, self.fields), transform=self.transform).select(*self.names)

    def divided(self, fraction: float, generator: torch.Generator | None = None) -> tuple[Self, Self]:
        """Two subsets of rows drawn: those left, and a fraction of them, one row at least, that is held out."""
        order = torch.randperm(len(self), generator=generator, device="cpu")
        count = max(1, round(fraction * len(self)))
        return self.subset(order[count:]), self.subset(order[:count])

    def fixed(self, seed: int) -> Self:
        """The split with its transform applied once to all rows, and none left.

        Drawn from `seed` on the CPU, so alike for every device, and from a stream of its own, so that what else starts
        from the same seed is independent of it; torch's global generators are as before afterwards.
        """
        if self.transform is None:
            return self
        if sparse := [name for name, tensor in self.tensors.items() if isinstance(tensor, SparseRows)]:
            raise ValueError(
                f"{sparse[0]} is sparse and has a transform, which would make all its rows dense at once; apply it to "
                "the matrix first, or pass dense rows"
            )
        with torch.random.fork_rng([]):
            # torch.manual_seed would seed the other devices too, and for good
            torch.default_generator.manual_seed(derived_seed(seed, BITS))
            tensors = self.transform(self.to("cpu").tensors)
        return self.replace(tensors).to(self._device).select(*self.names)

    def _take(self, index: Index, names: tuple[str, ...]) -> dict[str, Any]:
        """Some rows; of a sparse matrix sparse ones."""
        if isinstance(index, slice):
            return {name: self.tensors[name][index] for name in names}
        index = self._numbers(index)
        columns = {name: self.tensors[name] for name in names}
        return {  # index_select is 3 times faster than tensor[index]
            name: column[index] if isinstance(column, SparseRows) else column.index_select(0, index)
            for name, column in columns.items()
        }

    def _numbers(self, index: Index) -> Tensor:
        """The numbers of the rows at `index`."""
        if isinstance(index, slice):
            return torch.arange(len(self), device=self._device)[index]
        index = torch.as_tensor(index, device=self._device)
        return index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()

    def _read(self, indices: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        return (self.rows(index) for index in indices)


class Stream(Rows):
    """A torch Dataset larger than memory, read through DataLoader in the order of (seed, epoch).

    Its items are tensors, tuples or dicts; arrays and numbers in them are converted as in `Split`, not checked for NaN.
    Randomness inside the dataset is its own affair: `skip` does not replay it.

    Args:
        dataset: has a length and is indexed by row number.
        names: of the tensors in an item; an item that is a dict brings its own.
        num_workers: processes that read ahead; 0 reads in this one.

    Raises:
        TypeError: for a dataset without a length, or items that are no numbers.
        ValueError: for an empty dataset, or names that do not fit its first item.
    """

    def __init__(self, dataset: Any, names: Sequence[str] | None = None, *, num_workers: int = 0) -> None:
        item = first_item(dataset)
        if isinstance(item, Mapping):
            names = tuple(item) if names is None else names
            fits = set(names) <= set(item)
        else:
            fits = names is not None and len(names) == item_width(item)
        if not fits or not names:
            have = ", ".join(item) if isinstance(item, Mapping) else f"{item_width(item)} tensors without names"
            raise ValueError(f"names is {names}, items of the dataset hold {have}; pass one name for each")
        self.dataset = dataset
        self.num_workers = num_workers
        self.fields = self.names = tuple(names)
        self._main = _main({name: self._value(item, name) for name in names}, row_dims=0)
        self._target: tuple[Any, Any] = (None, None)
        self.event_shape: tuple[int, ...] = tuple(self.select(self._main)._collate([item])[0].shape[1:])

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"Stream({len(self)} rows: {', '.join(self.names)}; event_shape {self.event_shape})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Stream":
        """The stream with each batch moved to `device`, its floating tensors in `dtype`; rows are read on the CPU."""
        stream = copy.copy(self)
        stream._target = (device or self._target[0], dtype or self._target[1])
        return stream

    def _read(self, indices: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=[index.tolist() for index in indices],
            collate_fn=self._collate,
            num_workers=self.num_workers,
            generator=generator,  # without one, DataLoader draws its workers' seed from the global generator
            pin_memory=torch.device(self._target[0] or "cpu").type == "cuda",
        )
        return (tuple(_cast(tensor, *self._target) for tensor in batch) for batch in loader)

    def _value(self, item: Any, name: str) -> Any:
        if isinstance(item, Mapping):
            return item[name]
        return item[self.fields.index(name)] if isinstance(item, tuple | list) else item

    def _collate(self, items: list[Any]) -> tuple[Tensor, ...]:
        columns = []
        for name in self.names:
            tensors = [_tensor(name, self._value(item, name), name == self._main) for item in items]
            if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
                raise ValueError(f"{name} has items of shapes {sorted(shapes)}, one shape is wanted; crop or pad them")
            columns.append(torch.stack(tensors))
        return tuple(columns)


@dataclass(repr=False, eq=False)
class Data:
    """A data set: its splits, and what is known of x.

    Args:
        train: rows to learn from.
        validation: rows for early stopping, if any.
        test: rows for the final figures, if any.
        name: for titles and tables.
        levels: L if the x in batches is k / (L - 1) with k = 0, ..., L - 1: 2 for bits, 256 for bytes; None: unknown.
        vocabulary: the words that the columns of x count, where it holds bags of words.

    Raises:
        ValueError: for splits with different event shapes, or a vocabulary of another length.

    >>> Data(Split({"x": np.eye(3)}), name="corners")
    Data('corners': train 3 rows; event_shape (3,))
    """

    train: Split | Stream
    validation: Split | Stream | None = None
    test: Split | Stream | None = None
    _: KW_ONLY
    name: str = ""
    levels: int | None = None
    vocabulary: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for part, split in self.splits.items():
            if split.event_shape != self.event_shape:
                raise ValueError(
                    f"{part} has event shape {split.event_shape}, train {self.event_shape}; give one to all"
                )
        if self.vocabulary is not None and (len(self.vocabulary),) != self.event_shape:
            raise ValueError(
                f"vocabulary has {len(self.vocabulary)} words, x has event shape {self.event_shape}; "
                "pass one word for each column of x"
            )

    def __repr__(self) -> str:
        rows = ", ".join(f"{part} {len(split)}" for part, split in self.splits.items())
        levels = "" if self.levels is None else f", levels {self.levels}"
        return f"Data({self.name!r}: {rows} rows; event_shape {self.event_shape}{levels})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one x."""
        return self.train.event_shape

    @property
    def splits(self) -> dict[str, Split | Stream]:
        """The splits there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: split for part, split in splits.items() if split is not None}


def _not_finite(tensor: Tensor) -> tuple[int, int]:
    """How many values are NaN or infinite, and the first row with one, some rows at a time: memory is for the data."""
    count, first, start = 0, -1, 0
    for rows in tensor.split(max(1, 2**20 // max(1, tensor[0].numel()))):
        bad = ~torch.isfinite(rows)
        if bad.any():
            first = start + int(bad.reshape(len(bad), -1).any(1).nonzero()[0]) if first < 0 else first
            count += int(bad.sum())
        start += len(rows)
    return count, first


def first_item(dataset: Any) -> Any:
    """The first item of a torch Dataset that has a length and at least one row."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(f"{type(dataset).__name__} has no length; pass a dataset with __len__ and __getitem__")
    if len(dataset) == 0:
        raise ValueError(f"{type(dataset).__name__} is empty; pass a dataset with at least one row")
    return dataset[0]


def item_width(item: Any) -> int:
    """How many tensors an item without names holds."""
    return len(item) if isinstance(item, tuple | list) else 1


def _dense(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: t.to_dense() if isinstance(t, SparseRows) else t for name, t in tensors.items()}


def _main(tensors: Mapping[str, Any], row_dims: int) -> str:
    """Which of them are the data: labels, a number for each row, or their mask may come before floating ones."""
    if "x" in tensors:
        return "x"
    first = next(iter(tensors))
    floating = next((name for name, value in tensors.items() if _is_floating(value)), first)
    shape, other = (tuple(getattr(tensors[name], "shape", ())) for name in (first, floating))
    masks = shape == other and str(getattr(tensors[first], "dtype", "")).endswith("bool")
    return floating if masks or len(shape) <= row_dims else first


def _is_floating(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return is_sparse(value) or isinstance(value, float) or getattr(getattr(value, "dtype", None), "kind", "") == "f"


def _tensor(name: str, value: Any, main: bool) -> Any:
    if is_sparse(value):
        return SparseRows.of(value)
    if isinstance(value, np.ndarray | np.generic | bool | int | float):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} is an array of {array.dtype}, numbers are wanted; convert it or leave it out")
        kept = array.dtype in (np.bool_, np.uint8, np.float32)
        wanted = array.dtype if kept else np.float64 if array.dtype.kind == "f" else np.int64
        # a copy: of a read-only array torch warns, and what the caller writes later must not reach the data
        value = torch.from_numpy(np.array(array, dtype=wanted))
        value = value.to(torch.get_default_dtype()) if value.is_floating_point() else value
    if not isinstance(value, Tensor) or value.is_complex():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} is a {kind}, real numbers are wanted; convert it, images with torchvision's ToTensor")
    value = value.detach()  # of a network's output the second step would go through its graph again
    if main and value.dtype in (torch.bool, torch.uint8):
        return value.to(torch.get_default_dtype())
    return value if value.is_floating_point() or value.dtype == torch.bool else value.long()


def _cast(tensor: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    if isinstance(tensor, SparseRows):
        return tensor.to(device, dtype)
    return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=tensor.is_pinned())


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, an integer of at least 1 is wanted; pass batch_size=128")
