"""A compiled graph as one CUDA graph: its launches are recorded once and replayed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Replayed"]


class Replayed:
    """`call(*inputs)`, replayed: the first call runs as it is, the second records, all further ones replay.

    Inputs that are the same objects at each call (parameters, buffers, the optimizer's state) are read and written
    where they are; others (the batch) are copied to where the recorded launches look for them. Random numbers go on
    from torch's generator at each replay.

    Args:
        call: of tensors that are all on one GPU.
    """

    def __init__(self, call: Callable[..., Sequence[Tensor]]):
        self.call = call
        self.warm = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.moving: list[int] = []
        self.outputs: Sequence[Tensor] = ()
        self.seen: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What `call` returns; the tensors but the first are overwritten by the next call."""
        if not self.warm:
            self.warm, self.seen = True, list(inputs)
            return list(self.call(*inputs))
        if self.graph is None:
            self._record(inputs)
        assert self.graph is not None
        for index in self.moving:
            self.inputs[index].copy_(inputs[index])
        self.graph.replay()
        first, *others = self.outputs
        return [first.clone(), *others]

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self.moving = [i for i, (a, b) in enumerate(zip(self.seen, inputs, strict=True)) if a is not b]
        self.inputs = [tensor.clone() if i in self.moving else tensor for i, tensor in enumerate(inputs)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.outputs = self.call(*self.inputs)
        self.graph, self.seen = graph, []
