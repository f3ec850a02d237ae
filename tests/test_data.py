import functools
import io
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pyrovae.data import Data, Split, Stream, bernoulli, bits_per_dimension, dequantize, load, match


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


@pytest.fixture
def untouched():
    """Fails the test if it moved torch's or NumPy's global generator."""
    before, legacy = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


# Split ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("x", np.float64, torch.float32),
        ("x", np.float16, torch.float32),
        ("x", np.dtype(">f4"), torch.float32),
        ("x", np.uint8, torch.float32),
        ("x", np.bool_, torch.float32),
        ("x", np.int32, torch.int64),
        ("y", np.uint8, torch.int64),
        ("y", np.int16, torch.int64),
        ("y", np.bool_, torch.bool),
        ("y", np.float64, torch.float32),
    ],
)
def test_arrays_become_tensors(name, kind, wanted):
    values = {"x": np.zeros((3, 2)), name: np.array([[1, 0], [0, 1], [1, 1]]).astype(kind)}
    split = Split(values)
    assert split[name].dtype == wanted
    assert split[name].tolist() == [[1, 0], [0, 1], [1, 1]]
    values[name][:] = 0
    assert split[name].sum() == 4  # a copy


def test_default_dtype_holds_for_arrays_and_not_for_tensors():
    torch.set_default_dtype(torch.float64)
    try:
        assert Split({"x": np.zeros((2, 1), np.float32)})["x"].dtype == torch.float64
        assert Split({"x": torch.zeros(2, 1, dtype=torch.uint8)})["x"].dtype == torch.float64
        assert Split({"x": torch.zeros(2, 1, dtype=torch.float32)})["x"].dtype == torch.float32
        assert load("digits", binarize=None).train["x"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert Split({"x": torch.zeros(2, 1, dtype=torch.float64)})["x"].dtype == torch.float64


def test_read_only_and_reversed_arrays():
    array = np.arange(3.0)[::-1]
    array.flags.writeable = False
    assert Split({"x": array})["x"].tolist() == [2, 1, 0]


def test_split_shows_its_rows():
    split = rows()
    assert (len(split), split.names, split.event_shape) == (10, ("x", "y"), (2,))
    assert list(split.tensors) == ["x", "y"]
    assert torch.equal(split["y"], torch.arange(10))
    assert Split({"a": torch.zeros(3, 4, 5), "b": torch.zeros(3)}).event_shape == (4, 5)
    assert repr(split) == "Split(10 rows: x (2,) float64, y () int64)"
    with pytest.raises(KeyError):
        split["z"]


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (torch.zeros(3), TypeError, "tensors is a Tensor, a mapping"),
        ({}, ValueError, "tensors is empty"),
        ({"x": torch.zeros(0, 2)}, ValueError, r"x has shape \(0, 2\) and no rows"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\) and no rows"),
        ({"x": torch.zeros(3, 2), "y": torch.zeros(4)}, ValueError, "y has 4 rows, x has 3"),
        ({"y": torch.zeros(4), "x": torch.zeros(3, 2)}, ValueError, "y has 4 rows, x has 3"),
        (
            {"x": torch.tensor([[0, 1], [math.nan, 1], [math.inf, math.nan]])},
            ValueError,
            "x has 3 NaN .* first in row 1",
        ),
        ({"x": torch.zeros(3), "w": np.array([0, 0, -np.inf])}, ValueError, "w has 1 NaN .* first in row 2"),
        ({"x": np.array(["a", "b"])}, TypeError, "x is an array of <U1"),
        ({"x": np.array([None, 1])}, TypeError, "x is an array of object"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, TypeError, "x is a torch.complex64"),
        ({"x": [1.0, 2.0]}, TypeError, "x is a list"),
    ],
)
def test_split_refuses(tensors, error, message):
    with pytest.raises(error, match=message):
        Split(tensors)


@pytest.mark.parametrize("index", [[3, 1], torch.tensor([3, 1]), np.array([3, 1])])
def test_rows_in_the_order_asked(index):
    x, y = rows().rows(index)
    assert x.tolist() == [[3, 30], [1, 10]]
    assert y.tolist() == [3, 1]


