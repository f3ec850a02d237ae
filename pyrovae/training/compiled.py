"""The compiled update: gradients, clipping and optimizer as one graph of fused kernels, watched by the eager one."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.graphs.backends import inductor, rounding
from pyrovae.graphs.capture import CaptureError, Graph, capture
from pyrovae.graphs.undone import Undone
from pyrovae.models.base import Structure
from pyrovae.training.processes import Processes
from pyrovae.training.random_states import random_state, remembered
from pyrovae.training.step import Step
from pyrovae.training.update import Update

__all__ = ["CompiledUpdate", "worthwhile"]

MOST_GRAPHS = 16  # shapes of batches and modes of modules, before something must be wrong


def worthwhile(steps: int, known: Structure, device: torch.device) -> bool:
    """Whether compiling pays: the rule behind `fit(compile="auto")`, of nothing but the plan and the pair.

    A compiled step saves about 0.8 ms of handlers at each site, and a fused optimizer a nanosecond for each parameter;
    compiling takes about 20 s. Measured on two cores; on a GPU, where each saved launch counts, a tenth is enough.
    """
    sites = len(known.latent) + len(known.observed)
    saved = steps * (8e-4 * sites + 1e-9 * sum(parameter.numel() for parameter in known.parameters.values()))
    return saved > (2.0 if device.type == "cuda" else 20.0)


@dataclass
class _Compiled:
    """A graph ready to run: `call(*inputs)`, of which the last are the batch."""

    call: Callable[..., Sequence[Tensor]]
    state: list[Tensor]
    found: list[Tensor]
    with_gradient: list[Tensor]
    applies: bool  # whether clipping and the optimizer are in the graph


class CompiledUpdate(Update):
    """The same call as `Update`, by graphs that are captured from it, one for each shape of batch, and compiled.

    The first step is an eager one, in which the optimizer makes its state. Each new graph is compared with the eager
    update from the same state and random numbers, in loss, gradients, parameters and buffers; so is the next step after
    `watch()`. On a difference, or where nothing can be captured, this and all further steps are eager ones, and
    `failure` says why. An optimizer that needs the values of its tensors in Python, or whose settings other than the
    learning rate change, stays outside of the graphs.

    Args:
        step, optimizer, clip_norm, autocast, processes: as for `Update`. Several processes average the gradients after
            the backward pass, so that the optimizer is in none of their graphs.
        backend: what makes a function of a graph.

    Attributes:
        seconds: spent on capturing and compiling.

    >>> from pyrovae.graphs.backends import interpreted
    >>> from pyrovae.models import VAE
    >>> from pyrovae.models.base import structure
    >>> vae, x = VAE((4,), latent_dim=2, hidden=(8,)), torch.ones(16, 4)
    >>> step = Step(vae, None, structure(vae, x))
    >>> update = CompiledUpdate(step, torch.optim.Adam(vae.parameters()), backend=interpreted)
    >>> losses = [update(x) for _ in range(3)]
    >>> update.failure is None, len(update.graphs)
    (True, 1)
    """

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        autocast: contextlib.AbstractContextManager[Any] | None = None,
        processes: Processes | None = None,
        backend: Callable[[Graph], Callable[..., Sequence[Tensor]]] = inductor,
    ):
        super().__init__(step, optimizer, clip_norm=clip_norm, autocast=autocast, processes=processes)
        self.whole = self._applies = self.processes.size == 1
        self._fixed: list[Any] = []
        self.backend = backend
        self.graphs: dict[Any, _Compiled] = {}
        self.seconds = 0.0
        self._watched = True
        self.learning_rates: list[Tensor] = []
        self._rates: list[float] = []

    def watch(self) -> None:
        """Compare the next step with the eager one."""
        self._watched = True

    def __call__(self, *batch: Tensor) -> Tensor:
        """Move the parameters, and return the loss from before."""
        return self._chosen(batch) if self.whole else super().__call__(*batch)

    def gradients(self, *batch: Tensor) -> Tensor:
        """Set the parameters' `.grad` to the gradients of one batch, and return its loss."""
        return super().gradients(*batch) if self.whole else self._chosen(batch)

    def _eager(self, batch: tuple[Tensor, ...]) -> Tensor:
        return super().__call__(*batch) if self.whole else super().gradients(*batch)

    def _chosen(self, batch: tuple[Tensor, ...]) -> Tensor:
        if self.failure is None and self.begun:
            if self._applies and self._settings() != self._fixed:
                self._applies = not self.graphs  # a schedule that changes more than the learning rate will do it again
                self._fixed = self._settings()
                self.graphs.clear()
            key = self._key(batch)
            if key in self.graphs and not self._watched:
                return self._run(self.graphs[key], batch)
            return self._compared(key, batch)
        self.begun = True
        return self._eager(batch)

    def _key(self, batch: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """What a graph is fixed for."""
        return (
            *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch),
            *(module.training for module in self.step.known.modules),
            *(parameter.requires_grad for parameter in self.parameters),
        )

    def _settings(self) -> list[Any]:
        """What an optimizer in a graph is fixed for."""
        groups = self.optimizer.param_groups
        return [value for group in groups for name, value in group.items() if name not in ("params", "lr")]

    def _run(self, compiled: _Compiled, batch: tuple[Tensor, ...]) -> Tensor:
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if rates != self._rates:
            for tensor, rate in zip(self.learning_rates, rates, strict=True):
                tensor.fill_(rate)
            self._rates = rates
        with torch.no_grad():
            loss, *gradients = compiled.call(*compiled.state, *batch, *compiled.found)
        for parameter, gradient in zip(compiled.with_gradient, gradients, strict=True):
            parameter.grad = gradient
        if self.whole and not compiled.applies:
            self.apply()
        return loss

    # Capture and comparison -------------------------------------------------------------------------------------------

    def _compared(self, key: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """This step compiled if it is what the eager step is, and that one otherwise."""
        self._watched = False
        restore_generators = remembered()
        known = self.graphs.get(key)  # knows every tensor that a step may change
        with Undone() if known is None else _Restored([*known.state, *known.found]) as eager:
            before = {name: buffer.clone() for name, buffer in self.step.known.buffers.items()}
            loss = self._eager(batch)
            expected = self._outcome(loss)
        eager_generators = remembered()
        restore_generators()
        try:
            changed = [name for name, value in before.items() if not torch.equal(value, expected["buffer"][name])]
            if changed and not self.whole:
                raise CaptureError(f"the step writes buffers {changed[:3]}, which the processes average")
            if key not in self.graphs:
                if len(self.graphs) == MOST_GRAPHS:
                    raise CaptureError(f"{MOST_GRAPHS} shapes of batches or modes of modules came already")
                self.graphs[key] = self._captured(batch)
            restore_generators()
            with _Restored([*self.graphs[key].state, *self.graphs[key].found]) as compiled:
                compiled_loss = self._run(self.graphs[key], batch)
                difference = _difference(expected, self._outcome(compiled_loss), self._tolerance)
            if difference is None:
                compiled.again()
                return compiled_loss
            self.failure = (
                f"the compiled step has another {difference} than the eager one: what the program reads in Python has "
                "changed since, or it draws random numbers outside of torch"
            )
        except Exception as error:  # a compiler fails in many ways, and none may cost the user's run
            self.failure = " ".join(str(error).split())[:300] or type(error).__name__
        warnings.warn(f"training goes on with eager steps: {self.failure}", RuntimeWarning, stacklevel=2)
        self.graphs.clear()
        eager.again()  # and not once more: the program may count its calls
        eager_generators()
        for name, parameter in self.step.known.parameters.items():
            parameter.grad = expected["gradient"].get(name)
        return loss

    def _captured(self, batch: tuple[Tensor, ...]) -> _Compiled:
        began, before = time.perf_counter(), random_state()
        if not self.learning_rates:
            self.learning_rates = [
                torch.tensor(float(group["lr"]), dtype=torch.float64, device=group["params"][0].device)
                for group in self.optimizer.param_groups
            ]
        kept = [tensor for values in self._named().values() for tensor in values.values()]
        state = [*kept, *self.learning_rates]
        for applies in (True, False) if self._applies else (False,):
            recorded = _Recorded(self, batch, applies)
            try:
                with Undone(), _same_attributes(self.step):
                    graph = capture(recorded, [*state, *batch])
                break
            except CaptureError:
                if not applies:
                    raise
        after = random_state()
        if not all(torch.equal(before[name], after[name]) for name in ("python", "numpy")):
            raise CaptureError("the program draws random numbers from Python's or NumPy's generator; draw from torch's")
        compiled = _Compiled(
            self.backend(graph), state, graph.inputs[len(state) + len(batch) :], recorded.with_gradient, applies
        )
        self.seconds += time.perf_counter() - began
        return compiled

    def _named(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a step changes, by kind and name."""
        named = {"parameter": self.step.known.parameters, "buffer": self.step.known.buffers}
        for name, parameter in self.step.known.parameters.items():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    named.setdefault(f"optimizer's {kind}", {})[name] = value
        return named

    def _outcome(self, loss: Tensor) -> dict[str, dict[str, Tensor]]:
        """What a step has led to, as copies."""
        gradients = {n: p.grad for n, p in self.step.known.parameters.items() if p.grad is not None}
        outcome = {"loss": {"": loss}, "gradient": gradients, **self._named()}
        return {
            kind: {name: value.detach().clone() for name, value in values.items()} for kind, values in outcome.items()
        }

    def _tolerance(self, dtype: torch.dtype) -> float:
        """The largest relative difference that rounding may make."""
        if isinstance(self.autocast, torch.autocast) and self.autocast._enabled:
            return rounding(torch.bfloat16)
        return rounding(dtype)


class _Recorded:
    """One step as a function without arguments, to be captured."""

    def __init__(self, update: CompiledUpdate, batch: tuple[Tensor, ...], applies: bool):
        self.update = update
        self.batch = batch
        self.applies = applies
        self.with_gradient: list[Any] = []

    def __call__(self) -> list[Any]:
        loss = Update.gradients(self.update, *self.batch)
        if self.applies:
            with _tensors_only(self.update.optimizer, self.update.learning_rates):
                self.update.apply()
        self.with_gradient = [parameter for parameter in self.update.parameters if parameter.grad is not None]
        return [loss, *(parameter.grad for parameter in self.with_gradient)]


@contextlib.contextmanager
def _tensors_only(optimizer: torch.optim.Optimizer, learning_rates: list[Tensor]) -> Iterator[None]:
    """Have an optimizer compute with tensors where it would read their values, as it does for torch.compile."""
    before = [dict(group) for group in optimizer.param_groups]
    steps = [(state, state["step"]) for state in optimizer.state.values() if isinstance(state.get("step"), Tensor)]
    flag = torch.compiler._is_compiling_flag
    try:
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
            wanted = {"lr": rate, "capturable": True, "fused": False, "foreach": rate.is_cuda}
            group.update({name: value for name, value in wanted.items() if name in group})
        for state, step in steps:  # 1 - 0.999^step has lost four digits in float32
            state["step"] = step.double()
        torch.compiler._is_compiling_flag = True
        yield
        for state, step in steps:
            step.copy_(state["step"])
    finally:
        torch.compiler._is_compiling_flag = flag
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)
        for state, step in steps:
            state["step"] = step


class _Restored:
    """The quick form of `Undone`, for tensors that are known."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = tensors
        self.others = [tensor.detach().clone() for tensor in tensors]

    def __enter__(self) -> _Restored:
        return self

    def __exit__(self, *_: Any) -> None:
        self.again()

    def again(self) -> None:
        """Exchange the values of now for the others."""
        now = [tensor.detach().clone() for tensor in self.tensors]
        with torch.no_grad():
            for tensor, value in zip(self.tensors, self.others, strict=True):
                if not torch.equal(tensor, value):  # expanded tensors, which no step changes, can't be written to
                    tensor.copy_(value)
        self.others = now


@contextlib.contextmanager
def _same_attributes(step: Step) -> Iterator[None]:
    """Numbers and words that a program keeps on the pair or its modules are as before: this call does not count."""
    owners = {id(owner): vars(owner) for owner in (step.pair, *step.known.modules) if hasattr(owner, "__dict__")}
    before = [
        (held, {name: value for name, value in held.items() if isinstance(value, int | float | str | None)})
        for held in owners.values()
    ]
    try:
        yield
    finally:
        for held, values in before:
            held.update(values)


def _difference(
    expected: dict[str, dict[str, Tensor]],
    got: dict[str, dict[str, Tensor]],
    tolerance: Callable[[torch.dtype], float],
) -> str | None:
    """The first tensor that is not what was expected up to rounding; NaN is equal to NaN.

    Optimizers that divide by the gradient's size make a whole step of a gradient that is nothing but rounding: such an
    element of a parameter may have gone either way.
    """
    rounding = {
        name: (value - got["gradient"][name]).abs() > tolerance(value.dtype) * value.abs()
        for name, value in expected["gradient"].items()
        if name in got["gradient"]
    }
    for kind, values in expected.items():
        if values.keys() != got[kind].keys():
            return f"set of {kind}s"
        sizes = {name: _size(value) for name, value in values.items()}
        largest = max(sizes.values(), default=0.0)
        for name, value in values.items():
            off = value.double() - got[kind][name].double()
            if kind == "parameter" and name in rounding:
                off = off.masked_fill(rounding[name], 0.0)
            error = _size(off)
            # Gradients that cancel are nothing but rounding, on the scale of the others.
            allowed = tolerance(value.dtype) * (sizes[name] + 1e-2 * largest)
            same_nans = torch.equal(value.isnan(), got[kind][name].isnan())
            if error > allowed or not same_nans:
                return f"{kind} {name}".strip()
    return None


def _size(value: Tensor) -> float:
    finite = value.detach().double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return finite.abs().max().item() if finite.numel() else 0.0
