import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pyrovae.data import bernoulli, load

# arrays ---------------------------------------------------------------------------------------------------------------


def test_npy(tmp_path):
    array = np.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "numbers.npy", array)
    data = load(tmp_path / "numbers.npy", seed=4)
    assert (data.name, data.levels, data.train.transform) == ("numbers", None, None)
    assert [len(split) for split in data.splits.values()] == [16, 2, 2]
    x = torch.cat([split["x"] for split in data.splits.values()])
    assert torch.equal(x.sort(0).values, torch.tensor(array, dtype=torch.float32))
    assert not torch.equal(x, x.sort(0).values)


def test_npz_with_one_array(tmp_path):
    np.savez(tmp_path / "a.npz", anything=np.arange(40).astype(np.uint8).reshape(20, 2))
    data = load(str(tmp_path / "a.npz"))
    assert data.train["x"].dtype == torch.float32
    assert max(split["x"].max() for split in data.splits.values()) == 39  # bytes are not divided


def test_npz_with_labels_and_test_set(tmp_path):
    x = np.random.default_rng(0).random((20, 1, 4, 4))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20, dtype=np.uint8), x_test=x[:5], y_test=np.arange(5))
    data = load(tmp_path / "a.npz", binarize=None)
    assert [len(split) for split in data.splits.values()] == [18, 2, 5]
    assert data.train["y"].dtype == torch.int64
    for split in data.splits.values():
        assert torch.equal(split["x"], torch.tensor(x, dtype=torch.float32)[split["y"]])
    with pytest.raises(ValueError, match=r"test is 3, but .*a.npz has test rows of its own"):
        load(tmp_path / "a.npz", test=3)
    assert load(tmp_path / "a.npz").train.transform is bernoulli
    assert load(tmp_path / "a.npz").levels == 2


def test_npz_with_three_splits(tmp_path):
    parts = {"train": np.eye(6), "valid": np.eye(6)[:2], "test": np.eye(6)[:3]}
    np.savez(tmp_path / "a.npz", **parts)
    data = load(tmp_path / "a.npz")
    assert [len(split) for split in data.splits.values()] == [6, 2, 3]
    assert torch.equal(data.validation["x"], torch.eye(6)[:2])
    assert (data.levels, data.train.transform) == (2, None)  # bits already
    named = {"x_train": np.eye(6), "y_train": np.arange(6), "x_validation": np.eye(6)[:2], "y_validation": np.arange(2)}
    np.savez(tmp_path / "b.npz", **named)
    data = load(tmp_path / "b.npz", test=1)
    assert [len(split) for split in data.splits.values()] == [5, 2, 1]
    assert data.validation.names == ("x", "y")


@pytest.mark.parametrize(
    ("shape", "scale", "transform"),
    [
        ((20, 4, 4), 1.0, bernoulli),
        ((20, 1, 4, 4), 1.0, bernoulli),
        ((20, 3, 4, 4), 1.0, None),
        ((20, 4), 1.0, None),
        ((20, 4, 4), 2.0, None),
    ],
)
def test_what_is_binarised_by_default(tmp_path, shape, scale, transform):
    values = np.random.default_rng(0).random(shape) * scale
    values.flat[0] = scale
    np.save(tmp_path / "a.npy", values)
    data = load(tmp_path / "a.npy")
    assert data.train.transform is transform
    assert data.levels == (None if transform is None else 2)
    if scale > 1:
        with pytest.raises(ValueError, match=r"x of .*a.npy is in \[.*, 2\], to binarize it must be in \[0, 1\]"):
            load(tmp_path / "a.npy", binarize="dynamic")
    else:
        assert load(tmp_path / "a.npy", binarize="dynamic").train.transform is bernoulli


def test_negative_values_are_not_binarised(tmp_path):
    np.save(tmp_path / "a.npy", np.linspace(-0.1, 1, 320).reshape(20, 4, 4))
    assert load(tmp_path / "a.npy").train.transform is None
    with pytest.raises(ValueError, match="must be in"):
        load(tmp_path / "a.npy", binarize="static")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_truncated_arrays(tmp_path, save):
    suffix = "npy" if save is np.save else "npz"
    buffer = io.BytesIO()
    save(buffer, np.random.default_rng(0).random((20, 3)))
    whole, file = buffer.getvalue(), tmp_path / f"a.{suffix}"
    file.write_bytes(whole)
    assert len(load(file).train) == 16
    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"a.{suffix} is truncated or damaged"):
            load(file)


def test_damaged_bytes_never_leave_a_raw_error(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.random.default_rng(0).random((20, 3)))
    whole, file = buffer.getvalue(), tmp_path / "a.npz"
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            load(file)
        except ValueError as error:
            assert str(file) in str(error)  # noqa: PT017


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_stay_shut(tmp_path):
    objects = np.array([Harmful(), Harmful()])
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "a.npz", x=objects)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Harmful()))
    for name in ("a.npy", "a.npz", "b.npy"):
        with pytest.raises(
            ValueError, match=f"{name} has pickled Python objects, which are never loaded .allow_pickle=False"
        ):
            load(tmp_path / name)


