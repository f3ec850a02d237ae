"""Checkpoints: exact round trips, every kind of damage refused, every crash survived."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from pyrovae.training import checkpoint as module
from pyrovae.training.checkpoint import Checkpoint, latest, random_state, read, save, set_random_state

FILES = ["model.safetensors", "optim.safetensors", "rng.safetensors", "state.json", "config.json"]


def same(a, b):
    """Equal types, structure and bits."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return torch.equal(*raw)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)  # tells -0.0 from 0.0, and nan equals nan


def trained(make, steps=3, dtype=torch.float32):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(dtype)
    optimizer = make([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.3}])
    steps_of(net, optimizer, steps)
    return net, optimizer


def steps_of(net, optimizer, steps):
    x = torch.linspace(-1, 1, 15, dtype=next(net.parameters()).dtype).view(5, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def example(mark=1.0):
    net, optimizer = trained(torch.optim.Adam)
    parameters = {name: torch.full_like(value, mark) for name, value in net.state_dict().items()}
    return Checkpoint(parameters, optimizer.state_dict(), random_state(), {"best": math.inf, "mark": mark}, {"lr": 0.1})


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def reseal(path, name, data):
    """Put `data` in place of a file and make the manifest agree, as somebody hostile would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


# Values -----------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.01, betas=(0.8, 0.95), amsgrad=True),
    "Adam with a tensor lr": lambda groups: torch.optim.Adam(groups[0]["params"], lr=torch.tensor(0.01)),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.01),
    "SGD with momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01, lr_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimizers_round_trip_and_go_on_bit_for_bit(name, dtype, tmp_path):
    net, optimizer = trained(OPTIMIZERS[name], dtype=dtype)
    save(Checkpoint(net.state_dict(), optimizer.state_dict()), tmp_path, step=3)
    again = read(latest(tmp_path))
    assert same(again.optimizer, optimizer.state_dict())
    assert type(again.optimizer["param_groups"]) is list
    if "Adam" in name:
        assert type(again.optimizer["param_groups"][0]["betas"]) is tuple

    other, fresh = trained(OPTIMIZERS[name], steps=0, dtype=dtype)
    other.load_state_dict(again.parameters)
    fresh.load_state_dict(again.optimizer)
    steps_of(net, optimizer, 4)
    steps_of(other, fresh, 4)
    assert same(dict(other.state_dict()), dict(net.state_dict()))
    assert same(fresh.state_dict(), optimizer.state_dict())


LEAVES = {
    "none": None, "true": True, "one": 1, "float one": 1.0, "big": 2**70, "minus zero": -0.0, "tenth": 0.1,
    "tiny": 5e-324, "huge": 1.7976931348623157e308, "nan": math.nan, "inf": [math.inf, (-math.inf,)],
    "text": "é\n\"\ud800", "empty": [(), [], {}, ""], "nested": (1, [2.0, (None, {"a": (True,)})]),
    "number keys": {0: "a", "0": "b", None: 1, 2.5: []}, "truth": {True: 1},
    "looks like ours": {"$float": "nan"}, "and": {"$tuple": [1]}, "or": {"$": {"$dict": []}},
}  # fmt: skip


def test_plain_values_round_trip_exactly_in_strict_json(tmp_path):
    path = save(Checkpoint({}, {"odd": LEAVES}, {}, LEAVES, LEAVES), tmp_path, step=0)
    again = read(path)
    assert same(again.state, LEAVES)
    assert same(again.config, LEAVES)
    assert same(again.optimizer, {"odd": LEAVES})

    def refuse(constant):
        raise AssertionError(constant)

    for name in ("state.json", "config.json", "MANIFEST.json"):
        json.loads((path / name).read_bytes(), parse_constant=refuse)


def test_subclasses_come_back_as_the_plain_type(tmp_path):
    scheduler = torch.optim.lr_scheduler.MultiStepLR(trained(torch.optim.Adam)[1], [2, 2, 5]).state_dict()
    again = read(save(Checkpoint({}, state={"scheduler": scheduler, "loss": np.float64(0.1)}), tmp_path, step=0))
    assert again.state["scheduler"] == scheduler
    assert again.state["scheduler"]["milestones"] == {2: 2, 5: 1}
    assert same(again.state["loss"], 0.1)


def test_tensors_round_trip_with_every_bit(tmp_path):
    nan = torch.tensor([0x7FC00123, -1], dtype=torch.int32).view(torch.float32)  # payloads that a float() would lose
    weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    tensors = {
        "nan": nan, "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "mask": torch.tensor([True, False]),
        "half": torch.randn(3, dtype=torch.bfloat16), "index": torch.arange(3), "weight": weight, "tied": weight,
        "row": weight[1], "turned": weight.T, "expanded": torch.tensor(2.0).expand(2, 2), "$tensor": torch.ones(1),
    }  # fmt: skip
    path = save(Checkpoint(tensors, {"0": {0: weight, "0": nan, "0'": torch.ones(2)}}), tmp_path, step=1)
    again = read(path)
    assert again.parameters.keys() == tensors.keys()
    for name, value in tensors.items():
        assert same(again.parameters[name], value.detach()), name
    assert same(again.optimizer, {"0": {0: weight.detach(), "0": nan, "0'": torch.ones(2)}})
    assert all(value.untyped_storage().resizable() for value in again.parameters.values())  # no views of a buffer
    # What was tied comes back equal, and no two names share memory.
    again.parameters["tied"].zero_()
    assert torch.equal(again.parameters["weight"], weight)
    assert not any(value.requires_grad for value in again.parameters.values())


def test_layout_and_manifest(tmp_path):
    path = save(example(), tmp_path / "run" / "checkpoints", step=123)
    assert path == tmp_path / "run" / "checkpoints" / "step-000000123"
    assert listing(path.parent) == ["step-000000123"]
    assert listing(path) == sorted([*FILES, "MANIFEST.json"])
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["versions"] == {**manifest["versions"], "torch": torch.__version__, "pyro": pyro.__version__}
    for name in FILES:
        data = (path / name).read_bytes()
        assert manifest["files"][name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert json.loads((path / "state.json").read_text())["state"] == {"best": {"$float": "inf"}, "mark": 1.0}


def cyclic():
    value = {}
    value["self"] = value
    return value


def nested(levels):
    value = None
    for i in range(levels):
        value = ({"a": value}, (value,), {1: value}, [value])[i % 4]
    return value


def test_what_is_nested_as_deep_as_allowed_can_be_read(tmp_path):
    values = {"a": nested(99)}
    assert same(read(save(Checkpoint({}, state=values, config=values), tmp_path, step=0)).state, values)
    with pytest.raises(ValueError, match="nested deeper"):
        save(Checkpoint({}, state={"a": nested(100)}), tmp_path, step=1)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"state": {"loss": {"best": np.ones(1)}}}, TypeError, "state.loss.best is a numpy.ndarray"),
        ({"state": {"loss": torch.ones(())}}, TypeError, r"state.loss is a torch.Tensor.*\.item\(\)"),
        ({"config": {"out": Path("a")}}, TypeError, r"config.out is a pathlib\S*Path.*str\(value\)"),
        ({"config": {(1, 2): 3}}, TypeError, r"config has a key \(1, 2\)"),
        ({"optimizer": {"f": print}}, TypeError, "optimizer.f is a"),
        ({"parameters": {"a": [1.0]}}, TypeError, r"parameters\['a'\] is a list"),
        ({"parameters": {"a": torch.eye(2).to_sparse()}}, ValueError, r"parameters\['a'\] is a torch.sparse_coo"),
        ({"parameters": {"a": torch.ones(2, device="meta")}}, ValueError, r"parameters\['a'\] is a meta"),
        ({"parameters": {"__metadata__": torch.ones(2)}}, ValueError, "reserves"),
        ({"state": cyclic()}, ValueError, "state.self.self.* nested deeper than 100 levels"),
        ({"step": -1}, ValueError, "step is -1, wanted at least 0"),
        ({"step": True}, TypeError, "step is True, wanted an int"),
        ({"keep": 0}, ValueError, "keep is 0, wanted at least 1"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(values, error, words, tmp_path):
    options = {"step": 1, **{key: values.pop(key) for key in ("step", "keep") if key in values}}
    with pytest.raises(error, match=words):
        save(Checkpoint(**{"parameters": {}, **values}), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_json_has_a_limit(tmp_path, monkeypatch):
    path = save(example(), tmp_path, step=1)
    monkeypatch.setattr(module, "JSON_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"state.json would have \d+ bytes, more than 1000"):
        save(example(), tmp_path, step=2)
    with pytest.raises(ValueError, match=r"\.json has \d+ bytes, more than 1000"):
        read(path)


# Folders ----------------------------------------------------------------------------------------------------------


def test_keep_protect_and_latest(tmp_path):
    assert latest(tmp_path / "absent") is None
    assert latest(tmp_path) is None
    paths = {step: save(example(step), tmp_path, step=step, keep=2) for step in (1, 2, 10)}
    assert listing(tmp_path) == ["step-000000002", "step-000000010"]
    assert latest(tmp_path) == paths[10]
    save(example(11), tmp_path, step=11, protect=paths[2])
    assert listing(tmp_path) == ["step-000000002", "step-000000011"]
    assert read(paths[2]).state["mark"] == 2
    # By number, not by name; a later step is of another branch, and stays.
    save(example(), tmp_path, step=10**9, keep=3)
    save(example(), tmp_path, step=999_999_999)
    assert listing(tmp_path) == ["step-1000000000", "step-999999999"]
    assert latest(tmp_path).name == "step-1000000000"


def test_the_same_step_is_replaced(tmp_path):
    save(example(1), tmp_path, step=5)
    path = save(example(2), tmp_path, step=5, protect=tmp_path / "step-000000005")
    assert listing(tmp_path) == ["step-000000005"]
    assert read(path).state["mark"] == 2


def test_incomplete_and_foreign_folders_are_ignored_and_leftovers_cleaned(tmp_path):
    path = save(example(), tmp_path, step=1)
    incomplete = tmp_path / "step-000000009"
    shutil.copytree(path, incomplete)
    (incomplete / "MANIFEST.json").unlink()
    dead = tmp_path / ".step-000000009.tmp-999999999"  # above any process id
    ours = tmp_path / f".step-000000008.replaced.tmp-{os.getpid()}"
    alive = tmp_path / f".step-000000007.tmp-{os.getppid()}"
    for folder in (dead, ours, alive, tmp_path / "step-best", tmp_path / ".step-7.tmp-x"):
        shutil.copytree(path, folder)
    (path / "notes.txt").write_text("ignored")
    assert latest(tmp_path) == path
    assert same(read(path).state, example().state)
    save(example(), tmp_path, step=2)
    kept = [alive.name, ".step-7.tmp-x", "step-000000002", incomplete.name, "step-best"]
    assert listing(tmp_path) == sorted(kept)
    # A folder without a manifest is no checkpoint to keep: saving that step takes its place.
    save(example(), tmp_path, step=9)
    assert latest(tmp_path) == incomplete
    assert "step-000000009.replaced" not in listing(tmp_path)


class Killed(BaseException):
    pass


def interrupted_at(monkeypatch, moment, error, calls=("fsync", "rename", "mkdir", "open")):
    """Raise `error` at the call of that number to the operating system; returns the list of calls so far."""
    seen = []

    def watched(real):
        def call(*args, **kwargs):
            seen.append(real.__name__)
            if len(seen) == moment:
                raise error
            return real(*args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return seen


@pytest.mark.parametrize("step", [6, 5])
def test_killed_at_any_moment_leaves_a_readable_checkpoint(step, tmp_path):
    outcomes = []
    for moment in range(1, 100):
        folder = tmp_path / str(moment)
        save(example(1), folder, step=5)
        with pytest.MonkeyPatch.context() as patch:
            seen = interrupted_at(patch, moment, Killed())
            patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a process that is killed cleans nothing
            with contextlib.suppress(Killed):
                save(example(2), folder, step=step)
        if len(seen) < moment:
            break
        found = read(latest(folder)).state["mark"]
        outcomes.append(found)
        assert found in (1, 2)
        save(example(3), folder, step=7)
        assert listing(folder) == ["step-000000007"], moment
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)  # the old one, and from one moment on the new one
    assert set(outcomes) == {1, 2}


@pytest.mark.parametrize("step", [6, 5])
def test_full_disk_leaves_the_previous_checkpoint(step, tmp_path):
    outcomes = []
    for moment in range(1, 8):  # each fsync before the rename
        folder = tmp_path / str(moment)
        before = save(example(1), folder, step=5)
        with pytest.MonkeyPatch.context() as patch:
            seen = interrupted_at(patch, moment, OSError(errno.ENOSPC, "No space left on device"), calls=("fsync",))
            with pytest.raises(
                OSError, match=rf"step {step} cannot be written to .*No space left.*free some"
            ) as caught:
                save(example(2), folder, step=step)
        assert len(seen) == moment
        assert caught.value.errno == errno.ENOSPC
        assert listing(folder) == [before.name]
        assert latest(folder) == before
        outcomes.append(read(before).state["mark"])
    assert outcomes == [1] * 7


def test_all_is_synchronised_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    seen = interrupted_at(monkeypatch, 0, None, calls=("fsync", "rename"))
    save(example(), tmp_path, step=1)
    assert seen[:9] == ["fsync"] * 7 + ["rename", "fsync"]  # six files and their folder; the parent


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=r"step 1 cannot be written to .*pass a folder that can be written"):
            save(example(), folder, step=1)

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", denied)  # the permissions themselves do not bind root, who may run this
    with pytest.raises(PermissionError, match=r"run' \(Permission denied\); .*pass a folder that can be written"):
        save(example(), tmp_path / "run", step=1)


# Damage -----------------------------------------------------------------------------------------------------------


def flip(data, i):
    return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
def test_damage_names_the_file_and_an_intact_older_checkpoint(name, tmp_path):
    older = [save(example(step), tmp_path, step=step, keep=9) for step in (1, 2, 3)]
    (older[2] / "config.json").write_text("{}")  # damaged as well: not to be proposed
    path = save(example(4), tmp_path, step=4, keep=9)
    save(example(5), tmp_path, step=5, keep=9)
    data = (path / name).read_bytes()
    harms = {
        "missing": lambda file: file.unlink(),
        "cut": lambda file: file.write_bytes(data[: len(data) // 2]),
        "emptied": lambda file: file.write_bytes(b""),
        "longer": lambda file: file.write_bytes(data + b"x"),
        "flipped": lambda file: file.write_bytes(flip(data, 0)),
        "a folder": lambda file: (file.unlink(), file.mkdir()),
        "a link": lambda file: (file.rename(tmp_path / "aside"), file.symlink_to(tmp_path / "aside")),
        "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    }
    for kind, harm in harms.items():
        harm(path / name)
        with pytest.raises(ValueError, match=rf"step-000000004' cannot be read: {name} .*step-000000002'$"):
            read(path)
        shutil.rmtree(path / name) if kind == "a folder" else (path / name).unlink(missing_ok=True)
        (path / name).write_bytes(data)
    assert read(path).state["mark"] == 4
    (path / name).unlink()
    for folder in older:
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=f"{name} is missing; no intact older one"):
        read(path)


def test_any_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    """The manifest has no checksum of its own: what may change there unseen is only what is not read."""
    values = Checkpoint({"w": torch.ones(2)}, {"a": torch.ones(1)}, {"cpu": torch.ones(3)}, {"s": 1}, {"c": 2})
    path = save(values, tmp_path, step=1)
    unread = 0
    for name in [*FILES, "MANIFEST.json"]:
        data = (path / name).read_bytes()
        for i in range(len(data)):
            (path / name).write_bytes(flip(data, i))
            try:
                again = read(path)
            except ValueError:
                continue
            assert name == "MANIFEST.json"
            unread += 1
            for part in ("parameters", "optimizer", "random", "state", "config"):
                assert same(getattr(again, part), getattr(values, part))
        (path / name).write_bytes(data)
    assert 0 < unread < 100


def test_nothing_is_parsed_before_all_is_verified(tmp_path, monkeypatch):
    path = save(example(), tmp_path, step=1)
    data = (path / "config.json").read_bytes()  # the last of the five
    (path / "config.json").write_bytes(flip(data, 0))
    parsed = []
    monkeypatch.setattr(module.safetensors.torch, "load", parsed.append)
    monkeypatch.setattr(
        json, "loads", lambda text, _real=json.loads, **kwargs: parsed.append(text) or _real(text, **kwargs)
    )
    with pytest.raises(ValueError, match=r"config\.json is damaged: its sha256"):
        read(path)
    assert [("format_version" in text) for text in parsed] == [True]


class Payload:
    def __reduce__(self):
        return os.mkdir, ("owned",)


DEEP = 100_000


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("model.safetensors", pickle.dumps(Payload()), "not in the safetensors format"),
        ("model.safetensors", b"", "not in the safetensors format"),
        ("rng.safetensors", b"\xff" * 64, "not in the safetensors format"),
        ("config.json", b"[]", "config.json .*holds a list, wanted a JSON object"),
        ("state.json", b"3", "state.json .*holds a int"),
        ("state.json", b"{}", "state.json does not hold the objects"),
        ("state.json", b'{"state": [], "optimizer": {}}', "state.json does not hold the objects"),
        ("config.json", b'{"$tuple": []}', "config.json does not hold the objects"),
        ("config.json", b'{"lr": NaN}', "config.json .*is not strict JSON .NaN"),
        ("config.json", b'{"lr": -Infinity}', "config.json .*is not strict JSON .-Infinity"),
        ("config.json", b'{"lr": 1', "config.json .*is not strict JSON"),
        ("config.json", b'{"lr": "\xff"}', "config.json .*is not strict JSON"),
        ("config.json", b'{"a": ' + b"9" * 9999 + b"}", "config.json .*is not strict JSON"),
        ("config.json", b'{"a":' * DEEP + b"1" + b"}" * DEEP, "config.json"),
        ("config.json", b'{"a":' * 700 + b"1" + b"}" * 700, "config.json .* more than 100 levels of nesting"),
        ("config.json", b'{"a": {"$dict": [[' + b"[" * 700 + b"]" * 700 + b", 1]]}}", "more than 100 levels"),
        ("config.json", b'{"a": {"$object": "os.system"}}', "config.json has an unknown value .*os.system"),
        ("config.json", b'{"a": {"$float": "1"}}', "unknown value"),
        ("config.json", b'{"a": {"$float": "nan", "b": 1}}', "unknown value"),
        ("config.json", b'{"a": {"$tuple": 1}}', "unknown value"),
        ("config.json", b'{"a": {"$dict": [[[], 1]]}}', "unknown value"),
        ("config.json", b'{"a": {"$dict": [[1]]}}', "unknown value"),
        ("config.json", b'{"a": {"$tensor": "weight"}}', "unknown value"),
        ("state.json", b'{"state": {}, "optimizer": {"a": {"$tensor": "absent"}}}', "unknown value .*absent"),
    ],
)
def test_hostile_content_under_a_matching_manifest(name, data, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(example(), tmp_path / "run", step=1)
    reseal(path, name, data)
    with pytest.raises(ValueError, match=words):
        read(path)
    assert not (tmp_path / "owned").exists()


def test_hostile_manifests(tmp_path):
    path = save(example(), tmp_path, step=1)
    good = json.loads((path / "MANIFEST.json").read_text())
    entry = good["files"]["model.safetensors"]
    for change, words in [
        ({"format_version": 2}, "format version 2, this pyrovae reads 1"),
        ({"format_version": None}, "format version None"),
        ({"files": {**good["files"], "../../secret": entry}}, "does not list exactly"),
        ({"files": {**good["files"], str(tmp_path / "secret"): entry}}, "does not list exactly"),
        ({"files": {"model.safetensors": entry}}, "does not list exactly"),
        ({"files": FILES}, "does not list exactly"),
        ({"files": {**good["files"], "model.safetensors": entry["sha256"]}}, "no size for model.safetensors"),
        ({"files": {**good["files"], "model.safetensors": {"size": entry["size"]}}}, "model.safetensors is damaged"),
        ({"files": {**good["files"], "model.safetensors": {**entry, "size": 2**80}}}, "MANIFEST.json says"),
    ]:
        (path / "MANIFEST.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=words):
            read(path)


def test_absent_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"step-000000001' is not a folder; pass one that latest"):
        read(tmp_path / "step-000000001")
    save(example(), tmp_path, step=1)
    with pytest.raises(ValueError, match=r"MANIFEST.json is missing"):
        read(tmp_path)


# Random numbers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def restored():
    states = random_state()
    yield
    set_random_state(states)


def draws():
    python = [random.gauss(0, 1), random.random(), random.getrandbits(64)]
    return python, np.random.standard_normal(3).tolist(), np.random.randint(9), torch.randn(5).tolist()  # noqa: NPY002


@pytest.mark.usefixtures("restored")
def test_random_states_round_trip(tmp_path):
    pyro.set_rng_seed(4)
    draws()  # an odd number of normal draws leaves one in store in Python's and numpy's generator
    save(Checkpoint({}, random=random_state()), tmp_path, step=1)
    want = draws(), draws()
    pyro.set_rng_seed(5)
    assert draws() != want[0]
    states = read(latest(tmp_path)).random
    assert all(state.dtype == torch.uint8 for state in states.values())
    assert {"cpu", "python", "numpy"} <= states.keys()
    set_random_state(states)
    assert (draws(), draws()) == want
    set_random_state({"cpu": states["cpu"]})  # the others are left alone
    assert draws()[3] == want[0][3]
    assert draws()[:3] != want[0][:3]


@pytest.mark.usefixtures("restored")
def test_reading_the_random_state_draws_nothing():
    pyro.set_rng_seed(4)
    want = draws()
    pyro.set_rng_seed(4)
    random_state()
    assert draws() == want


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    "bad",
    [
        {"gpu": torch.zeros(3, dtype=torch.uint8)},
        {"cpu": torch.zeros(3, dtype=torch.uint8)},
        {"cpu": torch.zeros(3)},
        {"python": torch.zeros(3, dtype=torch.uint8)},
        {"python": torch.tensor(list(b'{"state": [1, 2]}'), dtype=torch.uint8)},
        {"numpy": torch.tensor(list(b'{"state": {"bit_generator": "PCG64"}}'), dtype=torch.uint8)},
        {"numpy": torch.tensor(list(b"{}"), dtype=torch.uint8)},
        {"python": "state"},
    ],
)
def test_a_bad_random_state_changes_nothing(bad):
    (name,) = bad
    good = random_state()
    pyro.set_rng_seed(4)
    want = draws()
    pyro.set_rng_seed(4)
    with pytest.raises(ValueError, match=f"random state '{name}' is not a generator's state .*leave '{name}' out"):
        set_random_state({**{key: good[key] for key in ("cpu", "python", "numpy") if key != name}, **bad})
    assert draws() == want


def test_cuda_states_once_cuda_is_in_use(monkeypatch):
    assert torch.cuda.is_initialized() or not [name for name in random_state() if "cuda" in name]
    states = [torch.tensor([i], dtype=torch.uint8) for i in range(2)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda i: states[i])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, i: states.__setitem__(i, state))
    found = random_state()
    assert [found["cuda:0"].item(), found["cuda:1"].item()] == [0, 1]
    other = torch.tensor([7], dtype=torch.uint8)
    set_random_state({"cuda:1": other, "cuda:2": other})  # there is no third device
    assert [state.item() for state in states] == [0, 7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_generator_and_tensors_round_trip(tmp_path):
    weight = torch.randn(3, device="cuda")
    save(Checkpoint({"weight": weight}, random=random_state()), tmp_path, step=1)
    want = torch.randn(4, device="cuda")
    again = read(latest(tmp_path))
    set_random_state(again.random)
    assert torch.equal(torch.randn(4, device="cuda"), want)
    assert same(again.parameters["weight"], weight.cpu())


def test_random_states_stay_on_the_cpu_where_new_tensors_do_not(tmp_path):
    with torch.device("meta"):  # as fit puts a user's new tensors on the GPU
        path = save(Checkpoint({"w": torch.ones(3, device="cpu")}, random=random_state()), tmp_path, step=1)
        again = read(path)
        set_random_state(again.random)
    assert all(state.device.type == "cpu" for state in (*again.random.values(), again.parameters["w"]))
