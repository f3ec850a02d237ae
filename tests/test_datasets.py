import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits

from pyrovae.data import bernoulli, load


def test_the_import_is_light():
    code = "import sys, pyrovae.data; print({'sklearn', 'torchvision', 'PIL'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


# load: digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns(untouched):
    data = load("digits", binarize=None)
    assert (data.name, data.levels, data.event_shape) == ("digits", 17, (1, 8, 8))
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 1437, "validation": 180, "test": 180}
    original = load_digits()
    pairs = sorted((*image.ravel(), label) for image, label in zip(original.images, original.target, strict=True))
    splits = data.splits.values()
    loaded = [(*(16 * x).flatten().tolist(), int(y)) for s in splits for x, y in zip(s["x"], s["y"], strict=True)]
    assert sorted(loaded) == pairs  # each image once, beside its label
    assert loaded != [(*image.ravel(), label) for image, label in zip(original.images, original.target, strict=True)]


def test_digits_split_depends_on_the_seed_only():
    data, same, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert all(torch.equal(split["x"], same.splits[part]["x"]) for part, split in data.splits.items())
    assert not torch.equal(data.train["y"], other.train["y"])


def test_dynamic_binarisation(untouched):
    grey = load("digits", binarize=None)
    data = load("digits")
    assert data.levels == 2
    assert torch.equal(data.train["x"], grey.train["x"])  # stored grey, drawn by batch
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        first, y = data.train.rows(slice(None))
        second, _ = data.train.rows(slice(None))
    assert not torch.equal(first, second)
    assert torch.equal(y, grey.train["y"])
    x = grey.train["x"]
    for bits in (first, second):
        assert ((bits == 0) | (bits == 1)).all()
        error = (x * (1 - x)).sum().sqrt() / x.numel()
        assert abs(bits.mean() - x.mean()) < 4 * error
    for part in ("validation", "test"):
        split, p = data.splits[part], grey.splits[part]["x"]
        assert split.transform is None
        assert ((split["x"] == 0) | (split["x"] == 1)).all()
        assert (split["x"][p == 0] == 0).all()
        assert (split["x"][p == 1] == 1).all()
        assert abs(split["x"].mean() - p.mean()) < 4 * (p * (1 - p)).sum().sqrt() / p.numel()
        assert torch.equal(split["x"], load("digits").splits[part]["x"])


def test_splits_are_drawn_apart(tmp_path):
    half = np.full((6, 1, 4, 4), 0.5)
    np.savez(tmp_path / "a.npz", train=half, valid=half, test=half)
    for seed in range(3):
        train, validation, test = (
            s["x"] for s in load(tmp_path / "a.npz", binarize="static", seed=seed).splits.values()
        )
        assert not torch.equal(train, validation)
        assert not torch.equal(train, test)
        assert not torch.equal(validation, test)


@pytest.mark.parametrize("binarize", ["auto", "dynamic", "static", None])
def test_bits_are_left_alone(tmp_path, binarize):
    bits = np.random.default_rng(0).integers(0, 2, (20, 1, 4, 4))
    np.save(tmp_path / "a.npy", bits.astype(np.uint8))
    data = load(tmp_path / "a.npy", binarize=binarize)
    assert (data.levels, data.train.transform) == (2, None)
    assert sum(split["x"].sum() for split in data.splits.values()) == bits.sum()


def test_static_binarisation():
    data = load("digits", binarize="static", seed=3)
    again = load("digits", binarize="static", seed=3)
    for part, split in data.splits.items():
        assert split.transform is None
        assert ((split["x"] == 0) | (split["x"] == 1)).all()
        assert torch.equal(split["x"], again.splits[part]["x"])
    assert torch.equal(data.test["x"], load("digits", seed=3).test["x"])


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"validation": 100, "test": 7}, [1690, 100, 7]),
        ({"validation": 0.5}, [719, 898, 180]),
        ({"validation": 0, "test": 0}, [1797]),
    ],
)
def test_rows_held_out(options, sizes):
    assert [len(split) for split in load("digits", **options).splits.values()] == sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": -1}, "validation is -1 of the 1797 rows"),
        ({"test": 1797}, "test is 1797 of the 1797 rows"),
        ({"validation": 1.5}, "validation is 1.5 of the 1797 rows"),
        ({"validation": 1000, "test": 797}, "take all 1797 rows"),
        ({"validation": True}, "validation is True, a number of rows or their fraction is wanted; pass validation=0.1"),
        ({"test": False}, "test is False, a number of rows"),
        ({"binarize": "yes"}, "binarize is 'yes'"),
        ({"seed": -3}, "seed is -3"),
    ],
)
def test_load_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **options)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mnits", "mnist"),
        ("fashionmnist", "fashion-mnist"),
        ("DIGITS", "digits"),
        ("cifar-10", "cifar10"),
        ("omni", "omniglot"),
    ],
)
def test_unknown_name(name, near):
    with pytest.raises(
        ValueError, match=f"no data called '{name}'; did you mean .*{near}.*pass one of digits, mnist, .*cifar10"
    ):
        load(name)
    with pytest.raises(ValueError, match="no data called 'zzz'; pass one of digits, mnist"):
        load("zzz")


# load: torchvision's sets ---------------------------------------------------------------------------------------------

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def idx(path, array):
    dims = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + dims + array.astype(np.uint8).tobytes())


def raw(root, name="mnist", train=12, test=5):
    """Idx files of small noise in torchvision's layout; returns the images."""
    folder = root / FOLDERS[name] / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28))
    for part, chosen in {"train": slice(train), "t10k": slice(train, None)}.items():
        idx(folder / f"{part}-images-idx3-ubyte", images[chosen])
        idx(folder / f"{part}-labels-idx1-ubyte", np.arange(train + test)[chosen])
    return folder, images


