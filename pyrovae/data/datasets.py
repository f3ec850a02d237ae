"""Data sets by name or from files: read, rows held out, binarised."""

import os
from pathlib import Path
from typing import Literal

from pyrovae.data import readers
from pyrovae.data.corpora import load_corpus
from pyrovae.data.rows import Data, Split
from pyrovae.data.seeds import BITS, derived_seed
from pyrovae.data.sparse import SparseRows
from pyrovae.data.splits import hold_out
from pyrovae.data.transforms import bernoulli

__all__ = ["load"]


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
    * "sprites": (1, 32, 32), bits, with factors (5,): `Sprites` of 20 orientations and 8 x 8 places, 23,040 rows
    * a folder of images of one size, flat or in one subfolder per class: (1, H, W) if grey, else (3, H, W), k/255
    * a .npy file, or a .npz file with x, or one array only, and further named arrays; names that end in _validation (or
      _valid) and _test are those splits, and so are arrays called train, valid and test. Values are as in the file:
      **uint8 is not divided by 255**. Or a sparse matrix of scipy's (`scipy.sparse.save_npz`), which stays sparse
    * a corpus, with its vocabulary: "20newsgroups", or a folder with train.npz and vocab.txt, as in `load_corpus`

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
    if name == "20newsgroups" or (Path(name) / "train.npz").exists():
        drop = name == "20newsgroups"  # of which some documents have no word of the vocabulary
        return load_corpus(name, validation=validation, test=test, seed=seed, drop_empty=drop)
    folder = Path(root or os.environ.get("PYROVAE_DATA", "data"))
    levels: int | None = 256
    last = None  # rows that are held out by custom, from the end
    if name == "digits":
        parts, levels = readers.digits(), 17
    elif name in readers.IDX:
        parts, last = readers.idx(name, folder, download), 10_000
    elif name == "omniglot":
        parts = readers.omniglot(folder, download)
    elif name == "cifar10":
        parts, last = readers.cifar10(folder, download), 5_000
    elif name == "sprites":
        parts, levels = readers.sprites(), 2
    elif Path(name).is_dir():
        parts = readers.images(Path(name))
    else:
        parts, levels = readers.arrays(name), None
    for tensors in parts.values():
        if 0 in (shape := tuple(tensors["x"].shape))[1:]:
            raise ValueError(f"x of {name} has shape {shape}, rows without a value; save an array (N, ...) with some")
    splits = hold_out(name, parts, {"validation": validation, "test": test}, last, seed)

    if isinstance(splits["train"]["x"], SparseRows):
        return Data(**splits, name=Path(name).stem)
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
                splits[part] = split if dynamic else split.fixed(derived_seed(seed, BITS, use))
    return Data(**splits, name=Path(name).stem, levels=2 if bits or binarize else levels)
