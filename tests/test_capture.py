"""The captured step is the eager step, bit by bit; what can't be captured says why."""

import math
from collections import Counter

import numpy as np
import pyro
import pytest
import torch
from foreign import PROGRAMS, UNCAPTURABLE
from test_laws import CASES, OBJECTIVES, PAIRS, made
from torch.nn.functional import one_hot

from pyrovae.graphs.capture import CaptureError, Graph, capture
from pyrovae.models.base import structure
from pyrovae.training.step import Step


def captured(step, *batch) -> Graph:
    """Forward and backward of a step, from a batch that must not matter."""
    parameters = [*step.known.parameters.values()]

    def run():
        for parameter in parameters:
            parameter.grad = None
        loss = step.backward(*batch)
        return loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)

    return capture(run, [*parameters, *step.known.buffers.values(), *batch])


def outcome(step, run):
    """What a run gives and leaves in the buffers, which are put back, from seed 5."""
    buffers = [*step.known.buffers.values()]
    before = [buffer.clone() for buffer in buffers]
    pyro.set_rng_seed(5)
    results = [*run(), *(buffer.clone() for buffer in buffers), torch.rand(1)]
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    return results


def compare(step, *batch, tolerance=0.0):
    """Loss, gradients, buffers and the random stream afterwards, eager and captured, on another batch than captured.

    Args:
        tolerance: largest relative and absolute difference; 0 asks for the same bits.
    """
    parameters = [*step.known.parameters.values()]
    step.backward(*batch)  # what a pair finds out in its first call
    graph = captured(step, *batch)
    other = [tensor.flip(0) for tensor in batch]

    def eager():
        for parameter in parameters:
            parameter.grad = None
        loss = step.backward(*other)
        return [loss, *(parameter.grad.clone() for parameter in parameters if parameter.grad is not None)]

    def replay():
        with torch.no_grad():
            found = graph.inputs[len(parameters) + len(step.known.buffers) + len(batch) :]
            return graph.module(*parameters, *step.known.buffers.values(), *other, *found)

    want, got = outcome(step, eager), outcome(step, replay)
    assert len(want) == len(got) > 2
    for index, (a, b) in enumerate(zip(want, got, strict=True)):
        torch.testing.assert_close(
            b, a, rtol=tolerance, atol=tolerance, msg=lambda m, index=index: f"result {index}: {m}"
        )


def representative():
    """Each pair once, with an objective that the fewest pairs before it have; then each objective with two pairs."""
    taken, cells = Counter(), []
    for pair in PAIRS:
        objective = min((name for p, name in CASES if p == pair), key=lambda name: taken[name])
        taken[objective] += 1
        cells.append((pair, objective))
    for pair, objective in CASES:
        if taken[objective] < 2 and (pair, objective) not in cells:
            taken[objective] += 1
            cells.append((pair, objective))
    return cells


SOME = representative()
CELLS = [pytest.param(*case, marks=() if case in SOME else pytest.mark.slow) for case in CASES]
# Where the guide enumerates, Pyro's Dice sums the costs that it selects; captured, it sums zeros in their places too.
ROUNDED = {("labels enumerated by the guide", "TraceEnum_ELBO"): 1e-6}


def test_some_cells_stand_for_all():
    assert {pair for pair, _ in SOME} == set(PAIRS)
    counts = Counter(objective for _, objective in SOME)
    assert set(counts) == set(OBJECTIVES)
    assert all(count >= 2 or objective == "states summed" for objective, count in counts.items())  # one pair sums them


@pytest.mark.parametrize(("name", "objective"), CELLS)
def test_captured_step_is_bit_equal(name, objective):
    pair, batch = made(name)
    step = Step(pair, OBJECTIVES[objective][0](), structure(pair, *batch))
    with pyro.validation_enabled(False):
        compare(step, *batch, tolerance=ROUNDED.get((name, objective), 0.0))


# Programs as Pyro's users write them ----------------------------------------------------------------------------------


def step_of(program):
    return Step(program.pair, program.objective(), structure(program.pair, *program.batch))


def fresh(name):
    pyro.set_rng_seed(0)
    return {**PROGRAMS, **UNCAPTURABLE}[name]()


# Pyro says so whenever a module with a frozen parameter is registered.
@pytest.mark.filterwarnings("ignore:.*not registered in the param store because requires_grad=False")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PROGRAMS)
def test_captured_program_is_bit_equal(name, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        program = fresh(name)
        with pyro.validation_enabled(False):
            compare(step_of(program), *program.batch)
    finally:
        torch.set_default_dtype(before)


# What can't be captured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a value decides", r"reads the value of a tensor \(foreign.py, line \d+: return 2 \* z if z\[0, 0\] > "),
        ("through NumPy", r"reads the value of a tensor \(foreign.py, line \d+: return z / \(1 \+ np.abs\("),
        ("through a list", r"reads the value of a tensor \(foreign.py, line \d+: first, \*_ = z.detach"),
        ("chosen rows", r"shape of a tensor depends on values \(foreign.py, line \d+: chosen = z\["),
    ],
)
def test_what_can_not_be_captured_names_the_line(name, message):
    program = fresh(name)
    step = step_of(program)
    step.backward(*program.batch)
    with pytest.raises(CaptureError, match=message) as raised:
        captured(step, *program.batch)
    assert "\n" not in str(raised.value)


