"""A graph in two parts, numbers first, computes what the whole does, and changes what the whole changes."""

import pytest
import torch

from pyrovae.graphs.capture import capture
from pyrovae.graphs.scalars import hoist


def both(function, *inputs):
    """Results and inputs afterwards, of the whole and of the two parts; None for those if there is one part only."""
    before = [tensor.clone() for tensor in inputs]
    graph = capture(lambda: function(*inputs), inputs)
    assert len(graph.inputs) == len(inputs)
    outcomes = []
    parts = hoist(graph.module, graph.inputs)
    for split in (False, True):
        if split and parts is None:
            return outcomes[0], None
        fresh = [tensor.clone() for tensor in before]
        torch.manual_seed(0)
        if split:
            results = parts.rest(*fresh, *parts.first(*(fresh[i] for i in parts.reads)))
        else:
            results = graph.module(*fresh)
        outcomes.append([*results, *fresh])
    return outcomes


def assert_same(a, b):
    assert len(a) == len(b)
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def adam(step, rate, x, y):
    exact = step.double()
    exact += 1
    size = rate / (1 - 0.9**exact)
    y.add_(x * size)
    step.copy_(exact)
    return [y.sum(), size]


def test_numbers_go_first_with_what_they_change():
    inputs = (torch.tensor(3.0), torch.tensor(0.1, dtype=torch.double), torch.ones(5), torch.zeros(5))
    whole, parts = both(adam, *inputs)
    assert_same(whole, parts)
    assert whole[2].item() == 4.0  # the step
    graph = capture(lambda: adam(*inputs), inputs)
    split = hoist(graph.module, graph.inputs)
    assert split.reads == [0, 1]
    powers = [
        sum(node.target is torch.ops.aten.pow.Scalar for node in part.graph.nodes) for part in (split.first, split.rest)
    ]
    assert powers == [1, 0]


def seen_through_a_view(a, x):
    view = a.view(())
    a.add_(x.sum())
    return [x * (view * 2)]


def changed_after_its_use(a, x):
    double = a * 2
    before = x * double
    double.add_(1)
    return [before, x * double]


@pytest.mark.parametrize(
    "function",
    [
        lambda a, x: [x * (2 * a), a.add_(x.sum())],  # the rest changes the number afterwards
        lambda a, x: [a.add_(x.sum()), x * (2 * a)],  # and before
        lambda a, x: [x * a, x * a.mul_(2)],  # the rest reads a number that changes
        lambda a, x: [x + torch.randn_like(x), x * torch.rand_like(a), x * (a + 1)],  # draws keep their order
        lambda a, x: [x * a.expand(5).cumsum(0), x * a.exp()],
        lambda a, x: [a * 2, x * 2],  # a number that is a result
        lambda a, x: [x.sum(), x * 2],  # no number is used
        seen_through_a_view,
        changed_after_its_use,
    ],
)
def test_what_is_not_safe_stays(function):
    whole, parts = both(function, torch.tensor(0.7), torch.arange(5.0))
    if parts is not None:
        assert_same(whole, parts)
