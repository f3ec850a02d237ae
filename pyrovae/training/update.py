"""One update of a pair's parameters: the gradients of a batch, clipping, the optimizer."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.training.step import Step

__all__ = ["Update"]


class Update:
    """`update(*batch)`: one step of training, operation by operation; returns the loss, mean nats per datum.

    Args:
        step: what is minimised.
        optimizer: of the step's parameters.
        clip_norm: largest norm of all gradients together.
        autocast: a context in which losses are computed.

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
    ):
        self.step = step
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.autocast = contextlib.nullcontext() if autocast is None else autocast
        self.parameters = list(step.known.parameters.values())
        self.begun = False

    def __call__(self, *batch: Tensor) -> Tensor:
        """Move the parameters, and return the loss from before."""
        loss = self.gradients(*batch)
        self.apply()
        return loss

    def gradients(self, *batch: Tensor) -> Tensor:
        """Set the parameters' `.grad` to the gradients of one batch, and return its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with self.autocast:
                return self.step.backward(*batch)
        except ValueError:  # Pyro's checks may meet what is no longer finite before the loss does
            with self.autocast, pyro.validation_enabled(False):
                loss = self.step.backward(*batch)
            if torch.isfinite(loss):
                raise
            return loss

    def apply(self) -> None:
        """Clip the gradients and let the optimizer use them."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
