"""The training step: a batch to a scalar, the mean loss per datum."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pyro.infer
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae import objectives
from pyrovae.models.base import Structure, as_pair
from pyrovae.objectives import Objective
from pyrovae.objectives.particles import without_autocast

__all__ = ["OBJECTIVE", "Step"]

OBJECTIVE = "objective/"  # begins the names of what an objective has learned, beside the pair's buffers


class Step(nn.Module):
    """`step(*batch)`: the loss of a pair under an objective, mean nats per datum.

    From here on all is ordinary PyTorch: it shares every parameter and buffer of the pair, whichever way that is
    written, those in Pyro's param store too. Pyro's own objectives sum over the data plate; the step divides by the
    plate's size, so that subsampled plates come out per datum as well.

    Args:
        pair: see `pyrovae.as_pair`.
        objective: one of the library's or of `pyro.infer`'s. Default: the pair's `trained_by`, else `ELBO()`.
        known: the pair's structure.

    Raises:
        TypeError: for anything else as objective.

    >>> from pyrovae.models import VAE
    >>> from pyrovae.models.base import structure
    >>> from pyrovae.objectives import ELBO
    >>> vae, x = VAE((4,), latent_dim=2), torch.ones(3, 4)
    >>> Step(vae, ELBO(), structure(vae, x))(x).shape
    torch.Size([])
    """

    def __init__(self, pair: Any, objective: pyro.infer.ELBO | None, known: Structure):
        super().__init__()
        self.pair = as_pair(pair)
        objective = getattr(objectives, getattr(pair, "trained_by", "ELBO"))() if objective is None else objective
        if not isinstance(objective, pyro.infer.ELBO):
            raise TypeError(
                f"objective is {objective!r}, not an objective; pass an instance, pyrovae.ELBO() or "
                "pyro.infer.Trace_ELBO() for example"
            )
        if isinstance(objective, pyro.infer.ReweightedWakeSleep):
            raise TypeError(
                "objective is pyro.infer.ReweightedWakeSleep, which weighs whole batches and not data; "
                "pass pyrovae.ReweightedWakeSleep(5), say"
            )
        if type(objective).__name__.startswith("Jit"):
            raise TypeError(
                f"objective is pyro.infer.{type(objective).__name__}, whose program, once compiled, no longer says how "
                "many data it is of; pass the one without Jit, steps are compiled by fit(compile=True)"
            )
        if isinstance(objective, pyro.infer.TraceTailAdaptive_ELBO):
            raise TypeError(
                "objective is pyro.infer.TraceTailAdaptive_ELBO, which reports an infinite loss, by which fit would "
                "stop; pass pyrovae.Renyi(0.5, 5), say, or train it with pyro.infer.SVI"
            )
        # Pyro's objectives remember the plates of the pair that they first saw.
        self.objective = objective if isinstance(objective, Objective) else copy.deepcopy(objective)
        if self.objective.max_plate_nesting == math.inf:  # else they guess, with draws that a resumed run would repeat
            in_a_plate = self.objective.vectorize_particles and self.objective.num_particles > 1
            self.objective.max_plate_nesting = known.max_plate_nesting + in_a_plate
        critic = self.objective.critic if isinstance(self.objective, Objective) else None
        if isinstance(self.objective, Objective) and (self.objective.schedules or critic is not None):
            like = next(p for p in known.parameters.values() if p.is_floating_point())
            for part in (*self.objective.schedules.values(), *filter(None, [critic])):
                part.to(like)
            own_state = {f"{OBJECTIVE}{name}": tensor for name, tensor in self.objective.buffers.items()}
            modules = dict.fromkeys([*known.modules, *(critic.modules() if critic is not None else ())])
            known = dataclasses.replace(known, buffers={**known.buffers, **own_state}, modules=tuple(modules))
        self.known = known
        # Those of plain functions are in Pyro's store, as tensors that are no nn.Parameter.
        for held, tensors, own in (
            (self.parameters(), known.parameters, self._parameters),
            (self.buffers(), known.buffers, self._buffers),
        ):
            already = {id(tensor) for tensor in held}
            own.update({n.replace(".", "/"): t for n, t in tensors.items() if id(t) not in already})  # type: ignore

    def forward(self, *batch: Any) -> Tensor:
        """Mean loss per datum, nats; differentiable, save for objectives that only have `loss_and_grads`."""
        if isinstance(self.objective, Objective):
            return -self.objective.mean(self.objective.draw(self.pair, *batch, known=self.known))
        loss = self.objective.loss
        if torch.is_grad_enabled():  # without, TraceEnum_ELBO's differentiable one raises
            loss = getattr(self.objective, "differentiable_loss", loss)
        with _PlateSize(self.known.plate) as plate:
            value = loss(self.pair.model, self.pair.guide, *batch)
        value = _tensor(value)
        if value.requires_grad:  # where it is captured, what Pyro sums in Python is a tensor in double precision
            value = value.to(next(p.dtype for p in self.known.parameters.values() if p.is_floating_point()))
        return value / plate.size

    def backward(self, *batch: Any) -> Tensor:
        """Add the gradients to the parameters' `.grad`, and return the loss."""
        if isinstance(self.objective, Objective) or hasattr(self.objective, "differentiable_loss"):
            loss = self(*batch)
            with without_autocast(loss):  # each gradient in the precision that the forward pass chose
                loss.backward()
            return loss.detach()
        parameters = list(self.known.parameters.values())
        before = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        with _PlateSize(self.known.plate) as plate:
            total = self.objective.loss_and_grads(self.pair.model, self.pair.guide, *batch)
        for parameter, earlier in zip(parameters, before, strict=True):
            if parameter.grad is not None:
                parameter.grad /= plate.size
            if earlier is not None:
                parameter.grad = earlier if parameter.grad is None else parameter.grad + earlier
        return _tensor(total) / plate.size


def _tensor(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


class _PlateSize(Messenger):
    """Reads the full size of a plate while a program runs."""

    def __init__(self, plate: str):
        super().__init__()
        self.plate = plate
        self.size = 1

    def _pyro_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                self.size = frame.full_size