@pytest.mark.parametrize("name", FOLDERS)
def test_mnist_like(name, tmp_path, untouched):
    _, images = raw(tmp_path, name)
    data = load(name, root=tmp_path, binarize=None, validation=4)
    assert (data.name, data.levels, data.event_shape) == (name, 256, (1, 28, 28))
    assert [split["y"].tolist() for split in data.splits.values()] == [
        list(range(8)),
        list(range(8, 12)),  # the last rows of train
        list(range(12, 17)),
    ]
    x = torch.cat([split["x"] for split in data.splits.values()])
    assert torch.equal(x, torch.tensor(images, dtype=torch.float32)[:, None] / 255)
    bits = load(name, root=tmp_path, validation=0.25)
    assert bits.levels == 2
    assert bits.train.transform is bernoulli
    assert len(bits.validation) == 3
    assert ((bits.test["x"] == 0) | (bits.test["x"] == 1)).all()
    alone = load(name, root=tmp_path, validation=0)
    assert alone.validation is None
    assert torch.equal(alone.test["x"], bits.test["x"])  # the same bits whatever else is held out


def test_root_from_the_environment(tmp_path, monkeypatch):
    raw(tmp_path / "here")
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "here"))
    assert len(load("mnist", validation=2).train) == 10
    monkeypatch.delenv("PYROVAE_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="root=data"):
        load("mnist")
    raw(tmp_path / "data")
    assert len(load("mnist", validation=2).train) == 10


def test_mnist_customs(tmp_path):
    raw(tmp_path)
    with pytest.raises(ValueError, match="validation is 10000 of the 12 rows of mnist"):
        load("mnist", root=tmp_path)
    with pytest.raises(ValueError, match=r"test is 0.1, but mnist has test rows of its own; leave test=None"):
        load("mnist", root=tmp_path, validation=2, test=0.1)


@pytest.mark.parametrize("name", [*FOLDERS, "omniglot", "cifar10"])
def test_missing_data(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name} is not in root={tmp_path} .*pass download=True, or root="):
        load(name, root=tmp_path)


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_truncated_idx(tmp_path, part, kind):
    folder, _ = raw(tmp_path)
    file = folder / f"{part}-{kind}-ubyte"
    whole = file.read_bytes()
    for size in [*range(min(20, len(whole))), len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{file.name} is truncated or damaged .*download=True"):
            load("mnist", root=tmp_path, validation=2)
    file.write_bytes(b"\xff" * len(whole))
    with pytest.raises(ValueError, match=f"{file.name} is truncated or damaged"):
        load("mnist", root=tmp_path, validation=2)


def test_mnist_with_a_file_missing(tmp_path):
    folder, _ = raw(tmp_path)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="mnist is not in root"):
        load("mnist", root=tmp_path)


def test_download_is_torchvisions(tmp_path, monkeypatch):
    asked = []

    def download(root, *, download, train=True):
        asked.append(download)
        raw(tmp_path)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert len(load("mnist", root=tmp_path, download=True, validation=2).train) == 10
    load("mnist", root=tmp_path, download=True, validation=2)  # nothing is missing any more
    assert asked == [True]


def test_omniglot(tmp_path, monkeypatch):
    class Omniglot(list):
        def __init__(self, root, *, background, download):
            image = Image.new("L", (105, 105), 255)  # paper
            image.paste(0, (0, 0, 15, 30))  # ink, 4 x 8 of the 28 x 28 pixels
            image.paste(51, (90, 90, 105, 105))  # 4 x 4 grey ones
            super().__init__([(image, label) for label in range(20 if background else 3)])

    monkeypatch.setattr(torchvision.datasets, "Omniglot", Omniglot)
    data = load("omniglot", root=tmp_path, binarize=None)
    assert [len(split) for split in data.splits.values()] == [18, 2, 3]
    assert (data.levels, data.event_shape) == (256, (1, 28, 28))
    ink = torch.zeros(28, 28)
    ink[:8, :4], ink[-4:, -4:] = 1, 0.8
    assert all(torch.equal(x, ink) for x in data.train["x"][:, 0])
    labels = torch.cat([data.train["y"], data.validation["y"]])
    assert labels.tolist() != list(range(20))  # its rows are sorted by alphabet: those held out are drawn
    assert labels.sort().values.tolist() == list(range(20))


def test_cifar10(tmp_path, monkeypatch):
    class CIFAR10:
        def __init__(self, root, *, train, download):
            count = 5010 if train else 4
            self.data = np.zeros((count, 32, 32, 3), np.uint8)
            self.data[:, 1, 2, :] = [255, 51, 0]  # row 1, column 2: red, a little green
            self.targets = list(range(count))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR10)
    data = load("cifar10", root=tmp_path)
    assert (data.levels, data.event_shape, data.train.transform) == (256, (3, 32, 32), None)
    assert data.validation["y"].tolist() == list(range(10, 5010))
    assert torch.equal(data.test["x"][0, :, 1, 2], torch.tensor([1, 0.2, 0]))
    assert data.test["x"].sum() == 4 * 1.2


# real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.skipif("PYROVAE_DATA" not in os.environ, reason="PYROVAE_DATA names no folder of data sets")
def test_mnist_itself():
    data = load("mnist", root=os.environ["PYROVAE_DATA"], binarize=None)
    assert [len(split) for split in data.splits.values()] == [50_000, 10_000, 10_000]
    counts = torch.cat([data.train["y"], data.validation["y"]]).bincount().tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # published
    assert data.test["y"].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    mean = torch.cat([data.train["x"], data.validation["x"]]).double().mean().item()
    assert mean == pytest.approx(0.1307, abs=5e-5)  # the well-known mean of the training images
