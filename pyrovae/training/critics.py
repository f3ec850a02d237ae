"""The critic's side of training by turns: its step, its updates on batches of their own, its state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyrovae.objectives.density_ratio import RatioObjective
from pyrovae.training.compiled import CompiledUpdate
from pyrovae.training.history import Epoch
from pyrovae.training.step import Step
from pyrovae.training.update import Update

__all__ = ["CriticStep", "CriticTraining", "critic_of"]


def critic_of(objective: Any) -> RatioObjective | None:
    """The objective, if it owns a critic that has something to learn."""
    if isinstance(objective, RatioObjective) and any(p.requires_grad for p in objective.critic.parameters()):
        return objective
    return None


class CriticStep(Step):
    """`step(*batch)`: the loss of an objective's critic on fresh draws of the pair; its parameters are the critic's.

    Args:
        step: the pair's.
    """

    def __init__(self, step: Step):
        super().__init__(step.pair, step.objective, step.known)
        self.of_pair = self.known
        assert isinstance(self.objective, RatioObjective)
        critic = self.objective.critic
        parameters: dict[str, Tensor] = dict(critic.named_parameters())
        buffers: dict[str, Tensor] = dict(critic.named_buffers())
        self.known = dataclasses.replace(self.known, parameters=parameters, buffers=buffers)

    def forward(self, *batch: Any) -> Tensor:
        """The logistic loss, nats."""
        return self.objective.critic_loss(self.pair, *batch, known=self.of_pair)


class CriticTraining:
    """Trains the critic of a pair's step, some updates before each of the pair's.

    Args:
        step: the pair's.
        batches: `batches(epoch, skip)` are those of one pass over the data, less the first `skip`.
        steps_per_epoch: how many there are in all of a pass.
        make_update: `make_update(step, optimizer)`, an `Update` of the kind that the pair has.

    Attributes:
        optimizer: of the critic's parameters.
        in_epoch: its losses in the pair's epoch.
    """

    def __init__(
        self,
        step: Step,
        batches: Callable[[int, int], Iterator[tuple[Tensor, ...]]],
        steps_per_epoch: int,
        make_update: Callable[..., Update],
    ):
        own = CriticStep(step)
        self.steps: int = step.objective.critic_steps
        self.optimizer: Any = step.objective.critic_optimizer(list(own.known.parameters.values()))
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"critic_optimizer made a {type(self.optimizer).__name__}, which is no torch optimizer; "
                "pass functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        self.update = make_update(own, self.optimizer)
        self.batches, self.steps_per_epoch = batches, steps_per_epoch
        self.rest: Iterator[tuple[Tensor, ...]] = iter(())
        self.done: int | None = None  # updates so far: where in its passes over the data it is
        self.in_epoch = Epoch()

    def learn(self, step: int) -> None:
        """The updates before step number `step` of the pair, counted from 0."""
        first = step * self.steps
        for number in range(first, first + self.steps):
            if number != self.done or number % self.steps_per_epoch == 0:
                self.rest = self.batches(*divmod(number, self.steps_per_epoch))
            self.in_epoch.add(self.update(*next(self.rest)), 1)
            self.done = number + 1

    def watch(self) -> None:
        """Compare the next compiled update with an eager one."""
        if isinstance(self.update, CompiledUpdate):
            self.update.watch()

    def read(self) -> None:
        """Wait for the losses since the last look.

        Raises:
            FloatingPointError: if one is not finite.
        """
        bad = next((loss for loss in self.in_epoch.read() if not math.isfinite(loss)), None)
        if bad is not None:
            raise FloatingPointError(
                f"the loss of the critic is {bad}; give the objective a smaller rate for it, critic_optimizer="
                "functools.partial(torch.optim.Adam, lr=1e-4), or look at the latents that it is called with"
            )

    def end_epoch(self) -> float:
        """The mean loss of the updates in an epoch of the pair, which ends here, nats."""
        self.read()
        finished, self.in_epoch = self.in_epoch, Epoch()
        return finished.total / finished.rows

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, beside its parameters, buffers and optimizer."""
        epoch = self.in_epoch
        return {"in_epoch": [epoch.steps, epoch.rows, epoch.total], "eager_because": self.update.failure}

    def resume(self, state: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.optimizer.load_state_dict(optimizer)
        self.in_epoch = Epoch(*state["in_epoch"])
        self.update.failure, self.update.begun = state["eager_because"], True
