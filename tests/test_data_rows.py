import math

import numpy as np
import pytest
import torch
from numbered import Endless, Items, numbers, rows
from PIL import Image

import pyrovae as pv
from pyrovae.data import Data, Split, Stream, bernoulli, load, masked, pixels

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


def as_stream(columns):
    return Stream([{name: values[row] for name, values in columns.items()} for row in range(3)])


def test_images_before_a_floating_condition_are_the_data():
    images, angle = (torch.rand(20, 8) > 0.5).byte(), torch.randn(20)
    split = Split({"image": images, "angle": angle})
    assert (split["image"].dtype, split.event_shape) == (torch.get_default_dtype(), (8,))
    items = [{"image": image, "angle": a} for image, a in zip(images.numpy(), angle.tolist(), strict=True)]
    stream = Stream(items, ("image", "angle"))
    assert (next(stream.sequential(5))[0].dtype, stream.event_shape) == (torch.get_default_dtype(), (8,))


@pytest.mark.parametrize("make", [Split, as_stream])
@pytest.mark.parametrize(
    ("kind", "other", "wanted", "event_shape"),
    [
        (np.bool_, np.float32, torch.bool, (2,)),  # a mask
        (np.uint8, np.float64, torch.int64, (2,)),  # a label
        (np.uint8, np.int64, torch.float32, ()),  # data, and labels of them
        (np.bool_, np.uint8, torch.float32, ()),
    ],
)
def test_labels_and_masks_may_come_before_the_data(make, kind, other, wanted, event_shape):
    data = make({"first": np.array([1, 0, 1]).astype(kind), "second": np.ones((3, 2), other)})
    first, _ = next(data.sequential(3))
    assert (first.dtype, first.tolist(), data.event_shape) == (wanted, [1, 0, 1], event_shape)


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


def test_data_are_no_part_of_the_graph_that_made_them():
    """Else the second step goes through it again, and a leaf has its gradient filled by the fit."""
    leaf = torch.rand(12, 3, requires_grad=True)
    made = torch.nn.Linear(3, 3)(leaf)
    for x in (leaf, made, made.to_sparse()):
        assert not Split({"x": x})["x"].to(dtype=torch.float64).to_dense().requires_grad
    (batch,) = next(Stream(Items(make=lambda x, y: leaf[y]), ["x"]).sequential(3))
    assert not batch.requires_grad
    for x in (leaf, made):
        pair = pv.VAE(3, 2, hidden=(4,), likelihood=pv.conditionals.LearnedNormal)
        pv.fit(pair, x, max_epochs=2, batch_size=4, compile=False, progress=False)
    assert leaf.grad is None
    assert made.requires_grad, "the tensor that was passed has changed"


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


class Tagged(Split):
    """A user's own kind, which takes something else."""

    def __init__(self, tensors, tag):
        super().__init__(tensors, transform=bernoulli)
        self.tag = tag


def test_a_split_of_ones_own_stays_one():
    split = Tagged({"x": torch.rand(10, 2), "y": torch.arange(10)}, "mine").select("x")
    for made in (split.subset([1, 2]), split.to("cpu"), split.fixed(0), masked(split, pixels()), split.divided(0.3)[1]):
        assert (type(made), made.tag, made.names[0]) == (Tagged, "mine", "x")
    assert split.fixed(0).transform is None
    assert split.subset([1, 2]).transform is bernoulli
    assert set(split.tensors) == {"x", "y"}, "the split that was there has changed"


def test_a_fraction_is_held_out():
    left, held = rows(10).divided(0.3)
    assert sorted([*left["y"].tolist(), *held["y"].tolist()]) == list(range(10))
    assert (len(left), len(held), len(rows(10).divided(0.01)[1])) == (7, 3, 1)


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
    assert torch.equal(fixed["x"], split.fixed(7)["x"])
    with torch.random.fork_rng([]):
        torch.manual_seed(7)  # what a caller draws from the same seed is another stream
        assert not torch.equal(fixed["x"], bernoulli(split.tensors)["x"])
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
    assert numbers(source.batches(9, seed=3, epoch=5)) == order
    assert numbers(source.batches(10, seed=3, epoch=5)) == list(range(10))  # all at once: in their own order
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
    places = [numbers(rows(5).batches(4, seed=0, epoch=epoch)).index(0) for epoch in range(1000)]
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


def test_values_that_are_not_finite_are_found_beyond_the_first_chunk():
    x = torch.zeros(5, 2**19)
    x[3, 7], x[4, 2] = math.nan, -math.inf
    with pytest.raises(ValueError, match="x has 2 NaN or infinite values, the first in row 3"):
        Split({"x": x})