def test_subset_takes_masks_and_slices_and_keeps_the_rest():
    split = rows(transform=lambda t: {**t, "y": -t["y"]}).select("y")
    assert split.subset(torch.arange(10) > 7).rows([0, 1])[0].tolist() == [-8, -9]
    assert split.subset(slice(2, 4)).names == ("y",)
    with pytest.raises(ValueError, match="no rows"):
        split.subset([])


def test_select_orders_and_drops_after_the_transform():
    split = rows(transform=lambda t: {"x": t["x"] + 1, "y": t["x"][:, 1].long()})  # y needs x
    (y,) = split.select("y").rows([2])
    assert y.tolist() == [20]
    y, x = split.select("y", "x").rows([2])
    assert (y.tolist(), x.tolist()) == ([20], [[3, 21]])
    assert split.names == ("x", "y")
    with pytest.raises(ValueError, match="z is not in the data; select among x, y"):
        split.select("x", "z")


def test_transform_that_loses_a_tensor():
    with pytest.raises(ValueError, match="the transform returned no y"):
        rows(transform=lambda t: {"x": t["x"]}).rows([0])


def test_to_casts_floating_tensors_only():
    split = rows().to(dtype=torch.float32)
    assert (split["x"].dtype, split["y"].dtype) == (torch.float32, torch.int64)
    assert rows().to("meta")["x"].device.type == "meta"


def test_fixed_is_the_transform_drawn_once_from_the_seed(untouched):
    split = Split({"x": torch.full((50, 4), 0.5), "y": torch.arange(50)}, transform=bernoulli).select("x")
    fixed = split.fixed(7)
    assert fixed.transform is None
    assert fixed.names == ("x",)
    assert torch.equal(fixed["y"], split["y"])
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        assert torch.equal(fixed["x"], bernoulli(split.tensors)["x"])
    assert torch.equal(fixed.rows(slice(None))[0], fixed["x"])
    assert not torch.equal(fixed["x"], split.fixed(8)["x"])


# the order of an epoch, for Split and Stream --------------------------------------------------------------------------


@pytest.fixture(params=["split", "stream of tuples", "stream of dicts"])
def source(request):
    if request.param == "split":
        return rows()
    if request.param == "stream of tuples":
        return Stream(Items(), ("x", "y"))
    return Stream(Items(make=lambda x, y: {"x": x, "y": y}))


def test_an_epoch_has_each_row_once(source, untouched):
    batches = list(source.batches(4, seed=0, epoch=0))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert sorted(numbers(batches)) == list(range(10))
    assert all(torch.equal(x[:, 1], 10 * y) for x, y in batches)


def test_order_depends_on_seed_and_epoch_only(source):
    order = numbers(source.batches(4, seed=3, epoch=5))
    torch.rand(3)
    assert numbers(source.batches(4, seed=3, epoch=5)) == order
    assert numbers(source.batches(10, seed=3, epoch=5)) == order
    others = [numbers(source.batches(4, seed=s, epoch=e)) for s, e in [(3, 4), (4, 5), (5, 3), (0, 0)]]
    assert order not in others
    assert len({tuple(other) for other in others}) == 4
    assert numbers(rows().batches(4, seed=3, epoch=5)) == order  # a stream reads in the order of a split


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 7])
def test_skip_is_dropping(source, skip):
    assert numbers(source.batches(4, seed=1, epoch=2, skip=skip)) == numbers(
        list(source.batches(4, seed=1, epoch=2))[skip:]
    )


def test_skip_computes_nothing():
    calls = []
    split = rows(transform=lambda t: calls.append(len(t["y"])) or t)
    list(split.batches(4, seed=1, epoch=2, skip=2))
    assert calls == [2]
    items = Items()
    stream = Stream(items, ("x", "y"))
    items.read.clear()
    assert numbers(stream.batches(4, seed=1, epoch=2, skip=2)) == items.read
    assert len(items.read) == 2


def test_orders_are_uniform():
    # the mean place of row 0 over epochs is 2 for 5 rows; a place has variance 2
    places = [numbers(rows(5).batches(5, seed=0, epoch=epoch)).index(0) for epoch in range(1000)]
    mean, error = np.mean(places), math.sqrt(2 / 1000)
    print(f"mean place {mean:.3f}, exact 2, standard error {error:.3f}")
    assert abs(mean - 2) < 4 * error


