import functools

import numpy as np
import pytest
import torch
from numbered import Endless, Items, rows
from torch.utils.data import TensorDataset

from pyrovae.data import Data, Split, Stream, match


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
