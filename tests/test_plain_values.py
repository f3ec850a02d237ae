"""NumPy's numbers in a checkpoint: as they were, so that what computes with them goes on exactly."""

import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR, StepLR

from pyrovae.models import VAE
from pyrovae.training.fit import fit
from pyrovae.training.plain_values import decode, dump, encode, load
from pyrovae.training.runs import load as load_run

NUMBERS = [np.int64(-3), np.uint8(7), np.bool_(True), np.float32(0.1), np.float16(-0.0), np.float32(math.inf)]


def there_and_back(value):
    return decode(load(dump(encode({"value": value}, "state", None)), "state.json"), {})["value"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_come_back_as_they_were(number):
    for value, found in ((number, there_and_back(number)), (number, *there_and_back({number: [1]}))):
        assert type(found) is type(value)
        assert repr(found) == repr(value)


def test_numbers_of_double_precision_are_pythons():
    assert type(there_and_back(np.float64(0.1))) is float
    assert there_and_back(np.float64(0.1)) == 0.1


@pytest.mark.parametrize("value", [np.datetime64("2026-01-01"), np.zeros(2), np.complex64(1)])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r"state.value is a numpy.\w+, wanted None"):
        there_and_back(value)


@pytest.mark.parametrize(
    "hostile",
    [["object", 1], ["float32", "1"], ["str_", "a"], ["float32"], ["int8", 1000], ["int64", 1.5], [["int8"], 1], 5],
)
def test_what_is_never_written_is_not_read(hostile):
    with pytest.raises(ValueError, match="an unknown value"):
        decode({"$numpy": hostile}, {})


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: MultiStepLR(optimizer, np.array([1, 3])),
        lambda optimizer: StepLR(optimizer, step_size=np.int64(2), gamma=np.float32(0.9)),
    ],
)
def test_a_schedule_of_numpys_numbers_goes_on_exactly(schedule, tmp_path):
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)).round()
    runs = []
    for stops, out in (((6,), tmp_path / "straight"), ((2, 6), tmp_path / "parted")):
        for max_epochs in stops:
            torch.manual_seed(0)
            pair = VAE(4, 2, hidden=(3,))
            options = {"lr": 0.1, "schedule": schedule, "compile": False, "progress": False, "seed": 0, "out": out}
            fit(pair, x, max_epochs=max_epochs, resume=out.exists(), **options)
        runs.append(load_run(out))
    straight, parted = runs
    assert parted.history["lr"] == straight.history["lr"]
    assert len(set(straight.history["lr"])) > 2
    for name, value in straight.pair.state_dict().items():
        assert torch.equal(parted.pair.state_dict()[name], value), name