def test_sequential_is_in_order(source, untouched):
    assert [y.tolist() for _, y in source.sequential(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert numbers(source.sequential(100)) == list(range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"batch_size": 11}, "batch_size is 11 for 10 rows; pass batch_size<=10"),
        ({"skip": -1}, "skip is -1"),
        ({"epoch": -1}, "epoch is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_batches_refuse_before_the_first_batch(source, options, message):
    with pytest.raises(ValueError, match=message):
        source.batches(**{"batch_size": 4, "seed": 0, "epoch": 0, **options})


# Stream ---------------------------------------------------------------------------------------------------------------


def test_stream_converts_what_items_hold(untouched):
    def make(x, y):
        return {"x": np.full((2, 2), y, np.uint8), "y": np.uint8(y), "w": float(y), "file": f"{y}.png"}

    stream = Stream(Items(make=make)).select("y", "x", "w")
    assert (len(stream), stream.names, stream.event_shape) == (10, ("y", "x", "w"), (2, 2))
    y, x, w = next(stream.sequential(3))
    assert (y.dtype, x.dtype, w.dtype) == (torch.int64, torch.float32, torch.float32)
    assert x.tolist() == [[[row] * 2] * 2 for row in range(3)]
    assert next(stream.to(dtype=torch.float64).sequential(3))[1].dtype == torch.float64
    assert next(stream.to(dtype=torch.float64).to("cpu").sequential(3))[0].dtype == torch.int64
    assert repr(stream) == "Stream(10 rows: y, x, w; event_shape (2, 2))"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_read_the_same(untouched):
    stream = Stream(Items(), ("x", "y"), num_workers=1)
    assert numbers(stream.batches(4, seed=3, epoch=5)) == numbers(rows().batches(4, seed=3, epoch=5))


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Stream(Endless()), TypeError, "Endless has no length"),
        (lambda: Stream(Items(0)), ValueError, "Items is empty"),
        (lambda: Stream(Items()), ValueError, "names is None, items of the dataset hold 2 tensors"),
        (lambda: Stream(Items(), ["x"]), ValueError, "names is .*hold 2 tensors"),
        (lambda: Stream(Items(make=lambda x, y: {"x": x}), ["z"]), ValueError, "names is .*hold x; pass one"),
        (lambda: Stream(Items(make=lambda x, y: Image.new("L", (2, 2))), ["x"]), TypeError, "x is a Image.*ToTensor"),
        (lambda: Stream(Items(), ["x", "y"]).select("z"), ValueError, "z is not in the data; select among x, y"),
        (
            lambda: next(Stream(Items(make=lambda x, y: x[:y]), ["x"]).sequential(3)),
            ValueError,
            "x has items of shapes",
        ),
    ],
)
def test_stream_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Data -----------------------------------------------------------------------------------------------------------------


def test_data_knows_its_splits():
    data = Data(rows(6), test=rows(2), name="numbers", levels=4)
    assert data.event_shape == (2,)
    assert list(data.splits) == ["train", "test"]
    assert repr(data) == "Data('numbers': train 6, test 2 rows; event_shape (2,), levels 4)"
    with pytest.raises(ValueError, match=r"test has event shape \(3,\), train \(2,\)"):
        Data(rows(6), test=Split({"x": torch.zeros(2, 3)}))


# match ----------------------------------------------------------------------------------------------------------------


class Pair(torch.nn.Module):
    def model(self, x, y=None):
        pass

    @functools.wraps(model)
    def wrapped(self, *args, **kwargs):
        pass

    def forward(self, y):
        pass


def swapped(y, x):
    pass


def only_x(x):
    pass


def optional(x, mask=None, y=None):
    pass


def everything(*batch):
    pass


def x_and_rest(y, *rest, scale=1.0):
    pass


