"""Runs whose files were edited: one sentence that names the file, before anything is computed from it."""

import json
import shutil
from functools import partial

import pytest
import torch
from test_checkpoint import reseal

from pyrovae.models import VAE
from pyrovae.training import checkpoint
from pyrovae.training.fit import fit
from pyrovae.training.runs import load

FIX = "copy the run again from its source, or fit anew"
OPTIONS = {
    "seed": 0,
    "compile": False,
    "progress": False,
    "schedule": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
}
BITS = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)).round()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    fit(VAE(4, 2, hidden=(3,)), BITS, max_epochs=1, out=folder, **OPTIONS)
    return folder


def go_on(pair, folder):
    return fit(pair, BITS, max_epochs=2, out=folder, resume=True, **OPTIONS)


def edited(fitted, folder, file, place, *value):
    """A copy of the run with another value there, or none; the manifest agrees, as somebody hostile would see to."""
    shutil.copytree(fitted, folder, dirs_exist_ok=True)
    path = checkpoint.latest(folder / "checkpoints")
    content = json.loads((path / file).read_text())
    where = content
    for step in place[:-1]:
        where = where[step]
    if value:
        where[place[-1]] = value[0]
    else:
        del where[place[-1]]
    reseal(path, file, json.dumps(content).encode())
    return path / file


S, B, A = "state", "batch", ("pair", "arguments")
EDITS = {
    "state.json": [
        ((S, "best"), (), "no best"),
        ((S, "best"), ([1],), r"best: \[1\], "),
        ((S, "best"), (["1", 0.5],), "best: "),
        ((S, "best"), ([None, "low"],), "best: "),
        ((S, "step"), ("x",), "step: 'x', wanted int"),
        ((S, "step"), (True,), "step: True, wanted int"),
        ((S, "epoch"), (-1,), "epoch: -1, "),
        ((S, "returns_best"), (None,), "returns_best: None, wanted bool"),
        ((S, "seconds"), ([],), r"seconds: \[\], wanted float or int"),
        ((S, "history"), ("x",), "history: 'x', wanted list"),
        ((S, "history"), (["x"],), r"history: \['x'\], "),
        ((S, "history"), ([{"epoch": "x"}],), "history: "),
        ((S, "history"), ([{}],), "history: "),
        ((S, "in_epoch"), ([0, 0],), r"in_epoch: \[0, 0\], wanted steps, rows and a loss"),
    ],
    "config.json": [
        (("pair",), ("VAE",), "pair: 'VAE', wanted dict or None"),
        (("seed",), (), "no seed"),
        (("plate",), (3,), "plate: 3, wanted str or None"),
        (("objective",), ({},), r"objective: \{\}, wanted str"),
        ((B,), (), "no batch"),
        ((B,), ([],), r"batch: \[\], "),
        ((B, 0), ("x",), "batch: "),
        ((B, 0), ([[20, 4]],), "batch: "),
        ((B, 0, 1), ("save",), "batch: .*'save'"),
        ((B, 0, 1), ("nonsense",), "batch: .*'nonsense'"),
        ((B, 0, 1), (["float32"],), "batch: "),
        ((B, 0, 0), (20,), "batch: "),
        ((B, 0, 0), ([20, -4],), "batch: "),
        ((B, 0, 0), ([20, "4"],), "batch: "),
        ((B, 0, 0), ([20.0, 4],), "batch: "),
        ((B, 0, 0), ([10**13, 6],), r"batch: .* of at most 2147483648 numbers"),
        ((B, 0, 0), ([0, 10**30],), r"batch: .* of at most 2147483648 numbers"),
        ((B,), ([[[20, 4], "float32"]] * 2,), r"a batch that the pair does not take \(.*positional argument"),
        (("pair", "name"), (5,), "a pair that can't be made .there is no pair called '5'"),
        (("pair", "arguments"), ("abc",), r"a pair that can't be made \("),
        ((*A, "hidden"), ("abc",), r"a pair that can't be made \("),
        ((*A, "hidden"), ({"a": 1},), r"a pair that can't be made \("),
        ((*A, "latent_dim"), (10**13,), r"a pair that can't be made \("),
        ((*A, "latent_dim"), (10**30,), r"a pair that can't be made \("),
    ],
}


@pytest.mark.parametrize(
    ("file", "place", "value", "message"), [(file, *edit) for file, edits in EDITS.items() for edit in edits]
)
def test_an_edited_run_is_refused_by_the_name_of_its_file(file, place, value, message, fitted, tmp_path):
    path = edited(fitted, tmp_path, file, place, *value)
    with pytest.raises(ValueError, match=rf"^{path} has {message}") as refused:
        load(tmp_path)
    assert str(refused.value).endswith(FIX)
    assert len(str(refused.value)) < len(str(path)) + 500


@pytest.mark.parametrize(("place", "value", "message"), EDITS["state.json"])
def test_an_edited_run_does_not_go_on(place, value, message, fitted, tmp_path):
    path = edited(fitted, tmp_path, "state.json", place, *value)
    with pytest.raises(ValueError, match=rf"^{path} has {message}.*{FIX}$"):
        go_on(VAE(4, 2, hidden=(3,)), tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("optimizer", "param_groups"), ()),
        (("optimizer", "param_groups", 0, "params"), ([0],)),
        (("optimizer", "state"), ([],)),
        ((S, "scheduler"), ()),
        ((S, "scheduler"), ("x",)),
    ],
)
def test_values_that_only_torch_understands_name_their_file(place, value, fitted, tmp_path):
    """The pair that was to go on is then as it was given, though the checkpoint has parameters for it."""
    path, pair = edited(fitted, tmp_path, "state.json", place, *value), VAE(4, 2, hidden=(3,))
    before = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^{path} has values from which no training goes on \(.*\); {FIX}$"):
        go_on(pair, tmp_path)
    for name, tensor in pair.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_batch_of_a_run_is_any_that_fits_in_memory(fitted, tmp_path):
    """Its values are ones and zeros of each dtype that data have."""
    change = partial(edited, fitted, tmp_path, "config.json")
    change((B, 0), [[2, 4], "float32"])
    assert load(tmp_path).known.rows == 2
    change((B, 0), [[2, 4], "int64"])
    with pytest.raises(ValueError, match=r"the pair does not run on tensors of shape and type \(2, 4\) int64"):
        load(tmp_path)
