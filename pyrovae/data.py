"""Data as named tensors: splits, loading, binarisation, and matching to a model's parameters.

Data in memory are a `Split`, a torch Dataset larger than memory is a `Stream`. Both have ``len``, ``names``,
``event_shape``, ``select``, ``to``, ``batches`` and ``sequential``, and training needs no more.
"""

import copy
import difflib
import inspect
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

__all__ = ["Data", "Split", "Stream", "bernoulli", "bits_per_dimension", "dequantize", "load", "match"]

Transform = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Index = Tensor | np.ndarray | Sequence[int] | slice
Parts = dict[str, dict[str, Any]]  # "train", "validation", "test" -> named arrays
Nats = TypeVar("Nats", float, Tensor)

_IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
_NAMES = ("digits", *_IDX, "omniglot", "cifar10")
_ORDER, _SPLIT, _BITS = range(3)  # what a seed is used for: each use has a stream of its own


class _Rows(ABC):
    """What `Split` and `Stream` share: names, and the order of an epoch."""

    fields: tuple[str, ...]  # all tensors of a row
    names: tuple[str, ...]  # those that a batch holds, in order
    _device = torch.device("cpu")  # where the order of an epoch is drawn

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

    def batches(self, batch_size: int, *, seed: int, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, in an order that depends on (seed, epoch) and the kind of device only.

        Args:
            batch_size: rows per batch; the last batch may be smaller.
            seed: not negative.
            epoch: not negative; each has its own permutation, drawn on the device.
            skip: leave out that many batches from the start without computing them, to resume within an epoch.

        Returns:
            iterator over tuples of tensors (B, ...), in the order of `names`.

        Raises:
            ValueError: for a batch_size below 1 or above the number of rows.
        """
        _check_batch_size(batch_size)
        if batch_size > len(self):
            raise ValueError(f"batch_size is {batch_size} for {len(self)} rows; pass batch_size<={len(self)}")
        if epoch < 0 or skip < 0:
            raise ValueError(f"epoch is {epoch} and skip is {skip}, at least 0 is wanted; count from 0")
        generator = _generator(self._device, seed, _ORDER, epoch)
        order = torch.randperm(len(self), generator=generator, device=self._device)
        return self._read(order.split(batch_size)[skip:], generator)

    def sequential(self, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """All rows in their order, for evaluation; batch_size may exceed the number of rows."""
        _check_batch_size(batch_size)
        order = torch.arange(len(self), device=self._device)
        return self._read(order.split(batch_size), _generator(self._device, 0))

    def _main(self) -> str:
        return "x" if "x" in self.fields else self.fields[0]


class Split(_Rows):
    """Named tensors with one row per datum, and a transform for each batch taken from them.

    NumPy arrays become tensors: floats of the default dtype, integers int64. Where ``x`` (or the first tensor, if none
    is called x) is bool or uint8 it becomes floating, its values as they are; elsewhere uint8 is a label, bool a mask.

    Args:
        tensors: name -> tensor or array (N, ...), on one device.
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

    def __init__(self, tensors: Mapping[str, Tensor | np.ndarray], *, transform: Transform | None = None) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors is a {type(tensors).__name__}, a mapping is wanted; pass {{'x': tensors}}")
        if not tensors:
            raise ValueError("tensors is empty, at least one named tensor is wanted; pass {'x': ...}")
        self.fields = self.names = tuple(tensors)
        self.transform = transform
        main = self._main()
        self.tensors = {name: _tensor(name, value, name == main) for name, value in tensors.items()}
        for name, tensor in self.tensors.items():
            if tensor.ndim == 0 or len(tensor) == 0:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} and no rows; pass shape (N, ...) with N >= 1")
            if len(tensor) != len(self):
                raise ValueError(
                    f"{name} has {len(tensor)} rows, {main} has {len(self)}; pass one row per datum in each"
                )
            bad = ~torch.isfinite(tensor)
            if bad.any():
                count, row = int(bad.sum()), int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
                raise ValueError(
                    f"{name} has {count} NaN or infinite values, the first in row {row}; drop or fill them"
                )

    def __len__(self) -> int:
        return len(self.tensors[self._main()])

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __repr__(self) -> str:
        shapes = (f"{k} {tuple(v.shape[1:])} {str(v.dtype).removeprefix('torch.')}" for k, v in self.tensors.items())
        return f"Split({len(self)} rows: {', '.join(shapes)})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one x, or of a row of the first tensor if none is called x."""
        return tuple(self.tensors[self._main()].shape[1:])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Split":
        """The split on another device; floating tensors take `dtype`, the others keep theirs."""
        split = copy.copy(self)
        split.tensors = {name: _cast(tensor, device, dtype) for name, tensor in self.tensors.items()}
        return split

    def rows(self, index: Index) -> tuple[Tensor, ...]:
        """The tensors (B, ...) at the rows `index`, in the order of `names`, transformed."""
        if self.transform is None:
            return tuple(self._take(index, self.names).values())
        tensors = self.transform(self._take(index, self.fields))
        if lost := [name for name in self.names if name not in tensors]:
            raise ValueError(f"the transform returned no {', '.join(lost)}; return {{**tensors, 'x': ...}}")
        return tuple(tensors[name] for name in self.names)

    def subset(self, index: Index) -> "Split":
        """The split of the rows at `index`, with the same names and transform."""
        return Split(self._take(index, self.fields), transform=self.transform).select(*self.names)

    def fixed(self, seed: int) -> "Split":
        """The split with its transform applied once to all rows, and none left.

        Drawn from `seed` on the CPU, so alike for every device; torch's global generators are as before afterwards.
        """
        if self.transform is None:
            return self
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the other devices, and for good
            tensors = self.transform(self.to("cpu").tensors)
        return Split(tensors).to(self._device).select(*self.names)

    def _take(self, index: Index, names: tuple[str, ...]) -> dict[str, Tensor]:
        if isinstance(index, slice):
            return {name: self.tensors[name][index] for name in names}
        index = torch.as_tensor(index, device=self._device)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        return {name: self.tensors[name].index_select(0, index) for name in names}  # 3 times faster than tensor[index]

    def _read(self, indices: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        return (self.rows(index) for index in indices)


class Stream(_Rows):
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
        item = _first(dataset)
        if isinstance(item, Mapping):
            names = tuple(item) if names is None else names
            fits = set(names) <= set(item)
        else:
            fits = names is not None and len(names) == _width(item)
        if not fits or not names:
            have = ", ".join(item) if isinstance(item, Mapping) else f"{_width(item)} tensors without names"
            raise ValueError(f"names is {names}, items of the dataset hold {have}; pass one name for each")
        self.dataset = dataset
        self.num_workers = num_workers
        self.fields = self.names = tuple(names)
        self._target: tuple[Any, Any] = (None, None)
        self.event_shape: tuple[int, ...] = tuple(self.select(self._main())._collate([item])[0].shape[1:])

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

    def _collate(self, items: list[Any]) -> tuple[Tensor, ...]:
        columns = []
        for name in self.names:
            at = self.fields.index(name)
            values = (i[name] if isinstance(i, Mapping) else i[at] if isinstance(i, tuple | list) else i for i in items)
            tensors = [_tensor(name, value, name == self._main()) for value in values]
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

    Raises:
        ValueError: for splits with different event shapes.

    >>> Data(Split({"x": np.eye(3)}), name="corners")
    Data('corners': train 3 rows; event_shape (3,))
    """

    train: Split | Stream
    validation: Split | Stream | None = None
    test: Split | Stream | None = None
    _: KW_ONLY
    name: str = ""
    levels: int | None = None

    def __post_init__(self) -> None:
        for part, split in self.splits.items():
            if split.event_shape != self.event_shape:
                raise ValueError(
                    f"{part} has event shape {split.event_shape}, train {self.event_shape}; give one to all"
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


def bernoulli(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transform for dynamic binarisation: new bits x ~ Bernoulli(x) from x in [0, 1] at each call.

    Source: Burda et al. 2016, https://arxiv.org/abs/1509.00519
    """
    x = tensors["x"]
    return {**tensors, "x": torch.rand_like(x).lt_(x)}  # 4 times faster than torch.bernoulli on a CPU


def dequantize(levels: int = 256) -> Transform:
    r"""Transform for uniform dequantisation: x = k / (levels - 1) becomes (k + u) / levels.

    The noise u ~ U[0, 1)^D is new at each call. For a density p on [0, 1]^D, Jensen's inequality gives

        log P(k) >= E_u log p((k + u) / levels) - D log(levels),    P(k) = integral of p over the bin of k.

    Args:
        levels: number of grey levels L of x.

    Returns:
        transform for a `Split`, which changes "x" only and keeps it in [0, 1).

    Source: Uria et al. 2013, https://arxiv.org/abs/1306.0186; Theis et al. 2016, https://arxiv.org/abs/1511.01844

    >>> transform = dequantize(4)
    >>> (transform({"x": torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])})["x"] * 4).floor()
    tensor([0., 1., 2., 3.])
    """
    _check_levels(levels)

    def transform(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        k = (tensors["x"] * (levels - 1)).round()
        # k + u can round up to k + 1, the next bin, and to x = 1, where a density on [0, 1) may be infinite
        y = torch.minimum(k + torch.rand_like(k), torch.nextafter(k + 1, k))
        return {**tensors, "x": y / levels}

    return transform


def bits_per_dimension(
    log_likelihood_nats: Nats, event_shape: int | Sequence[int], *, levels: int | None = None
) -> Nats:
    r"""Minus the log-likelihood in bits per dimension, -log p / (D log 2), plus log2(levels) if these are given.

    Args:
        log_likelihood_nats: nats per datum, any shape.
        event_shape: shape of a datum; D is its product.
        levels: for a density on [0, 1] of data from `dequantize(levels)`: its nats minus D log(levels) are those of the
            discrete datum. None: log_likelihood_nats are those of the discrete datum already.

    Returns:
        bits per dimension, in the shape of log_likelihood_nats.

    Source: Theis et al. 2016, https://arxiv.org/abs/1511.01844

    >>> bits_per_dimension(0.0, (3, 32, 32), levels=256)  # the uniform density
    8.0
    """
    dimensions = event_shape if isinstance(event_shape, int) else math.prod(event_shape)
    if dimensions < 1:
        raise ValueError(f"event_shape is {event_shape}, without a dimension; pass the shape of one datum")
    offset = 0.0 if levels is None else math.log2(_check_levels(levels))
    return offset - log_likelihood_nats / (dimensions * math.log(2))


def match(data: Any, function: Callable[..., Any]) -> Split | Stream:
    """The data as a model takes them: one tensor for each positional parameter.

    A `Split`, `Stream`, `Data` (its train split), dict or Dataset of dicts is matched by name, and what the function
    does not take is left out. Tensors, arrays, tuples of them and other Datasets are matched by position. ``*args``
    takes the rest.

    Args:
        data: Split, Stream, Data, dict, tensor (N, ...), array, tuple or list of these, or torch Dataset.
        function: a model: function, bound method or module.

    Returns:
        Split or Stream with batches that are the function's arguments.

    Raises:
        TypeError: for other data.
        ValueError: for a required parameter that the data lack, or more tensors than parameters.

    >>> match({"y": torch.arange(3), "x": torch.eye(3)}, lambda x: None).names
    ('x',)
    """
    if isinstance(data, Data):
        data = data.train
    elif isinstance(data, Mapping):
        data = Split(data)
    elif isinstance(data, Dataset) and not isinstance(data, TensorDataset):
        item = _first(data)
        data = Stream(data, None if isinstance(item, Mapping) else _by_position(function, _width(item)))
    elif not isinstance(data, Split | Stream):
        data = data.tensors if isinstance(data, TensorDataset) else data
        items = data if isinstance(data, tuple | list) else [data]
        if wrong := [type(item).__name__ for item in items if not isinstance(item, Tensor | np.ndarray)]:
            raise TypeError(f"data hold a {wrong[0]}, tensors or arrays are wanted; convert it, or call load first")
        data = Split(dict(zip(_by_position(function, len(items)), items, strict=True)))
    return data.select(*_by_name(function, data.names))


def load(
    name: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    binarize: Literal["auto", "dynamic", "static"] | None = "auto",
    validation: int | float | None = None,
    test: int | float | None = None,
    seed: int = 0,
) -> Data:
    """A data set by name, or from files.

    * "digits": scikit-learn's handwritten digits, (1, 8, 8), k/16
    * "mnist", "fashion-mnist", "kmnist": (1, 28, 28), k/255
    * "omniglot": (1, 28, 28) by area averages, k/255, ink is 1; the test set has other characters than the training set
    * "cifar10": (3, 32, 32), k/255
    * a folder of images of one size, flat or in one subfolder per class: (1, H, W) if grey, else (3, H, W), k/255
    * a .npy file, or a .npz file with x, or one array only, and further named arrays; names that end in _validation (or
      _valid) and _test are those splits, and so are arrays called train, valid and test. Values are as in the file:
      **uint8 is not divided by 255**

    Labels are in y. Rows held out are drawn from `seed`; of the MNIST-like and cifar10 they are the last ones.

    Args:
        name: one of the names above, or a path.
        root: folder of torchvision's data sets; default the environment variable PYROVAE_DATA, else "data".
        download: let torchvision fetch what is missing.
        binarize: "dynamic": x ~ Bernoulli(x) anew for each training batch (`bernoulli`), once for validation and test;
            "static": once for all, from `seed`; None: x as it is. "auto": dynamic for images of one channel, (H, W) or
            (1, H, W), with values in [0, 1] and not bits already, else None.
        validation: rows to hold out, or their fraction of the training rows; default 10,000 (MNIST-like), 5,000
            (cifar10), else 0.1, unless the files have their own.
        test: likewise; default 0.1, unless the data have their own.
        seed: of the rows held out and of the bits drawn once; torch's global generators do not move.

    Returns:
        Data, on the CPU.

    Raises:
        FileNotFoundError: for data that are not there.
        ValueError: for an unknown name, damaged files, or values outside [0, 1] to binarize.

    >>> load("digits")
    Data('digits': train 1437, validation 180, test 180 rows; event_shape (1, 8, 8), levels 2)
    """
    if binarize not in ("auto", "dynamic", "static", None):
        raise ValueError(f"binarize is {binarize!r}; pass 'dynamic', 'static', None or 'auto'")
    name = os.fspath(name)
    folder = Path(root or os.environ.get("PYROVAE_DATA", "data"))
    levels: int | None = 256
    last = None  # rows that are held out by custom, from the end
    if name == "digits":
        parts, levels = _digits(), 17
    elif name in _IDX:
        parts, last = _idx(name, folder, download), 10_000
    elif name == "omniglot":
        parts = _omniglot(folder, download)
    elif name == "cifar10":
        parts, last = _cifar10(folder, download), 5_000
    elif Path(name).is_dir():
        parts = _images(Path(name))
    else:
        parts, levels = _arrays(name), None
    splits = _hold_out(name, parts, {"validation": validation, "test": test}, last, seed)

    low, high = (min(s["x"].min().item() for s in splits.values()), max(s["x"].max().item() for s in splits.values()))
    bits = all(((split["x"] == 0) | (split["x"] == 1)).all() for split in splits.values())
    if binarize == "auto":
        shape = splits["train"].event_shape
        grey = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
        binarize = "dynamic" if grey and low >= 0 and high <= 1 else None
    if binarize and (low < 0 or high > 1):
        raise ValueError(f"x of {name} is in [{low:g}, {high:g}], to binarize it must be in [0, 1]; pass binarize=None")
    if binarize and not bits:
        for use, part in enumerate(("train", "validation", "test")):
            if part in splits:
                split = Split(splits[part].tensors, transform=bernoulli)
                dynamic = part == "train" and binarize == "dynamic"
                splits[part] = split if dynamic else split.fixed(_seed(seed, _BITS, use))
    return Data(**splits, name=Path(name).stem, levels=2 if bits or binarize else levels)


def _hold_out(
    name: str, parts: Parts, asked: dict[str, int | float | None], last: int | None, seed: int
) -> dict[str, Split]:
    train = Split(parts["train"])
    defaults = {"validation": 0.1 if last is None else last, "test": 0.1}
    counts = []
    for part, value in asked.items():
        if part in parts and value is not None:
            raise ValueError(f"{part} is {value}, but {name} has {part} rows of its own; leave {part}=None")
        size = value if value is not None else 0 if part in parts else defaults[part]
        counts.append(round(size * len(train)) if isinstance(size, float) else size)
        if not 0 <= counts[-1] < len(train):
            raise ValueError(f"{part} is {size} of the {len(train)} rows of {name}; pass fewer, or a fraction below 1")
    left = len(train) - sum(counts)
    if left < 1:
        raise ValueError(f"validation and test take all {len(train)} rows of {name}; pass validation= or test= smaller")
    generator = _generator("cpu", seed, _SPLIT)
    order = torch.arange(len(train)) if last else torch.randperm(len(train), generator=generator)
    splits = {"train": train.subset(order[:left])}
    for part, rows in zip(asked, order[left:].split(counts), strict=True):
        if part in parts or len(rows):
            splits[part] = Split(parts[part]) if part in parts else train.subset(rows)
    return splits


def _unit(values: Any) -> Tensor:
    return torch.as_tensor(values).to(torch.get_default_dtype()) / 255


def _digits() -> Parts:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"train": {"x": digits.images[:, None] / 16, "y": digits.target}}


def _torchvision(name: str, kind: str, root: Path, download: bool, **options: bool) -> Any:
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, kind)(root, download=download, **options)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        message = f"{name} is not in root={root} ({reason}); pass download=True, or root= with the folder that has it"
        raise FileNotFoundError(message) from error


