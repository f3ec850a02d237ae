"""Capture: what a Python function does to tensors, recorded once as a graph of tensor operations.

Forward and backward passes are recorded together, as they run, by `make_fx`: custom backwards and tensor hooks are in
the graph, as operations like any other, which `torch.export` of a forward pass would drop. Handlers, plates and other
Python run while recording, and never again.

Whatever Python decides by a tensor's value would be frozen. Such reads are refused, with the user's own line, save for
those that Pyro itself makes and that have an answer for every value: see `_ANSWERS`.
"""

from __future__ import annotations

import linecache
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.nn.functional import embedding, one_hot
from torch.overrides import TorchFunctionMode

__all__ = ["CaptureError", "Graph", "capture"]

# Pyro's stack of handlers and its settings belong to the whole process.
_LOCK = threading.RLock()
_LIBRARIES = tuple(str(Path(str(module.__file__)).parent) + os.sep for module in (torch, pyro))
_OURS = str(Path(__file__).parents[1]) + os.sep


class CaptureError(RuntimeError):
    """A function can't be recorded as a graph; the message says why, and on which line of whose program."""


class Graph:
    """A recorded function: `graph(*batch)` computes what the function did, with the tensors of now.

    Attributes:
        module: the operations, a `torch.fx.GraphModule` called with `inputs`.
        inputs: every tensor that the function read or changed, save for those it made itself. Objects that the caller
            named come first, in that order; the rest was found while recording.
    """

    def __init__(self, module: GraphModule, inputs: list[Tensor]):
        self.module = module
        self.inputs = inputs


