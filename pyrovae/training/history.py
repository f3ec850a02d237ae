"""What was measured during training: one row an epoch, in memory and as CSV."""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Epoch", "History"]

NUMBER = re.compile(r"-?(inf|nan|[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?)", re.ASCII)


class History(Mapping[str, list[float]]):
    """Columns of numbers of equal length, a row for each `append`; a value that was not given is NaN.

    A Mapping from the name of a column to its values: `len(history)` counts columns, `len(history.rows)` rows.

    Args:
        rows: to start from, as `rows` returns them.

    >>> history = History()
    >>> history.append(epoch=1, train_loss=120.5)
    >>> history.append(epoch=2, train_loss=110.25, validation_loss=111.0)
    >>> history
    History of 2 rows, the last: epoch 2, train_loss 110.25, validation_loss 111
    >>> history["validation_loss"], history.last["train_loss"]
    ([nan, 111.0], 110.25)
    """

    def __init__(self, rows: Iterable[Mapping[str, SupportsFloat]] = ()) -> None:
        self._columns: dict[str, list[float]] = {}
        self._length = 0
        for row in rows:
            self.append(**row)

    def append(self, /, **values: SupportsFloat) -> None:
        """Add a row; a column that is new gets NaN in the rows before.

        Args:
            values: a number or a tensor of one element for each column.

        Raises:
            TypeError: a value is no number.
            ValueError: there is no value, or a name that a CSV header cannot hold as it is.
        """
        if not values:
            raise ValueError("append got no values, wanted at least one; call history.append(epoch=1, train_loss=...)")
        row = {name: _number(name, value) for name, value in values.items()}  # all of them before any is kept
        for name in row:
            if name not in self._columns:
                _check_name(name)
        for name in row:
            self._columns.setdefault(name, [math.nan] * self._length)
        for name, column in self._columns.items():
            column.append(row.get(name, math.nan))
        self._length += 1

    def __getitem__(self, name: str) -> list[float]:
        if name not in self._columns:
            raise KeyError(f"history has no column {name!r}; it has {', '.join(self._columns) or 'none'}")
        return list(self._columns[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def rows(self) -> list[dict[str, float]]:
        """Every row, as a dict with all columns."""
        return [{name: column[i] for name, column in self._columns.items()} for i in range(self._length)]

    @property
    def last(self) -> dict[str, float]:
        """The last row.

        Raises:
            ValueError: there is none.
        """
        if not self._length:
            raise ValueError("history has no rows, wanted at least one; append one first")
        return {name: column[-1] for name, column in self._columns.items()}

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a header and a line for each row: the whole file appears, or none. `from_csv` reads the same numbers.

        Args:
            path: in a folder that exists; a file of that name is replaced.

        Returns:
            The path written.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            folder = str(path.parent)
            raise FileNotFoundError(f"path {str(path)!r} is in no existing folder; make it: os.makedirs({folder!r})")
        lines = [",".join(self), *(",".join(map(repr, row.values())) for row in self.rows)]
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> History:
        """Read what `to_csv` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a name or a number is malformed, a line is too short or too long, or the file is cut off.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path {str(path)!r} is not a file; pass the history.csv of a run")
        try:
            header, *lines, end = path.read_bytes().decode("utf-8").replace("\r\n", "\n").split("\n")
        except ValueError as error:  # fewer than two parts, or not UTF-8
            raise ValueError(f"{str(path)!r} is empty, cut off or not text; write it again with to_csv") from error
        names = header.split(",") if header else []
        if end:
            raise ValueError(f"{str(path)!r} stops inside line {len(lines) + 2}; write it again with to_csv")
        if len(set(names)) < len(names):
            raise ValueError(f"{str(path)!r} has the columns {header}, wanted each once; remove the copy")
        history = cls()
        for name in names:
            _check_name(name)
            history._columns[name] = []
        for number, line in enumerate(lines, 2):
            cells = line.split(",")
            if len(cells) != len(names):
                why = f"has {len(cells)} values, the header {len(names)} names"
                raise ValueError(f"line {number} of {str(path)!r} {why}; write nan for one that is missing")
            for name, cell in zip(names, cells, strict=True):
                if not NUMBER.fullmatch(cell):
                    why = f"has {cell[:40]!r} for {name}, wanted a number"
                    raise ValueError(f"line {number} of {str(path)!r} {why}; write it like 1.5, -2e-07, nan or inf")
                history._columns[name].append(float(cell))
            history._length += 1
        return history

    def plot(self, ax: Axes | None = None) -> Axes:
        """Training curves on `ax`, or on a new figure: `pyrovae.plots.training_curves`."""
        from pyrovae.plots import training_curves  # matplotlib, which a run without pictures does not need

        return training_curves(self, ax=ax)

    def __repr__(self) -> str:
        if not self._length:
            return "History of 0 rows"
        last = ", ".join(f"{name} {value:.6g}" for name, value in self.last.items())
        return f"History of {self._length} row{'s' * (self._length > 1)}, the last: {last}"


def _number(name: str, value: SupportsFloat) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text")
        return float(value.item() if hasattr(value, "item") else value)  # item: of a tensor that has a gradient, too
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several elements
        kind = f"{type(value).__name__} {str(value)[:40]!r}"
        raise TypeError(f"{name} is the {kind}, wanted one number; pass a float") from error


def _check_name(name: str) -> None:
    if not name or not name.isprintable() or name != name.strip() or "," in name or '"' in name:
        raise ValueError(f"column name {name!r} does not fit a CSV header; leave out commas, quotes and outer blanks")


@dataclass
class Epoch:
    """The epoch under way: how far it is, and the sum of its losses, which stay on the device until `read()`."""

    steps: int = 0
    rows: int = 0
    total: float = 0.0
    unread: list[tuple[Tensor, int]] = field(default_factory=list)

    def add(self, loss: Tensor, rows: int) -> None:
        """Take up the loss of a step, a mean over rows."""
        self.steps += 1
        self.unread.append((loss, rows))

    def read(self) -> list[float]:
        """The losses since the last look, waited for."""
        losses = torch.stack([loss for loss, _ in self.unread]).tolist() if self.unread else []
        for loss, (_, rows) in zip(losses, self.unread, strict=True):
            self.total += loss * rows
            self.rows += rows
        self.unread = []
        return losses
