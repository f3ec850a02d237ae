"""Sparse rows: a matrix of which only the values other than zero are stored, made dense some rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SparseRows", "check_indices", "is_sparse"]


def is_sparse(value: Any) -> bool:
    """Whether it is a sparse matrix: scipy's, torch's (CSR or COO) or `SparseRows`."""
    if isinstance(value, Tensor):
        return value.layout in (torch.sparse_csr, torch.sparse_coo)
    return isinstance(value, SparseRows) or hasattr(value, "tocsr")


def check_indices(matrix: Any) -> None:
    """Refuse a matrix, scipy's or torch's, with indices outside it: their routines read and write memory there.

    scipy's own `check_format` cuts the caller's arrays, and lets an indptr pass that falls back to zero at its end.
    """
    rows, columns = matrix.shape
    form = getattr(matrix, "format", None)
    if form == "coo":
        _check_range(matrix.row, rows)
        _check_range(matrix.col, columns)
    elif form in ("csr", "csc", "bsr"):
        high, wide = matrix.blocksize if form == "bsr" else (1, 1)
        lines, width = (columns, rows) if form == "csc" else (rows // high, columns // wide)
        _check_lines(matrix.indptr, matrix.indices, matrix.data, lines, width)
    elif isinstance(matrix, Tensor) and matrix.layout == torch.sparse_csr:
        _check_lines(matrix.crow_indices(), matrix.col_indices(), matrix.values(), rows, columns)
    elif isinstance(matrix, Tensor):
        for index, size in zip(matrix._indices(), (rows, columns), strict=True):
            _check_range(index, size)


def _check_lines(starts: Any, indices: Any, values: Any, lines: int, width: int) -> None:
    """Rows, of CSC columns, begin and end within the values, and the indices lie within them."""
    if len(values) != len(indices):
        raise ValueError(f"a sparse matrix has {len(values)} values for {len(indices)} indices; build it again")
    _check_range(starts, len(indices) + 1)
    if len(starts) != lines + 1 or starts[0] != 0 or (starts[1:] < starts[:-1]).any():
        raise ValueError(
            f"a sparse matrix has {len(starts)} pointers to its {lines} lines, {lines + 1} are wanted that start at 0 "
            "and never decrease; build it again"
        )
    _check_range(indices, width)


def _check_range(index: Any, size: int) -> None:
    if not isinstance(index, Tensor) and index.dtype.kind not in "iu":
        raise ValueError(f"a sparse matrix has an index of {index.dtype}, integers are wanted; build it again")
    if len(index) and (index.min() < 0 or index.max() >= size):
        wrong = int(index.min() if index.min() < 0 else index.max())
        raise ValueError(f"a sparse matrix has index {wrong}, 0 to {size - 1} are wanted; build it again")


class SparseRows:
    """A matrix (N, V), row by row (CSR), in memory for the values that are not zero alone.

    It is what a `Split` holds of a scipy or torch sparse matrix. `rows[index]` are some rows, sparse; `to_dense()`
    makes a tensor of them, on their device.

    Args:
        starts: where each row's values start, and where the last one's end, (N + 1,).
        columns: the column of each value.
        values: floating.
        width: V.

    >>> rows = SparseRows.of(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]).to_sparse())
    >>> rows.shape, rows[torch.tensor([2, 0])].to_dense()
    (torch.Size([3, 2]), tensor([[1., 0.],
            [0., 2.]]))
    """

    ndim = 2

    def __init__(self, starts: Tensor, columns: Tensor, values: Tensor, width: int) -> None:
        self.starts, self.columns, self.values = starts, columns, values
        self.shape = torch.Size((len(starts) - 1, width))
        self.dtype, self.device = values.dtype, values.device

    @classmethod
    def of(cls, matrix: Any) -> SparseRows:
        """The rows of a scipy or torch sparse matrix, copied; whole numbers become floats of the default dtype.

        Raises:
            TypeError: for values that are no real numbers.
            ValueError: for another shape than (N, V), or indices outside it.
        """
        if isinstance(matrix, SparseRows):
            return matrix
        if matrix.ndim != 2:
            shape = tuple(matrix.shape)
            raise ValueError(f"a sparse array has shape {shape}, (N, V) is wanted; pass one row per datum")
        check_indices(matrix)
        if isinstance(matrix, Tensor):
            return cls._of_tensor(matrix.detach())
        if matrix.dtype.kind not in "biuf":
            raise TypeError(f"a sparse matrix is of {matrix.dtype}, real numbers are wanted; convert it")
        csr = matrix.tocsr()
        if csr is not matrix:  # of formats that could not be checked
            check_indices(csr)
        if not csr.has_canonical_format:  # two values for one place would be one of them, not their sum
            csr = csr.copy()
            csr.sum_duplicates()
        used = int(csr.indptr[-1])  # there may be room for more
        double = csr.data.itemsize > 4
        values = torch.from_numpy(np.array(csr.data[:used], dtype=np.float64 if double else np.float32))
        return cls(
            torch.from_numpy(np.array(csr.indptr, dtype=np.int64)),
            torch.from_numpy(np.array(csr.indices[:used], dtype=np.int32)),
            values.to(torch.get_default_dtype()),
            csr.shape[1],
        )

    @classmethod
    def _of_tensor(cls, matrix: Tensor) -> SparseRows:
        if matrix.layout == torch.sparse_csr:  # not by to_sparse, which loses all but one of the values for one place
            rows = torch.arange(len(matrix), device=matrix.device).repeat_interleave(matrix.crow_indices().diff())
            index = torch.stack([rows, matrix.col_indices().long()])
            matrix = torch.sparse_coo_tensor(index, matrix.values(), matrix.shape, check_invariants=False)
        matrix = matrix.coalesce()
        (rows, columns), values = matrix.indices(), matrix.values()
        # Not by to_sparse_csr, which warns that it is in beta.
        starts = torch.bincount(rows + 1, minlength=len(matrix) + 1).cumsum(0)
        values = values.clone() if values.is_floating_point() else values.to(torch.get_default_dtype())
        return cls(starts, columns.int(), values, matrix.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"SparseRows({self.shape[0]} x {self.shape[1]}, {len(self.values)} values)"

    def __getitem__(self, index: slice | Tensor) -> SparseRows:
        if isinstance(index, slice):
            index = torch.arange(len(self), device=self.device)[index]
        first, lengths = self.starts[index], self.lengths[index]
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(starts[-1]), device=self.device) - starts[:-1].repeat_interleave(lengths)
        at = first.repeat_interleave(lengths) + within
        return SparseRows(starts, self.columns[at], self.values[at], self.shape[1])

    @property
    def lengths(self) -> Tensor:
        """How many values each row stores, (N,)."""
        return self.starts.diff()

    def to_dense(self) -> Tensor:
        """The matrix as a tensor (N, V)."""
        out = self.values.new_zeros(self.shape)
        out[self.row_of_values(), self.columns.long()] = self.values
        return out

    def row_of_values(self) -> Tensor:
        """The row that each value is in."""
        return torch.arange(len(self), device=self.device).repeat_interleave(self.lengths)

    def sum(self, dim: int) -> Tensor:
        """Sums over the rows (dim 0), (V,), or over the columns (dim 1), (N,)."""
        into = (self.columns.long(), self.row_of_values())[dim]
        return self.values.new_zeros(self.shape[1 - dim]).index_add(0, into, self.values)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseRows:
        """The same on another device, in another dtype."""
        moved = (self.starts.to(device), self.columns.to(device), self.values.to(device, dtype))
        return SparseRows(*moved, self.shape[1])

    def not_finite(self) -> tuple[int, int]:
        """How many values are NaN or infinite, and the first row with one (or -1)."""
        bad = (~torch.isfinite(self.values)).nonzero()[:, 0]
        return len(bad), int(torch.searchsorted(self.starts, bad[0], right=True)) - 1 if len(bad) else -1