def _idx(name: str, root: Path, download: bool) -> Parts:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    folder = root / _IDX[name] / "raw"
    files = [folder / f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not all(file.exists() for file in files):
        _torchvision(name, _IDX[name], root, download)
    arrays = []
    for file in files:  # not by torchvision's class, which does not say which file is damaged
        try:
            arrays.append(read_image_file(str(file)) if "images" in file.name else read_label_file(str(file)))
        except Exception as error:  # AssertionError, KeyError, RuntimeError, ValueError, by where the file ends
            raise ValueError(f"{file} is truncated or damaged ({error}); delete it and pass download=True") from error
    return {
        "train": {"x": _unit(arrays[0][:, None]), "y": arrays[1]},
        "test": {"x": _unit(arrays[2][:, None]), "y": arrays[3]},
    }


def _omniglot(root: Path, download: bool) -> Parts:
    from PIL import Image

    parts = {}
    for part, background in {"train": True, "test": False}.items():
        dataset = _torchvision("omniglot", "Omniglot", root, download, background=background)
        ink, labels = [], []
        for row in range(len(dataset)):
            image, label = dataset[row]
            ink.append(255 - np.asarray(image.resize((28, 28), Image.Resampling.BOX)))  # paper is 255 in the file
            labels.append(label)
        parts[part] = {"x": _unit(np.stack(ink)[:, None]), "y": np.array(labels)}
    return parts


def _cifar10(root: Path, download: bool) -> Parts:
    parts = {}
    for part, train in {"train": True, "test": False}.items():
        # its files are pickles: torchvision compares their checksums with the published ones before it opens them
        dataset = _torchvision("cifar10", "CIFAR10", root, download, train=train)
        parts[part] = {"x": _unit(dataset.data.transpose(0, 3, 1, 2)), "y": np.array(dataset.targets)}
    return parts


def _images(folder: Path) -> Parts:
    from PIL import Image
    from torchvision.datasets.folder import ImageFolder, is_image_file

    samples = [(str(file), 0) for file in sorted(folder.iterdir()) if file.is_file() and is_image_file(file.name)]
    classes = any(entry.is_dir() for entry in folder.iterdir())
    if classes and samples:
        raise ValueError(f"{folder} has both images and subfolders, one or the other is wanted; move the images")
    samples = ImageFolder(folder).samples if classes else samples
    if not samples:
        raise FileNotFoundError(f"{folder} has no images; pass a folder of .png or .jpg files, or of such folders")
    pixels: list[np.ndarray] = []
    for file, _ in samples:
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError("more than 8 bits per channel")
                grey = image.mode in ("1", "L", "LA")
                array = np.asarray(image.convert("L" if grey else "RGB"))
        except Exception as error:  # Pillow raises OSError, SyntaxError and more
            raise ValueError(f"{file} is not a readable 8-bit image ({error}); convert or remove it") from error
        pixels.append(array[None] if grey else array.transpose(2, 0, 1))
        if pixels[-1].shape != pixels[0].shape:
            shapes = f"{pixels[-1].shape}, {samples[0][0]} is {pixels[0].shape}"
            raise ValueError(f"{file} is {shapes} (channels, height, width); convert or resize it")
    labels = {"y": np.array([label for _, label in samples])} if classes else {}
    return {"train": {"x": _unit(np.stack(pixels)), **labels}}


def _arrays(name: str) -> Parts:
    path = Path(name)
    if path.suffix not in (".npy", ".npz") or not path.exists():
        if path.exists():
            raise ValueError(f"{path} is not a .npy or .npz file or a folder of images; save it with numpy.savez")
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(f"there is no {path.absolute()}; pass a .npy or .npz file or a folder of images")
        near = difflib.get_close_matches(name.lower(), _NAMES, n=2, cutoff=0.4)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"there are no data called {name!r}; {guess}pass one of {', '.join(_NAMES)}, or a path")
    with open(path, "rb") as file:
        pickled = file.read(1) == b"\x80"
        file.seek(0)
        try:
            content: Any = np.load(file, allow_pickle=False)
            content = {"x": content} if isinstance(content, np.ndarray) else {key: content[key] for key in content}
        except Exception as error:  # a dozen types from numpy, zipfile and zlib
            if pickled or "Object arrays" in str(error):
                what = "has pickled Python objects, which are never loaded (allow_pickle=False); save arrays of numbers"
            else:
                what = f"is truncated or damaged ({error}); copy or save it again"
            raise ValueError(f"{path} {what}") from error

    parts: Parts = {"train": {}}
    known = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
    for key, array in content.items():
        column, _, suffix = key.rpartition("_")
        parts.setdefault(known.get(suffix, "train"), {})[(column or "x") if suffix in known else key] = array
    if len(content) == 1:
        parts = {"train": {"x": array}}
    if lacking := [part for part in parts if "x" not in parts[part]]:
        have = ", ".join(content) or "no arrays"
        raise ValueError(f"{path} has {have}, and no x for {lacking[0]}; call the array of the data x")
    return parts