def capture(function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Graph:
    """Run a function once and record it.

    What it changes in place is changed by this run too; the caller restores it.

    Args:
        function: reads and changes tensors, by whatever names it knows them.
        inputs: the tensors whose values may differ from call to call; others that the function reaches are found and
            become inputs as well, so that a tensor that is changed in place later is never frozen.

    Raises:
        CaptureError: where Python depends on the value of a tensor, or torch can't record an operation.
    """

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        with _Reads():
            return tuple(function())

    with _LOCK, pyro.validation_enabled(False):
        try:
            # One fake mode for what is noted of each operation, where torch would make one each time: half the time.
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
                module = make_fx(run, tracing_mode="real")(*inputs)
        except Exception as error:  # whatever torch, Pyro or the program raise while they are recorded
            said = re.split(r"\n *Trace Shapes:", str(error))[0]  # Pyro appends a table of the trace so far
            said = " ".join(said.split())[:200] or type(error).__name__
            if isinstance(error, CaptureError):
                raise CaptureError(said) from error
            if "_local_scalar_dense" in said:  # inside one of torch's own operations, where nobody sees it come
                said = "the program reads the value of a tensor"
            raise CaptureError(f"{said}{_line_of(error.__traceback__)}") from error
    for node in module.graph.nodes:
        by_values = torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
        if by_values and node.target not in _BY_INDEX:  # masks among them are refused as they come
            raise CaptureError(f"the shape of a tensor depends on values, by {node.target}")
    return Graph(module, [*inputs, *_lift_constants(module)])


def _lift_constants(module: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a function reached without being given them; literals stay constants."""
    found: dict[str, Tensor] = {}
    graph = module.graph
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    placeholders: dict[str, torch.fx.Node] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        node.meta.clear()  # what was noted while recording belongs to no fake mode of inductor's
        if isinstance(value, Tensor) and value.dim() == 0:
            node.meta["number"] = value.dtype
        if node.op != "get_attr" or not isinstance(value := getattr(module, node.target, None), Tensor):
            continue
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        if node.target not in placeholders:
            with graph.inserting_after(last_input):
                last_input = placeholders[node.target] = graph.placeholder(f"found_{len(found)}")
            found[node.target] = value
        node.replace_all_uses_with(placeholders[node.target])
        graph.erase_node(node)
    module.recompile()
    return list(found.values())


class _Reads(TorchFunctionMode):
    """Decides what happens where Python reads the value of a tensor that is being recorded."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is _DATA:  # .data would be a tensor that nobody has recorded
            return args[0].detach()
        if function is Tensor.register_hook and _caller(sys._getframe(1)).f_code.co_name in _ANSWERS:
            return None  # a look at gradients, which has an answer already
        if function in _SELECTIONS:
            frame = _caller(sys._getframe(1))
            if frame.f_code.co_name == "compute_expectation":  # Pyro's Dice, which sums what it selects
                return torch.where(args[1], args[0], 0.0)
        if function is one_hot and sys._getframe(1).f_code.co_filename.startswith(_LIBRARIES):
            index, classes = args  # of a draw, whose range torch would read
            return (index[..., None] == torch.arange(classes, device=index.device)).long()
        if function is one_hot and len(args) == 1 and kwargs.get("num_classes", -1) > 0:
            args = (*args, kwargs["num_classes"])
        if function is one_hot and len(args) == 2 and 0 < args[1] <= _CLASSES:  # a look-up refuses what is no class
            return embedding(args[0], torch.eye(args[1], dtype=torch.long, device=args[0].device))
        by_values = function in _SPLITS and len(args) > 1 and isinstance(args[1], Tensor)
        by_values |= function is torch.where and len(args) == 1
        if by_values or function in _SELECTIONS or (function is Tensor.__getitem__ and _by_mask(args[1])):
            raise CaptureError(f"the shape of a tensor depends on values{_line(sys._getframe(1))}")
        if function in _CONSTRUCTORS and _holds_tensors(args[-1] if function is Tensor.new_tensor else args[0]):
            raise CaptureError(
                f"a list of tensors becomes one by their values, not torch.stack{_line(sys._getframe(1))}"
            )
        if function in _READS and isinstance(args[0], Tensor):
            if _validates(sys._getframe(1)):
                return True
            frame = _caller(sys._getframe(1))
            name, file = frame.f_code.co_name, frame.f_code.co_filename
            if file.startswith(_LIBRARIES) and name in _ANSWERS:
                return _ANSWERS[name]
            if file.startswith(_LIBRARIES[1] + "infer") and function is Tensor.item:  # a loss, summed in Python
                return args[0].detach().double()
            if name in _FIXED:
                with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
                    return function(*args, **kwargs)
            raise CaptureError(f"the program reads the value of a tensor{_line(frame)}")
        return function(*args, **kwargs)


_BY_INDEX = {torch.ops.aten.index.Tensor}
_DISTRIBUTION = os.path.join("distributions", "distribution.py")
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_SELECTIONS = {
    Tensor.masked_select,
    torch.masked_select,
    Tensor.nonzero,
    torch.nonzero,
    Tensor.argwhere,
    torch.argwhere,
    Tensor.unique,
    torch.unique,
    Tensor.unique_consecutive,
    torch.unique_consecutive,
    Tensor.bincount,
    torch.bincount,
}
_CLASSES = 1024  # of a look-up, whose table has as many places squared
_SPLITS = {Tensor.tensor_split, torch.tensor_split, Tensor.repeat_interleave, torch.repeat_interleave}
_CONSTRUCTORS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
_READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__repr__,
    Tensor.is_nonzero,
}
# What Pyro asks of values, by the function that asks, with the answer that is right whatever the value.
_ANSWERS: dict[str, Any] = {
    "warn_if_nan": False,  # fit looks at the losses itself
    "warn_if_inf": False,
    "is_identically_zero": math.nan,  # equal to neither 0 nor 1: no short cut
    "is_identically_one": math.nan,
    "compute_expectation": False,  # not all selected: see _SELECTIONS
}
# Functions that look at values that do not differ between calls: indices of a sequential plate, poutine.scale's.
_FIXED = {"__iter__", "_same_value", "_is_zero"}


def _by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


def _holds_tensors(data: Any) -> bool:
    return isinstance(data, list | tuple) and any(isinstance(part, Tensor) or _holds_tensors(part) for part in data)


def _validates(frame: FrameType | None) -> bool:
    """Whether it is torch that checks arguments or a sample of a distribution."""
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES[0]):
        if "_validate" in frame.f_code.co_name or frame.f_code.co_filename.endswith(_DISTRIBUTION):
            return True
        frame = frame.f_back
    return False


def _caller(frame: FrameType | None) -> FrameType:
    """The innermost frame outside torch."""
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES[0]):
        frame = frame.f_back
    assert frame is not None
    return frame


def _line_of(traceback: TracebackType | None) -> str:
    frames = []
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    theirs = [found for found in frames if _is_users(found[0])]
    return _shown(*theirs[-1]) if theirs else ""


def _line(frame: FrameType | None) -> str:
    while frame is not None:
        if _is_users(frame):
            return _shown(frame, frame.f_lineno)
        frame = frame.f_back
    return ""


def _is_users(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith((*_LIBRARIES, _OURS, "<")) and "site-packages" not in file


def _shown(frame: FrameType, number: int) -> str:
    file = frame.f_code.co_filename
    return f" ({os.path.basename(file)}, line {number}: {linecache.getline(file, number).strip()})"
