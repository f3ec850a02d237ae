"""Readers: what a known data set or a file holds, by part ("train", "validation", "test") and by name."""

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.sparse import check_indices
from pyrovae.data.sprites import Sprites

__all__ = ["IDX", "NAMES", "Parts", "arrays", "cifar10", "contents", "digits", "idx", "images", "omniglot", "sprites"]

Parts = dict[str, dict[str, Any]]  # "train", "validation", "test" -> named arrays

IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("digits", *IDX, "omniglot", "cifar10", "sprites", "20newsgroups")


def digits() -> Parts:
    """scikit-learn's digits: x (1, 8, 8), k/16, and y."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    return {"train": {"x": bundle.images[:, None] / 16, "y": bundle.target}}


def idx(name: str, root: Path, download: bool) -> Parts:
    """MNIST or a set in its format, named in `IDX`: x (1, 28, 28), k/255, and y."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    folder = root / IDX[name] / "raw"
    files = [folder / f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not all(file.exists() for file in files):
        _torchvision(name, IDX[name], root, download)
    contents = []
    for file in files:  # not by torchvision's class, which does not say which file is damaged
        try:
            contents.append(read_image_file(str(file)) if "images" in file.name else read_label_file(str(file)))
        except Exception as error:  # AssertionError, KeyError, RuntimeError, ValueError, by where the file ends
            raise ValueError(f"{file} is truncated or damaged ({error}); delete it and pass download=True") from error
    return {
        "train": {"x": _unit(contents[0][:, None]), "y": contents[1]},
        "test": {"x": _unit(contents[2][:, None]), "y": contents[3]},
    }


def omniglot(root: Path, download: bool) -> Parts:
    """Omniglot, shrunk by area averages: x (1, 28, 28), k/255, ink is 1, and y."""
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


def cifar10(root: Path, download: bool) -> Parts:
    """CIFAR-10: x (3, 32, 32), k/255, and y."""
    parts = {}
    for part, train in {"train": True, "test": False}.items():
        # its files are pickles: torchvision compares their checksums with the published ones before it opens them
        dataset = _torchvision("cifar10", "CIFAR10", root, download, train=train)
        parts[part] = {"x": _unit(dataset.data.transpose(0, 3, 1, 2)), "y": np.array(dataset.targets)}
    return parts


def sprites() -> Parts:
    """Sprites small enough for a CPU: x (1, 32, 32), bits, y, the shape, and factors (5,)."""
    return {"train": {**Sprites(32, num_orientations=20, num_positions=8).tensors()}}


def images(folder: Path) -> Parts:
    """A folder of images of one size: x (1, H, W) if grey, else (3, H, W), k/255, and y if it has subfolders."""
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


def arrays(name: str) -> Parts:
    """A .npy or .npz file, its values as they are; a name that is no path is refused here, with those nearest to it."""
    path = Path(name)
    if path.suffix not in (".npy", ".npz") or not path.exists():
        if path.exists():
            raise ValueError(f"{path} is not a .npy or .npz file or a folder of images; save it with numpy.savez")
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(f"there is no {path.absolute()}; pass a .npy or .npz file or a folder of images")
        near = difflib.get_close_matches(name.lower(), NAMES, n=2, cutoff=0.4)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"there are no data called {name!r}; {guess}pass one of {', '.join(NAMES)}, or a path")
    content = contents(path)
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


def contents(path: Path) -> dict[str, Any]:
    """The arrays of a .npz file by name; x of a .npy file, or of a matrix that scipy.sparse.save_npz wrote."""
    with open(path, "rb") as file:
        pickled = file.read(1) == b"\x80"
        file.seek(0)
        try:
            content: Any = np.load(file, allow_pickle=False)
            content = {"x": content} if isinstance(content, np.ndarray) else {key: content[key] for key in content}
        except Exception as error:  # a dozen types from numpy, zipfile and zlib
            if pickled or "Object arrays" in str(error):
                what = "has pickled Python objects, which are never loaded (allow_pickle=False); save arrays of numbers"
                raise ValueError(f"{path} {what}") from error
            raise _damaged(path, error) from error
    is_matrix = {"data", "shape", "format"} <= set(content) and content["format"].dtype.kind in "SU"
    return {"x": _matrix(path, content)} if is_matrix else content


def _matrix(path: Path, content: dict[str, Any]) -> Any:
    """scipy's matrix, of which nothing is computed before its indices are known to lie inside it."""
    import scipy.sparse

    if content["format"].tolist() in ("dia", b"dia"):
        raise ValueError(f"{path} has a matrix of format dia, wanted csr, csc, bsr or coo; save matrix.tocsr()")
    try:
        for name in ("indices", "indptr", "row", "col", "coords"):
            if name in content and content[name].dtype.kind not in "iu":  # load_npz would round them
                raise ValueError(f"{name} is of {content[name].dtype}, integers are wanted")
        matrix = scipy.sparse.load_npz(path)
        check_indices(matrix)
    except Exception as error:  # AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError, by what is wrong
        raise _damaged(path, error) from error
    return matrix


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is truncated or damaged ({error}); copy or save it again")


def _torchvision(name: str, kind: str, root: Path, download: bool, **options: bool) -> Any:
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, kind)(root, download=download, **options)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        message = f"{name} is not in root={root} ({reason}); pass download=True, or root= with the folder that has it"
        raise FileNotFoundError(message) from error


def _unit(values: Any) -> Tensor:
    return torch.as_tensor(values).to(torch.get_default_dtype()) / 255