def _parameters(function: Callable[..., Any]) -> tuple[str, list[inspect.Parameter], str | None]:
    """The function's name, its positional parameters, and the name of its ``*args``."""
    function = function.forward if isinstance(function, nn.Module) else function
    if not callable(function):
        raise TypeError(f"function is a {type(function).__name__}, a model to call is wanted; pass pair.model")
    label = getattr(function, "__name__", type(function).__name__)
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise ValueError(f"{label} wants {parameter.name!r} by keyword, batches are positional; give it a default")
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return label, positional, next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)


def _by_name(function: Callable[..., Any], names: Sequence[str]) -> list[str]:
    label, positional, rest = _parameters(function)
    chosen: list[str] = []
    have, gap = ", ".join(names), None
    for parameter in positional:
        if parameter.name in names and gap is None:
            chosen.append(parameter.name)
        elif parameter.name in names:
            fix = f"add {gap!r}, or leave {parameter.name!r} out with select"
            raise ValueError(f"{label} takes {gap!r} before {parameter.name!r}, the data have only {have}; {fix}")
        elif parameter.default is parameter.empty:
            raise ValueError(f"{label} wants {parameter.name!r}, the data have {have}; rename one of them")
        else:
            gap = gap or parameter.name
    if rest and gap is None:
        chosen += [name for name in names if name not in chosen]
    if not chosen:
        raise ValueError(f"{label} takes none of the data's {have}; rename one of them")
    return chosen


