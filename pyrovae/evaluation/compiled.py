"""Log-weights of many particles by a compiled graph, where there are enough of them to pay for it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.evaluation.chunks import Chunk, numbers
from pyrovae.evaluation.estimates import is_density
from pyrovae.evaluation.running import Evaluation
from pyrovae.graphs.backends import compiler, inductor, rounding
from pyrovae.graphs.capture import CaptureError, Graph, capture
from pyrovae.models.base import isolated_random_state
from pyrovae.objectives import Ledger

__all__ = ["LogWeights"]

# Numbers in the sites of all particles of all data, above which a graph, compiled in 10 to 30 s, saves more: on a CPU
# handlers take 10 to 40 ns longer for each. On a GPU, chunks of this size are not held up by handlers.
WORTHWHILE = 1e9


class LogWeights:
    """log w of each particle and datum of a chunk, (K, B), nats: by Pyro's handlers, or as they would give it.

    The first chunk decides. Where it is worthwhile, what handlers do there becomes a graph, compared with them on the
    same random numbers and used for all further chunks of that shape. Other shapes, weights that are no numbers, and
    what can't be captured go through handlers.

    Args:
        on: the pair on data, in `ready`.
        num_samples: particles of each datum, in all chunks together.
        compile: True, False or "auto": where it pays, see `WORTHWHILE`, and a compiler is there.

    Attributes:
        density: whether the weights are of a density of the data.

    Raises:
        ValueError: for another `compile`.
    """

    def __init__(self, on: Evaluation, num_samples: int, compile: bool | str = "auto"):
        if compile not in (True, False, "auto"):
            raise ValueError(f'compile is {compile!r}; pass True, False or "auto"')
        self.on = on
        self.num_samples = num_samples
        self.compile = compile
        self.density = True
        self.shapes: Sequence[Any] | None = None
        self.graph: Graph | None = None

    def __call__(self, chunk: Chunk) -> Tensor:
        """Draw the particles of a chunk, and give their log-weights."""
        if self.graph is not None and _shapes(chunk) == self.shapes:
            (log_w,) = self.call(*chunk.batch, *self.found)
            if not log_w.isnan().any():  # else handlers say which value was wrong
                return log_w
        drawn = chunk.ledger()
        if self.shapes is None:
            self.shapes, self.density = _shapes(chunk), is_density(drawn.terms)
            if self._wanted(drawn):
                self._compile(chunk)
        return drawn.log_weights()

    def _wanted(self, drawn: Ledger) -> bool:
        if self.compile != "auto":
            return bool(self.compile)
        device = drawn.log_weights().device
        planned = len(self.on.rows) * self.num_samples * numbers(drawn)
        return planned > WORTHWHILE and device.type == "cpu" and compiler(device) is None

    def _compile(self, chunk: Chunk) -> None:
        """Keep the graph of a chunk's log-weights if it gives what handlers give."""
        try:
            if self.on.subsamples:
                raise CaptureError("the model subsamples the data by itself, other rows at each call")
            with isolated_random_state(0):
                before = _other_generators()
                drawn = chunk.ledger()
                if _other_generators() != before:
                    raise CaptureError(
                        "the program draws random numbers from Python's or NumPy's generator; draw from torch's"
                    )
            if len(drawn.draws) > 1:
                raise CaptureError("the pair does not vectorise over particles")
            with isolated_random_state(0):
                graph = capture(lambda: [chunk.ledger().log_weights()], chunk.batch)
            call = inductor(graph)
            with isolated_random_state(0):
                (found,) = call(*graph.inputs)
            most = rounding(found.dtype)
            if not torch.allclose(found, drawn.log_weights(), rtol=most, atol=most, equal_nan=True):
                raise CaptureError("compiled, they are others: what the program reads in Python changes")
        except Exception as error:  # a compiler fails in many ways, and none may cost the user a result
            why = " ".join(str(error).split())[:300] or type(error).__name__
            warnings.warn(f"weights are computed without a compiled graph: {why}", RuntimeWarning, stacklevel=4)
        else:
            self.graph, self.call, self.found = graph, call, graph.inputs[len(chunk.batch) :]


def _shapes(chunk: Chunk) -> tuple[Any, ...]:
    return chunk.num_particles, *(tensor.shape for tensor in chunk.batch)


def _other_generators() -> tuple[Any, ...]:
    """The states of Python's and NumPy's, to be compared."""
    state: Any = np.random.get_state()  # noqa: NPY002  (the global one is what is wanted)
    _, numbers, position, *_ = state
    return random.getstate(), position, numbers.tobytes()