def keyword(x, *, y):
    pass


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (only_x, ("x",)),
        (swapped, ("y", "x")),
        (everything, ("x", "y")),
        (x_and_rest, ("y", "x")),
        (Pair().model, ("x", "y")),
        (Pair().wrapped, ("x", "y")),
        (Pair(), ("y",)),
        (functools.partial(swapped, x=0), ("y",)),
        (functools.partial(swapped, 0), ("x",)),
        (lambda x, scale=1.0: None, ("x",)),
    ],
)
@pytest.mark.parametrize("kind", ["split", "data", "dict", "stream", "dataset of dicts"])
def test_match_by_name(function, names, kind):
    data = {
        "split": rows(),
        "data": Data(rows(), test=rows(3)),
        "dict": rows().tensors,
        "stream": Stream(Items(), ("x", "y")),
        "dataset of dicts": Items(make=lambda x, y: {"x": x, "y": y}),
    }[kind]
    matched = match(data, function)
    assert (matched.names, len(matched), matched.event_shape) == (names, 10, (2,))
    batch = dict(zip(names, next(matched.sequential(10)), strict=True))
    assert all(torch.equal(batch[name], rows()[name]) for name in names)


@pytest.mark.parametrize(
    ("function", "names", "count"),
    [
        (only_x, ("x",), 1),
        (swapped, ("y", "x"), 2),
        (Pair().model, ("x",), 1),
        (Pair().wrapped, ("x", "y"), 2),
        (optional, ("x", "mask"), 2),
        (everything, ("batch0", "batch1"), 2),
        (x_and_rest, ("y", "rest0"), 2),
    ],
)
@pytest.mark.parametrize("kind", ["tuple", "list", "arrays", "tensor dataset", "dataset"])
def test_match_by_position(function, names, count, kind):
    first, second = torch.arange(6.0).reshape(3, 2), torch.arange(3)
    tensors = (first, second)[:count]
    data = {
        "tuple": tensors,
        "list": list(tensors),
        "arrays": tuple(tensor.numpy() for tensor in tensors),
        "tensor dataset": TensorDataset(*tensors),
        "dataset": torch.utils.data.Subset(TensorDataset(*tensors), range(3)),
    }[kind]
    matched = match(data, function)
    assert matched.names == names
    assert matched.event_shape == (() if names == ("y", "x") else (2,))
    batch = next(matched.sequential(3))
    assert all(torch.equal(got, want) for got, want in zip(batch, tensors, strict=True))
    assert isinstance(matched, Stream if kind == "dataset" else Split)


def test_match_bare_tensor_and_array():
    assert torch.equal(match(torch.eye(3), only_x)["x"], torch.eye(3))
    assert torch.equal(match(np.eye(3), lambda images: None)["images"], torch.eye(3))
    assert match(np.eye(3, dtype=np.uint8), lambda images: None)["images"].dtype == torch.float32


def test_match_keeps_the_transform_whole():
    split = rows(transform=lambda t: {**t, "y": t["x"][:, 1]})
    (y,) = match(split, lambda y: None).rows([4])
    assert y.tolist() == [40]


@pytest.mark.parametrize(
    ("data", "function", "error", "message"),
    [
        (rows(), lambda z: None, ValueError, "wants 'z', the data have x, y"),
        (rows(), lambda x, z: None, ValueError, "wants 'z', the data have x, y"),
        (
            rows(),
            optional,
            ValueError,
            "takes 'mask' before 'y', the data have only x, y; add 'mask', or leave 'y' out",
        ),
        (rows(), keyword, ValueError, "keyword wants 'y' by keyword"),
        (rows(), lambda: None, ValueError, "takes none of the data's x, y"),
        (rows(), "model", TypeError, "function is a str"),
        (torch.eye(3), swapped, ValueError, r"swapped takes \(y, x\), the data are 1 tensors"),
        ((torch.eye(3),) * 2, only_x, ValueError, r"only_x takes \(x\), the data are 2 tensors"),
        ((), everything, ValueError, r"everything takes \(\*batch\), the data are 0 tensors"),
        (Items(), only_x, ValueError, r"only_x takes \(x\), the data are 2 tensors"),
        (Items(0), only_x, ValueError, "Items is empty"),
        (Endless(), only_x, TypeError, "Endless has no length"),
        ("digits", only_x, TypeError, "data hold a str.*load"),
        ([[1.0, 2.0]], only_x, TypeError, "data hold a list"),
        (torch.zeros(0, 3), only_x, ValueError, "no rows"),
    ],
)
def test_match_refuses(data, function, error, message):
    with pytest.raises(error, match=message):
        match(data, function)


