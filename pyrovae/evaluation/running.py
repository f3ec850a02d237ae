"""Running a pair on data without training it: on its device, in evaluation mode, on random states of its own."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.data import Data, Split, Stream, match
from pyrovae.data.seeds import ORDER, seeded_generator
from pyrovae.models.base import Functions, PairLike, as_pair, evaluation_mode, isolated_random_state, structure
from pyrovae.models.batches import check_rows, home, placed

__all__ = [
    "BUDGET",
    "Evaluation",
    "check_counts",
    "cycled",
    "evaluating",
    "evaluating_first",
    "first_rows",
    "fixed_rows",
    "held_out",
]

BUDGET = 2**22  # numbers of data and latents that are worked on at once; activations take a few times as many
ROWS = 128  # per batch, where the budget allows as many


def held_out(data: Any) -> tuple[str, Any]:
    """What to evaluate on: the test split, else the validation split, else the data themselves; with its name.

    >>> held_out(torch.zeros(3))[0]
    'data'
    """
    if isinstance(data, Data):
        name = "test" if data.test is not None else "validation" if data.validation is not None else "train"
        return name, data.splits[name]
    return "data", data


def fixed_rows(pair: Any, data: Any, seed: int, count: int | None = None) -> Split | Stream:
    """Held-out data as a pair's model takes them, the transform of a Split applied once, drawn from `seed`.

    Args:
        pair: see `pyrovae.as_pair`.
        data: what `pyrovae.data.match` takes; of `Data` the split that `held_out` gives.
        seed: of the transform: each row comes out alike, whatever is done with it.
        count: only the first rows; of a Stream there are always all, and for an autoguide, which has a row of
            parameters for each.
    """
    pair = as_pair(pair)
    rows = match(held_out(data)[1], pair.model)
    if isinstance(rows, Stream):
        return rows
    all_rows = count is None or isinstance(pair.guide, AutoGuide)
    return rows.fixed(seed) if all_rows else rows.fixed(seed).subset(slice(count))


def first_rows(pair: Any, data: Any, seed: int, count: int | None = None) -> tuple[Tensor, ...]:
    """The rows that `fixed_rows` gives, of a Stream the first `count`, as one batch where the pair is, in its dtype."""
    pair = as_pair(pair)
    rows = fixed_rows(pair, data, seed, count)
    with torch.device("cpu"):  # a DataLoader fails where new tensors go to a GPU by default
        batch = next(rows.sequential(count or len(rows) if isinstance(rows, Stream) else len(rows)))
    return placed(batch, *home(pair, batch))


class Evaluation:
    """A pair on data: what to run on which rows, and how, in `ready`.

    Iterating gives `(run, batch, covered)`: the pair, a batch on its device, and which rows of the data it covers. For
    a model that subsamples the data by itself each batch is all the data, and `run` has the rows of its plate set.
    A pair's `check_batch` sees each batch before it runs on it, so that data that `fit` refuses have no value either.

    Args:
        pair, data, plate, seed, batch_size, particles: see `evaluating`.
        max_rows: take at most this many rows, chosen by `seed`; all of them, where the guide is an autoguide or the
            model draws its own rows among all.

    Attributes:
        pair: the pair.
        rows: the data.
        known: the pair's structure on their first rows.
        batch_size: rows at once.
        subsamples: whether the model subsamples by itself.

    Raises:
        ValueError: also where the guide has a row of parameters for each of other data.
    """

    def __init__(
        self,
        pair: Any,
        data: Any,
        *,
        plate: str | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        max_rows: int | None = None,
        particles: int = 1,
    ):
        self.pair: PairLike = as_pair(pair)
        check_counts(batch_size=batch_size, max_rows=max_rows)
        takes_all = isinstance(self.pair.guide, AutoGuide)  # which has a row of parameters for each of these data
        all_rows = fixed_rows(self.pair, data, seed)
        self.rows = _chosen(all_rows, None if takes_all else max_rows, seed)
        self.batch_size = len(self.rows) if takes_all else self._rows_at_once(batch_size, particles)
        first = self._read(self.batch_size)
        self.device, self.dtype = home(self.pair, first, plate)
        self.modules: tuple[Any, ...] = tuple(self.pair) if isinstance(self.pair, Functions) else (self.pair,)
        plates = _Plates()
        with self.ready(seed), plates:
            try:
                self.known = structure(self.pair, *self._moved(first), plate=plate)
            except ValueError:
                if len(all_rows) == self.batch_size or len(all_rows) not in plates.sizes.values():
                    raise
                self.rows, self.batch_size = all_rows, len(all_rows)  # among which the model draws its own
                self.device, self.dtype = home(self.pair, self._read(self.batch_size), plate)
                self.known = structure(self.pair, *self.batch(), plate=plate)
        self.modules += self.known.modules
        self.subsamples = self.known.rows < self.batch_size or self.known.plate in plates.sizes
        self._check_rows_of_guide()

    def _rows_at_once(self, batch_size: int | None, particles: int = 1) -> int:
        fitting = max(1, BUDGET // (particles * max(1, math.prod(self.rows.event_shape))))
        return min(min(ROWS, fitting) if batch_size is None else batch_size, len(self.rows))

    def _check_rows_of_guide(self) -> None:
        """Refuse a guide whose rows are those of other data: its codes would be those data's."""
        size, rows = self.known.guide_size, self.batch_size
        if size not in (None, self.known.size, rows):
            raise ValueError(
                f"the guide has rows for {size} data in its plate {self.known.plate!r}, these are {rows}; pass all "
                f"{size} data that it was fitted to, in their order and with batch_size={size}"
            )

    def on_rows(self, tensors: tuple[Tensor, ...], batch_size: int | None = None) -> Evaluation:
        """The same model on other rows, over and over where its plate takes more; the guide may have none for them."""
        least = self.known.size if self.subsamples else 1
        other = copy.copy(self)
        other.rows = match(tuple(cycled(tensor, max(least, len(tensor))) for tensor in tensors), self.pair.model)
        other.batch_size = other._rows_at_once(batch_size)
        return other

    @contextlib.contextmanager
    def ready(self, seed: int) -> Iterator[None]:
        """Evaluation mode, no gradients, and random states that start from `seed`; all as before afterwards."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(isolated_random_state(seed))
            stack.enter_context(torch.no_grad())
            if self.device is not None and self.device.type != "cpu":
                stack.enter_context(self.device)  # for tensors that a user's program makes
            stack.enter_context(evaluation_mode(*self.modules))
            yield

    def __iter__(self) -> Iterator[tuple[PairLike, tuple[Tensor, ...], slice]]:
        total, size = len(self.rows), self.known.rows
        if self.subsamples:
            batch = self.batch(total)
            for start in range(0, total, size):
                covered = slice(min(start, total - size), min(start + size, total))  # the last ones overlap
                yield self._at(torch.arange(covered.start, covered.stop)), batch, covered
            return
        batches, start = self.rows.sequential(self.batch_size), 0
        while start < total:
            with torch.device("cpu"):  # a DataLoader fails where new tensors go to a GPU by default
                batch = next(batches)
            yield self.pair, self._moved(batch, start), slice(start, start + len(batch[0]))
            start += len(batch[0])

    def batch(self, size: int | None = None) -> tuple[Tensor, ...]:
        """The first rows of the data."""
        return self._moved(self._read(self.batch_size if size is None else size))

    def _read(self, size: int) -> tuple[Tensor, ...]:
        with torch.device("cpu"):  # a DataLoader fails where new tensors go to a GPU by default
            return next(self.rows.sequential(size))

    def join(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """Results of all batches, each with its rows in `dim`, as one for all rows of the data."""
        *before, last = parts
        missing = len(self.rows) - sum(part.size(dim) for part in before)
        return torch.cat([*before, last.narrow(dim, last.size(dim) - missing, missing)], dim)

    def _moved(self, batch: tuple[Tensor, ...], start: int = 0) -> tuple[Tensor, ...]:
        """Rows from `start` on, where the pair is, once it has agreed to them."""
        check_rows(self.pair, batch, "data", start)
        return placed(batch, self.device, self.dtype)

    def _at(self, rows: Tensor) -> PairLike:
        chosen = Trace()
        chosen.add_node(self.known.plate, name=self.known.plate, type="sample", value=rows, is_observed=False, infer={})
        return Functions(poutine.replay(self.pair.model, trace=chosen), poutine.replay(self.pair.guide, trace=chosen))


@contextlib.contextmanager
def evaluating(
    pair: Any, data: Any, *, plate: str | None = None, seed: int = 0, batch_size: int | None = None, particles: int = 1
) -> Iterator[Evaluation]:
    """A pair in evaluation mode on data, without gradients, on random states of its own; all as before afterwards.

    Args:
        pair: see `pyrovae.as_pair`.
        data: what `pyrovae.data.match` takes; of `Data` the test split, else the validation split, else the training
            split. The transform of a Split is applied once, drawn from `seed`.
        plate: name of the data plate, where it is not plain.
        seed: of all draws.
        batch_size: rows at once. Default: 128, or fewer so that `BUDGET` bounds rows x particles x size of a datum.
            An autoguide takes all rows at once, whatever this is.
        particles: how many are to be drawn at once.

    Raises:
        TypeError, ValueError: for a pair or data that can't work.
    """
    on = Evaluation(pair, data, plate=plate, seed=seed, batch_size=batch_size, particles=particles)
    with on.ready(seed):
        yield on


@contextlib.contextmanager
def evaluating_first(
    pair: Any, like: Any, count: int | None, *, plate: str | None = None, seed: int = 0
) -> Iterator[Evaluation]:
    """`evaluating` on the first `count` rows of `like`, or all; on all for an autoguide, see `fixed_rows`.

    Where a plate subsamples from more rows than these, they are repeated.
    """
    batch = first_rows(pair, like, seed, count)
    rows, plates = len(batch[0]), _Plates()
    try:
        with plates:
            on = Evaluation(pair, batch, plate=plate, seed=seed)
        wanted = plates.sizes.get(on.known.plate, 0)
    except ValueError:
        wanted = max(plates.sizes.values(), default=0)
        if wanted <= rows:
            raise
    if wanted > rows:  # on fewer the model runs or not, as the indices fall
        batch = tuple(cycled(tensor, wanted) for tensor in batch)
        on = Evaluation(pair, batch, plate=plate, seed=seed, batch_size=wanted)
    with on.ready(seed):
        yield on


class _Plates(Messenger):
    """Notes which plates subsample by themselves, and from how many rows, also where they have fewer and fail.

    The model runs after the guide, and what it says of a plate counts: an autoguide's are of a size of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.sizes.pop(msg["name"], None)
            if msg["fn"].subsample_size is not None:
                self.sizes[msg["name"]] = max(msg["fn"].size, msg["fn"].subsample_size)


def cycled(tensor: Tensor, count: int) -> Tensor:
    """`count` rows: those of a tensor, over and over.

    >>> cycled(torch.tensor([1, 2]), 5)
    tensor([1, 2, 1, 2, 1])
    """
    return tensor[torch.arange(count, device=tensor.device) % len(tensor)]


def check_counts(**counts: Any) -> None:
    """Each is a whole number of at least 1, or None.

    Raises:
        TypeError, ValueError: otherwise.
    """
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is {value!r}, a whole number is wanted; pass {name}=100, say")
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, at least 1 is wanted; pass {name}=100, say")


def _chosen(rows: Split | Stream, count: int | None, seed: int) -> Split | Stream:
    """`count` rows by `seed`, where there are more."""
    if count is None or count >= len(rows):
        return rows
    if isinstance(rows, Split):
        order = torch.randperm(len(rows), generator=seeded_generator("cpu", seed, ORDER, 0), device="cpu")
        return rows.subset(order[:count])
    tensors = dict(zip(rows.names, next(rows.batches(count, seed=seed, epoch=0)), strict=True))
    return Split({name: tensors[name] for name in rows.fields if name in tensors}).select(*rows.names)