# Functions of a tensor: a graph of them is right for other values too, or there is none.
READS = [
    lambda x: x * float(x.sum()),
    lambda x: x[int(x[0, 0]) % 2],
    lambda x: x * x.sum().item(),
    lambda x: x if x.sum() > 11 else -x,
    lambda x: x if (x > 1).all() else -x,
    lambda x: x * max(x[0].tolist()),
    lambda x: x * math.exp(x[0, 0]),
    lambda x: x + torch.as_tensor(x.numpy().copy()),
    lambda x: x * np.asarray(x).sum(),
    lambda x: x * min(list(x[0])),
    lambda x: x * len(x[x > 2]),
    lambda x: x * len(x.masked_select(x > 2)),
    lambda x: x * len(x.nonzero()),
    lambda x: x * len(torch.unique(x)),
    lambda x: x[: x[0, 0].long()],
    lambda x: torch.arange(x[0, 0]),
    lambda x: torch.roll(x, x[0, 0].long()),
    lambda x: one_hot(x.long()),
]
TORCHS_WORDS = [  # refused, but in the words of torch
    lambda x: x * (1.0 in x),
    lambda x: x * torch.equal(x, x.flip(0)),
    lambda x: x * float(f"{x.sum()}"),
]
BY_VALUES = [
    lambda x: x * len(torch.where(x > 2)[0]),
    lambda x: x * len(torch.argwhere(x > 2)),
    lambda x: x * len(torch.unique_consecutive(x)),
    lambda x: x * len(torch.bincount(x.flatten().long())),
    lambda x: x * len(x.repeat_interleave(x[0].long(), 0)),
    lambda x: torch.tensor_split(x.flatten(), x[0].long())[0],
    lambda x: torch.tensor([x.sum(), 1.0]),
    lambda x: x + x.new_tensor([x.sum(), 1.0]),
]
HELD = [
    lambda x: x * torch.count_nonzero(x > 2),
    lambda x: x.clamp(max=x[0, 0]),
    lambda x: x.clone().masked_fill_(x > 2, 0.0),
    lambda x: torch.where(x > 2, x, 0.0),
    lambda x: x * (x.argmax() == 3),
    lambda x: torch.quantile(x, 0.3),
    lambda x: torch.normal(x, 1.0),
    lambda x: x.data * 2,
    lambda x: x[torch.randperm(2)],
    lambda x: one_hot(x.long(), 6),
    lambda x: one_hot(x.long(), num_classes=6),
]


@pytest.mark.parametrize("look", READS)
def test_what_reads_values_is_refused_by_name_and_line(look):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(CaptureError) as raised:
        capture(lambda: [look(x)], [x])
    said = str(raised.value)
    assert said.startswith(("the program reads the value of a tensor (", "the shape of a tensor depends on values ("))
    line = look.__code__.co_firstlineno
    assert f"(test_capture.py, line {line}: lambda x: " in said


def test_a_class_out_of_range_is_refused_by_the_graph_too():
    """As the eager step does; a row of zeros would train on."""
    graph = capture(lambda: [one_hot(y, 3)], [y := torch.tensor([0, 2])])
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            graph.module(torch.tensor([0, wrong]), *graph.inputs[1:])


def test_many_classes_are_no_table():
    """A look-up of 10,000 would hold 10^8 numbers."""
    with pytest.raises(CaptureError, match="the program reads the value of a tensor"):
        capture(lambda: [one_hot(y, 10_000)], [y := torch.tensor([0, 2])])


@pytest.mark.parametrize(
    "look",
    [
        *HELD,
        *TORCHS_WORDS,
        *BY_VALUES,
    ],
)
def test_no_value_is_frozen(look):
    x, other = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 2.0], [3.0, 3.0]])
    try:
        graph = capture(lambda: [look(x)], [x])
    except CaptureError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert look not in HELD
        assert f"(test_capture.py, line {look.__code__.co_firstlineno}: lambda x: " in refusal
        return
    torch.manual_seed(0)
    (got,) = graph.module(other, *graph.inputs[1:])
    torch.manual_seed(0)
    assert torch.equal(got, look(other))
    assert not torch.equal(got, look(x)), "the values are too much alike"