def test_select_is_the_way_out_of_a_gap():
    assert match(rows().select("x"), optional).names == ("x",)


# transforms -----------------------------------------------------------------------------------------------------------


def test_bernoulli_has_the_mean_x():
    p = torch.tensor([0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
    n = 40_000
    torch.manual_seed(0)
    drawn = bernoulli({"x": p.expand(n, -1), "y": torch.arange(n)})
    assert torch.equal(drawn["y"], torch.arange(n))
    assert set(drawn["x"].unique().tolist()) == {0, 1}
    mean, error = drawn["x"].mean(0), (p * (1 - p) / n).sqrt()
    print(f"mean {mean.tolist()}, exact {p.tolist()}, standard error {error.tolist()}")
    assert ((mean - p).abs() <= 4 * error + 1e-7).all()
    assert mean[0] == 0
    assert mean[-1] == 1
    covariance = torch.cov(drawn["x"][:, 2:4].T)[0, 1]  # pixels are drawn apart: 0 with standard error sd sd / sqrt(n)
    assert covariance.abs() < 4 * math.sqrt(0.21 * 0.25 / n)


@pytest.mark.parametrize("levels", [2, 17, 50, 256])  # 49 (k / 49) is below k in floats for some k
def test_dequantize_stays_in_its_bin(levels, monkeypatch):
    k = torch.arange(levels)
    x = {"x": k / (levels - 1), "y": k}
    transform = dequantize(levels)
    torch.manual_seed(0)
    y = torch.stack([transform(x)["x"] for _ in range(4000)])
    assert torch.equal((y.double() * levels).floor().unique(dim=0), k.double()[None])
    u = (y * levels - k).mean(0)  # uniform: 1/2 with standard error sqrt(1 / 12 / 4000); 4.5 of them for 256 levels
    assert ((u - 0.5).abs() < 4.5 * math.sqrt(1 / 12 / 4000)).all()
    assert torch.equal(transform(x)["y"], k)
    monkeypatch.setattr(torch, "rand_like", lambda k: torch.full_like(k, 1 - 2**-24))  # the largest draw there is
    assert torch.equal((transform(x)["x"].double() * levels).floor(), k.double())
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    assert torch.equal(transform(x)["x"], k / levels)


def test_bits_of_the_uniform_density():
    assert bits_per_dimension(0.0, (3, 4), levels=256) == 8
    assert bits_per_dimension(0.0, 5, levels=2) == 1
    assert torch.equal(bits_per_dimension(torch.zeros(3), (7,), levels=4), torch.full((3,), 2.0))


def test_bits_of_a_discrete_distribution_by_hand():
    # P(k) = 1/2, 1/4, 1/8, 1/8: 1, 2, 3, 3 bits; the density is 4 P(k) all over bin k, so Jensen's bound is tight
    bits = torch.tensor([1.0, 2, 3, 3], dtype=torch.float64)
    probability = 0.5**bits
    x = torch.tensor([[0, 1], [2, 3], [3, 0]])
    discrete = probability[x].log().sum(-1)
    exact = torch.tensor([1.5, 3.0, 2.0], dtype=torch.float64)  # means of the bits of the two pixels
    assert torch.allclose(bits_per_dimension(discrete, (2,)), exact, rtol=0, atol=1e-15)
    y = dequantize(4)({"x": x.double() / 3})["x"]
    density = (4 * probability)[(4 * y).long()].log().sum(-1)
    assert torch.allclose(bits_per_dimension(density, (2,), levels=4), exact, rtol=0, atol=1e-15)


@pytest.mark.parametrize("levels", [1, 0, 2.5])
def test_levels_refused(levels):
    with pytest.raises(ValueError, match="levels is"):
        dequantize(levels)
    with pytest.raises(ValueError, match="levels is"):
        bits_per_dimension(0.0, 3, levels=levels)


def test_event_shape_refused():
    with pytest.raises(ValueError, match="event_shape is"):
        bits_per_dimension(0.0, (3, 0))


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


# load: files ----------------------------------------------------------------------------------------------------------


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


# load: folders of images ----------------------------------------------------------------------------------------------


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