def test_files_without_data(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.eye(3), labels=np.arange(3))
    with pytest.raises(ValueError, match=r"a.npz has images, labels, and no x for train"):
        load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.eye(3), y_test=np.arange(3))
    with pytest.raises(ValueError, match=r"b.npz has x, y_test, and no x for test"):
        load(tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "c.npz", "w"):
        pass
    with pytest.raises(ValueError, match=r"c.npz has no arrays, and no x for train"):
        load(tmp_path / "c.npz")
    np.save(tmp_path / "d.npy", np.zeros((0, 3)))
    with pytest.raises(ValueError, match="no rows"):
        load(tmp_path / "d.npy")
    np.save(tmp_path / "e.npy", np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="x has 1 NaN or infinite values, the first in row 1"):
        load(tmp_path / "e.npy")
    np.save(tmp_path / "g.npy", np.zeros((50, 0)))
    with pytest.raises(ValueError, match=r"x of .*g\.npy has shape \(50, 0\), rows without a value; save"):
        load(tmp_path / "g.npy")
    np.savez(tmp_path / "f.npz", x=np.eye(3), y=np.arange(4))
    with pytest.raises(ValueError, match="y has 4 rows, x has 3"):
        load(tmp_path / "f.npz")


def test_files_that_are_not_there(tmp_path):
    for name in ("a.npz", "a.npy", "folder/a", "a.csv"):
        with pytest.raises(FileNotFoundError, match=f"there is no .*{name}"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere.npz"):
        load("nowhere.npz")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"a.csv is not a .npy or .npz file or a folder of images"):
        load(tmp_path / "a.csv")


# folders of images ----------------------------------------------------------------------------------------------------


def picture(path, mode="L", size=(5, 4), value=51):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_flat_folder_of_grey_images(tmp_path):
    for number in range(4):
        picture(tmp_path / f"{number}.png", value=51 * number)
    (tmp_path / "README.txt").write_text("no image")
    data = load(tmp_path, binarize=None, validation=1, test=0)
    assert (data.event_shape, data.levels, data.train.names) == ((1, 4, 5), 256, ("x",))
    x = torch.cat([data.train["x"], data.validation["x"]])
    assert sorted(x[:, 0, 0, 0].tolist()) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert load(tmp_path).train.transform is bernoulli


def test_folder_of_classes_in_colour(tmp_path):
    for number in range(3):
        picture(tmp_path / "blue" / f"{number}.png", "RGB", value=(0, 0, 255))
        picture(tmp_path / "red" / f"{number}.png", "RGB", value=(255, 51, 0))
    data = load(tmp_path, validation=2, test=1)
    assert (data.event_shape, data.levels, data.train.transform) == ((3, 4, 5), 256, None)
    colours = torch.tensor([[0, 0, 1], [1, 0.2, 0]])
    for split in data.splits.values():
        assert torch.equal(split["x"], colours[split["y"]][:, :, None, None].expand(-1, 3, 4, 5))


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA"])
def test_other_modes(tmp_path, mode):
    picture(tmp_path / "a.png", mode, value={"1": 1, "LA": (255, 255), "P": 0, "RGBA": (0, 0, 0, 255)}[mode])
    data = load(tmp_path, validation=0, test=0)
    assert data.event_shape == ((1, 4, 5) if mode in ("1", "LA") else (3, 4, 5))
    assert (data.train["x"] == (mode in ("1", "LA"))).all()


def test_images_that_do_not_fit(tmp_path):
    picture(tmp_path / "size" / "a.png")
    picture(tmp_path / "size" / "b.png", size=(5, 5))
    with pytest.raises(ValueError, match=r"b.png is \(1, 5, 5\), .*a.png is \(1, 4, 5\)"):
        load(tmp_path / "size")
    picture(tmp_path / "colour" / "a.png")
    picture(tmp_path / "colour" / "b.png", "RGB", value=(1, 2, 3))
    with pytest.raises(ValueError, match=r"b.png is \(3, 4, 5\), .*a.png is \(1, 4, 5\)"):
        load(tmp_path / "colour")
    picture(tmp_path / "deep" / "a.png", "I;16")
    with pytest.raises(ValueError, match=r"a.png is not a readable 8-bit image \(more than 8 bits"):
        load(tmp_path / "deep")
    picture(tmp_path / "mixed" / "a.png")
    picture(tmp_path / "mixed" / "class" / "a.png")
    with pytest.raises(ValueError, match="mixed has both images and subfolders"):
        load(tmp_path / "mixed")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no images"):
        load(tmp_path / "empty")


def test_truncated_image(tmp_path):
    picture(tmp_path / "a.png", size=(50, 40))
    whole = (tmp_path / "a.png").read_bytes()
    for size in (0, 10, len(whole) // 2):
        (tmp_path / "a.png").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a.png is not a readable 8-bit image"):
            load(tmp_path)
