"""The captured step is the eager step, bit by bit; what can't be captured says why."""

import pyro
import pytest
import torch
from test_laws import CASES, OBJECTIVES, made

from pyrovae.models.base import structure
from pyrovae.training.capture import Graph, capture
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


def compare(step, *batch):
    """Loss, gradients, buffers and the random stream afterwards, eager and captured, on another batch than captured."""
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
        assert torch.equal(a, b), f"result {index}: {a} and {b}"


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_captured_step_is_bit_equal(name, objective):
    pair, batch = made(name)
    with pyro.validation_enabled(False):
        compare(Step(pair, OBJECTIVES[objective][0](), structure(pair, *batch)), *batch)
