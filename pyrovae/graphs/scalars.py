"""Numbers apart from tensors: what a graph computes from numbers alone, split off and computed first.

An optimizer's bias corrections, 1 - beta^step, depend on no datum. A compiler that fuses them into the loops over the
parameters computes their powers again for each handful of elements, which costs more than the update itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

__all__ = ["Hoisted", "hoist"]


@dataclass
class Hoisted:
    """A graph in two parts: `rest(*inputs, *first(*(inputs[i] for i in reads)))` is the whole.

    Attributes:
        first: from numbers to numbers, those that it changes in place included.
        reads: which inputs it takes.
        rest: everything else; its last inputs are what `first` returns.
        examples: numbers of the dtypes that `first` returns.
    """

    first: fx.GraphModule
    reads: list[int]
    rest: fx.GraphModule
    examples: list[Tensor]


def hoist(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Hoisted | None:
    """Split off what depends on inputs without dims alone; None where there is nothing, or no safe way.

    Args:
        module: of aten operations, whose nodes' `meta["number"]` is their dtype where they have no dims.
        inputs: one for each placeholder.
    """
    nodes = list(module.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    numbers = {node for node, tensor in zip(placeholders, inputs, strict=True) if tensor.dim() == 0}
    while True:
        found = _depending(nodes, numbers)
        unsafe = _changed_outside(nodes, found) & numbers
        if not unsafe:
            break
        numbers -= unsafe
    computed = [node for node in nodes if node in found and node.op == "call_function"]
    results = [node for node in computed if any(user not in found for user in node.users)]
    if not results or _changed(computed) & set(results):
        return None
    reads = [i for i, node in enumerate(placeholders) if node in numbers and any(user in found for user in node.users)]
    first, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for index in reads:
        copies[placeholders[index]] = first.placeholder(f"number_{index}")
    for node in computed:
        copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(tuple(copies[node] for node in results))
    rest, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in placeholders:
        copies[node] = rest.node_copy(node, copies.__getitem__)
    for index, node in enumerate(results):
        copies[node] = rest.placeholder(f"computed_{index}")
    for node in nodes:
        if node not in copies and node not in found:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    examples = [torch.ones((), dtype=node.meta["number"], device=inputs[reads[0]].device) for node in results]
    return Hoisted(fx.GraphModule(module, first), reads, fx.GraphModule(module, rest), examples)


def _depending(nodes: list[fx.Node], numbers: set[fx.Node]) -> set[fx.Node]:
    """The numbers, and what is computed from nothing else."""
    found = set(numbers)
    for node in nodes:
        operands = node.all_input_nodes
        draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        computes = node.op == "call_function" and operands and not draws
        if computes and node.meta.get("number") and found.issuperset(operands):
            found.add(node)
    return found


def _changed(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What some operations write to in place."""
    changed = set()
    for node in nodes:
        arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
        for argument, value in zip(arguments, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
                changed.add(value)
    return changed


def _changed_outside(nodes: list[fx.Node], found: set[fx.Node]) -> set[fx.Node]:
    """Numbers that what stays behind writes to, or reads while what goes first writes to them."""
    behind = [node for node in nodes if node not in found]
    read = {operand for node in behind for operand in node.all_input_nodes}
    return _changed(behind) | (_changed([node for node in nodes if node in found]) & read)
