"""Rows that show their number, for tests of data."""

import torch
from torch.utils.data import Dataset, IterableDataset

from pyrovae.data import Split


def rows(count=10, **options):
    """x[i] = (i, 10 i) and y[i] = i, so that every row shows its number."""
    number = torch.arange(count)
    return Split({"x": torch.stack([number, 10 * number], -1).double(), "y": number}, **options)


def pair(x, y):  # no lambda: worker processes may have to pickle it
    return x, y


class Items(Dataset):
    """The rows above as items of some kind; counts what is read."""

    def __init__(self, count=10, make=pair):
        self.count, self.split, self.make, self.read = count, rows(), make, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        return self.make(self.split["x"][index], int(self.split["y"][index]))


def numbers(batches):
    return [int(y) for _, ys in batches for y in ys]


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)