def _by_position(function: Callable[..., Any], count: int) -> list[str]:
    label, positional, rest = _parameters(function)
    required = sum(parameter.default is parameter.empty for parameter in positional)
    if count < max(required, 1) or (count > len(positional) and rest is None):
        takes = ", ".join([parameter.name for parameter in positional] + ([f"*{rest}"] if rest else []))
        raise ValueError(f"{label} takes ({takes}), the data are {count} tensors; pass as many, or name them in a dict")
    names = [parameter.name for parameter in positional[:count]]
    return names + [f"{rest}{number}" for number in range(count - len(names))]


def _first(dataset: Any) -> Any:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(f"{type(dataset).__name__} has no length; pass a dataset with __len__ and __getitem__")
    if len(dataset) == 0:
        raise ValueError(f"{type(dataset).__name__} is empty; pass a dataset with at least one row")
    return dataset[0]


def _width(item: Any) -> int:
    return len(item) if isinstance(item, tuple | list) else 1


def _tensor(name: str, value: Any, main: bool) -> Tensor:
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
    if main and value.dtype in (torch.bool, torch.uint8):
        return value.to(torch.get_default_dtype())
    return value if value.is_floating_point() or value.dtype == torch.bool else value.long()


def _cast(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=tensor.is_pinned())


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, an integer of at least 1 is wanted; pass batch_size=128")


def _check_levels(levels: int) -> int:
    if not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels is {levels!r}, an integer of at least 2 is wanted; pass 256 for bytes")
    return levels


def _seed(seed: int, *use: int) -> int:
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}, an integer of at least 0 is wanted; pass seed=0")
    return int(np.random.SeedSequence(seed, spawn_key=use).generate_state(1, np.uint64)[0])


def _generator(device: torch.device | str, seed: int, *use: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(_seed(seed, *use))
