"""One update of a pair's parameters: the gradients of a batch, clipping, the optimizer."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyrovae.training.processes import Processes
from pyrovae.training.random_states import remembered
from pyrovae.training.step import Step

__all__ = ["Update"]


class Update:
    """`update(*batch)`: one step of training, operation by operation; returns the loss, mean nats per datum.

    Args:
        step: what is minimised.
        optimizer: of the step's parameters.
        clip_norm: largest norm of all gradients together.
        autocast: a context in which losses are computed.
        processes: those that train together, each with a part of the batch; all of them call it.

    Attributes:
        begun: whether there was a step yet.
        failure: why a compiled update has gone back to eager steps, in one line.
    """

    failure: str | None = None

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        autocast: contextlib.AbstractContextManager[Any] | None = None,
        processes: Processes | None = None,
    ):
        self.step = step
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.autocast = contextlib.nullcontext() if autocast is None else autocast
        self.processes = processes or Processes()
        self.parameters = list(step.known.parameters.values())
        self.begun = False

    def __call__(self, *batch: Tensor) -> Tensor:
        """Move the parameters, and return the loss from before; without a batch, for a process that has no rows."""
        loss = self.gradients(*batch) if self.processes.size == 1 else self.shared_gradients(*batch)
        self.apply()
        return loss

    def gradients(self, *batch: Tensor) -> Tensor:
        """Set the parameters' `.grad` to the gradients of one batch, and return its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        restore_generators = remembered() if is_validation_enabled() else None
        try:
            with self.autocast:
                return self.step.backward(*batch)
        except ValueError:  # Pyro's checks may meet what is no longer finite before the loss does
            if restore_generators is None:
                raise
            restore_generators()
            with self.autocast, pyro.validation_enabled(False):
                loss = self.step.backward(*batch)
            if torch.isfinite(loss):
                raise
            return loss

    def shared_gradients(self, *batch: Tensor) -> Tensor:
        """Set gradients to those of the whole batch, of which each process brings a part, and return its loss.

        A gradient that is missing here counts as zero where another process has it; where none has, it stays missing,
        as in one process. Buffers that the step wrote are averaged too, so that running means of the batch are right.
        """
        buffers = list(self.step.known.buffers.values())
        versions = [buffer._version for buffer in buffers]
        like = next(parameter for parameter in self.parameters if parameter.is_floating_point())
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(*batch).to(like, copy=True) if batch else like.new_zeros(())
        used = [parameter.grad is not None for parameter in self.parameters]
        written = [buffer._version != version for buffer, version in zip(buffers, versions, strict=True)]
        flags = iter(self.processes.union([*used, *written]))
        shared = [loss]
        for parameter in self.parameters:
            if next(flags):
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                shared.append(parameter.grad)
        shared += [buffer for buffer in buffers if next(flags)]
        self.processes.average_(shared, weight=len(batch[0]) if batch else 0)
        return loss

    def apply(self) -> None:
        """Clip the gradients and let the optimizer use them."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
