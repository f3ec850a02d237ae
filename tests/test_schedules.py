"""Schedules: exact values where the formula is known, and a tensor that stays the same one."""

import copy
import math

import pytest
import torch

from pyrovae.objectives import ELBO
from pyrovae.training.schedules import Constant, Cyclical, Linear, Schedule, Sigmoid, as_weight

VALUES = {
    "linear": (Linear(0.0, 1.0, 8), {0: 0, 1: 0.125, 2.5: 0.3125, 4: 0.5, 8: 1, 9: 1, 1e9: 1}),
    "down": (Linear(25.0, 5.0, 4), {0: 25, 1: 20, 3: 10, 4: 5, 5: 5}),
    "delayed": (Linear(0.5, 1.5, 4, delay=2.0), {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.75, 4: 1.0, 6: 1.5, 7: 1.5}),
    "exact ends": (Linear(0.6, 0.1, 3), {0: 0.6, 3: 0.1, 4: 0.1}),  # 0.6 + (0.1 - 0.6) is not 0.1
    "flat": (Linear(0.1, 0.1, 3), {0: 0.1, 1: 0.1, 2: 0.1}),
    "cyclical": (
        Cyclical(0.0, 1.0, 32, num_cycles=4, ratio=0.5),
        {0: 0, 1: 0.25, 2: 0.5, 4: 1, 7.9375: 1, 8: 0, 10: 0.5, 12: 1, 16: 0, 24: 0, 26: 0.5, 31: 1, 32: 1, 40: 1},
    ),
    "one cycle": (Cyclical(1.0, 3.0, 8, num_cycles=1, ratio=1.0), {0: 1, 2: 1.5, 4: 2, 8: 3, 10: 3}),
    "sigmoid": (
        Sigmoid(1.0, 3.0, 10, width=2.0),
        {10: 2, 12: 1 + 2 / (1 + math.exp(-1)), 8: 1 + 2 / (1 + math.exp(1)), 0: 1 + 2 / (1 + math.exp(5)), 1e6: 3},
    ),
    "constant": (Constant(0.25), {0: 0.25, 3: 0.25}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    schedule, values = VALUES[name]
    exact = copy.deepcopy(schedule).double()
    for epoch, want in values.items():
        schedule.update(epoch)
        exact.update(epoch)
        assert exact.at(epoch) == pytest.approx(want, rel=1e-15 if name == "sigmoid" else 0, abs=0), epoch
        assert exact.value.item() == exact.at(epoch)
        assert schedule.value == torch.tensor(exact.at(epoch))  # the nearest float32


def test_cyclical_is_the_loop_of_the_paper():
    """Fu et al. 2019: steps t of T, tau = (t mod T/M) / (T/M), beta = tau / R up to R, 1 from there."""
    steps, cycles, ratio, per_epoch = 60, 3, 0.4, 4
    schedule = Cyclical(0.0, 1.0, steps / per_epoch, num_cycles=cycles, ratio=ratio)
    for step in range(steps):
        tau = (step % (steps // cycles)) / (steps // cycles)
        want = tau / ratio if tau <= ratio else 1.0
        assert schedule.at(step / per_epoch) == pytest.approx(want, abs=1e-12), step


def test_the_value_is_one_tensor_that_a_captured_graph_reads():
    schedule = Linear(0.0, 1.0, 4)
    value, address = schedule.value, schedule.value.data_ptr()

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.beta = schedule

        def forward(self, x):
            return (self.beta() * x).sum()

    x = torch.arange(1.0, 4.0)
    captured = torch.export.export(Step(), (x,), strict=False).module()
    for epoch, want in [(1, 1.5), (2, 3.0), (4, 6.0)]:
        schedule.update(epoch)
        assert captured(x).item() == want
    assert schedule.value is value
    assert schedule.value.data_ptr() == address
    assert value.item() == 1.0
    assert not value.requires_grad
    assert value.shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_loss_is_upcast(dtype):
    weight = as_weight(0.5)
    assert (weight.value * torch.ones(2, 3, dtype=dtype)).dtype == dtype
    assert (weight.double().value * torch.ones(2, 3, dtype=dtype)).dtype == dtype  # dims outrank none
    weight = as_weight(0.5)
    assert (weight.value * torch.ones((), dtype=torch.float32)).dtype == torch.float32
    assert (weight.double().value * torch.ones((), dtype=torch.float32)).dtype == torch.float64  # why it is not float64
    assert (as_weight(0.5).value * torch.ones((), dtype=torch.float64)).dtype == torch.float64


def test_it_is_a_module_with_state():
    schedule = Linear(0.0, 1.0, 4)
    schedule.update(1)
    assert list(schedule.parameters()) == []
    other = Linear(0.0, 1.0, 4)
    other.load_state_dict(schedule.state_dict())
    assert other.value.item() == 0.25
    schedule.update(2)
    assert other.value.item() == 0.25  # nothing is shared
    assert repr(Linear(0, 1, 4)) == "Linear(0.0, 1.0, epochs=4.0, delay=0.0)"
    assert repr(Cyclical(0, 1, 4)) == "Cyclical(0.0, 1.0, epochs=4.0, num_cycles=4, ratio=0.5)"
    assert repr(Sigmoid(0, 1, 4, width=1)) == "Sigmoid(0.0, 1.0, midpoint=4.0, width=1.0)"


def test_as_weight_and_own_schedules():
    class Steps(Schedule):
        def at(self, epoch):
            return float(epoch >= 3)

    schedule = Steps()
    assert as_weight(schedule) is schedule
    for epoch, want in [(0, 0.0), (2.9, 0.0), (3, 1.0)]:
        schedule.update(epoch)
        assert schedule() is schedule.value
        assert schedule().item() == want
    assert isinstance(as_weight(2), Constant)
    assert as_weight(2)().item() == 2.0
    with pytest.raises(NotImplementedError, match="Schedule has no formula"):
        Schedule().update(0)
    assert not ELBO(beta=Linear(0.0, 1.0, 4)).is_bound


@pytest.mark.parametrize(("name", "end"), [("linear", 1.0), ("down", 5.0), ("cyclical", 1.0), ("sigmoid", 3.0)])
def test_the_librarys_schedules_know_their_end(name, end):
    assert VALUES[name][0].at_end() == end
    assert Linear(0.0, end, epochs=1e9).at_end() == end
    assert Sigmoid(0.0, end, midpoint=1e9, width=1.0).at_end() == end
    assert Constant(end).at_end() == end


class Own(Schedule):
    """Somebody's, whose formula is that of finite epochs."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula
        self.update(0.0)

    def at(self, epoch: float) -> float:
        return self.formula(epoch)


class UntilTen(Own):
    def at_end(self) -> float:
        return self.at(10.0)


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (Own(lambda epoch: min(1.0, 0.1 * int(epoch))), 1.0),
        (Own(lambda epoch: 0.5 - 0.5 * math.cos(epoch)), 0.5 - 0.5 * math.cos(1e6)),
        (Own(lambda epoch: 1.0 + 0.01 * epoch), 10_001.0),
        (UntilTen(lambda epoch: 0.5 - 0.5 * math.cos(math.pi * epoch / 10)), 1.0),
    ],
)
def test_validation_asks_no_schedule_for_an_infinite_epoch(schedule, end):
    for objective in (ELBO(beta=schedule), ELBO(beta={"z": schedule, "w": 2.0})):
        ended = objective.for_validation().beta
        assert (ended["z"] if isinstance(ended, dict) else ended) == end
        assert (objective.beta["z"] if isinstance(objective.beta, dict) else objective.beta) is schedule


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: as_weight("1"), TypeError, "weight is '1', wanted a number"),
        (lambda: as_weight(True), TypeError, "weight is True"),
        (lambda: Constant(math.nan), ValueError, "weight is nan"),
        (lambda: Linear(0, math.inf, 3), ValueError, "end is inf"),
        (lambda: Linear(None, 1, 3), TypeError, "start is None"),
        (lambda: Linear(0, 1, 0), ValueError, "epochs is 0, wanted more than 0"),
        (lambda: Linear(0, 1, 3, delay=-1), ValueError, "delay is -1"),
        (lambda: Cyclical(0, 1, 3, num_cycles=0), ValueError, "num_cycles is 0"),
        (lambda: Cyclical(0, 1, 3, num_cycles=1.5), ValueError, "num_cycles is 1.5"),
        (lambda: Cyclical(0, 1, 3, ratio=1.1), ValueError, "ratio is 1.1, wanted at most 1"),
        (lambda: Cyclical(0, 1, 3, ratio=0), ValueError, "ratio is 0"),
        (lambda: Sigmoid(0, 1, 3, width=0), ValueError, "width is 0"),
        (lambda: Linear(0, 1, 3).update(-0.5), ValueError, "epoch is -0.5"),
        (lambda: Linear(0, 1, 3).update(math.nan), ValueError, "epoch is nan"),
        (lambda: Linear(0, 1, 3).update(math.inf), ValueError, "epoch is inf"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()
