"""What runs a captured graph: compiled kernels, or operation by operation."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.graphs.capture import Graph
from pyrovae.graphs.cuda_graph import Replayed
from pyrovae.graphs.scalars import hoist

__all__ = ["compiler", "inductor", "interpreted", "rounding"]

# The random numbers of eager operations, and no asserts in Python on what the key of a graph has fixed.
_OPTIONS: dict[str, Any] = {"fallback_random": True, "size_asserts": False, "alignment_asserts": False}


def inductor(graph: Graph) -> Callable[..., Sequence[Tensor]]:
    """The graph as compiled kernels, on a GPU launched together, with the random numbers of eager operations."""
    import torch._inductor  # takes seconds, which eager training need not spend

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to torch's developers
        call = _in_parts(graph) or _kernels(graph.module, graph.inputs)
    return Replayed(call) if all(tensor.is_cuda for tensor in graph.inputs) else call


def _kernels(module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A module compiled for such inputs; again, where another process was killed while it wrote what is read here."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    removed = set()
    while True:
        try:
            return torch._inductor.compile(module, [*inputs], options=_OPTIONS)
        except Exception as error:
            library = Path(getattr(getattr(error, "inner_exception", error), "path", None) or "")
            if library in removed or not library.is_relative_to(cache_dir()) or not library.is_file():
                raise
            library.unlink()
            removed.add(library)


def _in_parts(graph: Graph) -> Callable[..., Sequence[Tensor]] | None:
    """The graph with its numbers computed first; None where there are none, or inductor can't do it."""
    parts = hoist(graph.module, graph.inputs)
    if parts is None:
        return None
    reads = parts.reads
    try:
        first = _kernels(parts.first, [graph.inputs[i] for i in reads])
        rest = _kernels(parts.rest, [*graph.inputs, *parts.examples])
    except Exception:  # it may still compile as a whole: inductor loses a buffer of one HMM in parts
        return None
    return lambda *inputs: rest(*inputs, *first(*[inputs[i] for i in reads]))


def interpreted(graph: Graph) -> Callable[..., Sequence[Tensor]]:
    """The graph run operation by operation: what is captured, without what a compiler does to it."""
    return graph.module


def rounding(dtype: torch.dtype) -> float:
    """The largest relative difference between eager and compiled results that is no other result."""
    return {torch.float64: 1e-7, torch.float32: 1e-3}.get(dtype, 5e-2)


def compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if not _importable("torch._inductor"):
        return "this torch has no inductor"
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"))):
        return "there is no C++ compiler; install g++ or clang++, or set CXX"
    if device.type == "cuda" and not _importable("triton"):
        return "triton is not installed"
    return None


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
