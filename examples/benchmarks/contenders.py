"""Who runs a workload's training step: one function each, from a workload and a device to `run(n)`, n steps.

Every `run` trains on one fixed batch, already on the device, with a learning rate that keeps the numbers where they
start: the time of a step must not depend on how many came before.
"""

from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn

import pyrovae as pv
from examples.benchmarks import peers
from examples.benchmarks.workloads import Workload
from pyrovae.training.compiled import CompiledUpdate
from pyrovae.training.step import Step
from pyrovae.training.update import Update

Run = Callable[[int], object]

LEARNING_RATE = 1e-5


class Missing(RuntimeError):
    """Why a cell of the table stays empty."""


def stock(workload: Workload, device: torch.device) -> Run:
    """`SVI.step` with Pyro's own objective and Adam, as in Pyro's examples."""
    batch, pair = _on(device, workload, workload.stock_pair())
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), workload.stock())
    return _repeated(svi.step, batch)


def stock_unchecked(workload: Workload, device: torch.device) -> Run:
    """The same without Pyro's validation of arguments and shapes, which few programs turn off."""
    run = stock(workload, device)

    def unchecked(n: int) -> None:
        with pyro.validation_enabled(False):
            run(n)

    return unchecked


def torch_eager(workload: Workload, device: torch.device) -> Run:
    """The hand-written loss and torch's fused Adam."""
    return _by_hand(workload, device, compiled=False)


def torch_compiled(workload: Workload, device: torch.device) -> Run:
    """`torch.compile` of the hand-written loss, on a GPU with its CUDA graphs; backward and fused Adam as usual."""
    return _by_hand(workload, device, compiled=True)


def pyrovae_eager(workload: Workload, device: torch.device) -> Run:
    """One step of `pyrovae.fit(compile=False)` after its first epoch."""
    batch, pair = _on(device, workload, workload.pair())
    return _unvalidated(Update(*_ours(workload, pair, batch)), batch)


def pyrovae_compiled(workload: Workload, device: torch.device) -> Run:
    """One step of `pyrovae.fit(compile=True)` between two comparisons with the eager step."""
    batch, pair = _on(device, workload, workload.pair())
    update = CompiledUpdate(*_ours(workload, pair, batch))
    steps = _unvalidated(update, batch)

    def run(n: int) -> None:
        steps(n)
        if update.failure is not None:
            raise Missing(f"fell back to eager steps: {update.failure}")

    return run


def products(workload: Workload, device: torch.device) -> Run:
    """The matrix products alone: forward, and backward for the weights and for inputs that are no data."""
    calls = []
    for m, k, n, of_data in workload.products:
        a, w, g = (torch.randn(shape, device=device, dtype=workload.dtype) for shape in ((m, k), (k, n), (m, n)))
        calls += [(a, w, torch.empty_like(g)), (a.T, g, torch.empty_like(w))]
        if not of_data:
            calls.append((g, w.T, torch.empty_like(a)))

    def multiply() -> None:
        for left, right, out in calls:
            torch.mm(left, right, out=out)

    return _repeated(multiply, ())


def numpyro_step(workload: Workload, device: torch.device) -> Run:
    """NumPyro's `SVI.update` under `jax.jit`, one call per step."""
    return _peer("numpyro_step", workload, device)


def numpyro_epoch(workload: Workload, device: torch.device) -> Run:
    """NumPyro's steps in one `jax.lax.scan`."""
    return _peer("numpyro_epoch", workload, device)


def pythae_step(workload: Workload, device: torch.device) -> Run:
    """pythae's model and optimizer, where it has the model."""
    return _peer("pythae_step", workload, device)


CONTENDERS: dict[str, Callable[[Workload, torch.device], Run]] = {
    "stock": stock,
    "stock unchecked": stock_unchecked,
    "torch eager": torch_eager,
    "torch compiled": torch_compiled,
    "numpyro step": numpyro_step,
    "numpyro epoch": numpyro_epoch,
    "pythae": pythae_step,
    "pyrovae eager": pyrovae_eager,
    "pyrovae compiled": pyrovae_compiled,
    "products": products,
}
MULTIPLE_OF = {"numpyro epoch": 100}  # steps that a contender only runs so many at a time


def _on(device: torch.device, workload: Workload, module: nn.Module) -> tuple[tuple[Tensor, ...], nn.Module]:
    batch = tuple(tensor.to(device, workload.dtype) for tensor in workload.batch())
    return batch, module.to(device, workload.dtype)


def _repeated(step: Callable[..., object], batch: tuple[Tensor, ...]) -> Run:
    def run(n: int) -> None:
        for _ in range(n):
            step(*batch)

    return run


def _unvalidated(step: Callable[..., object], batch: tuple[Tensor, ...]) -> Run:
    def run(n: int) -> None:
        with pyro.validation_enabled(False):  # as in `fit` after its first epoch
            for _ in range(n):
                step(*batch)

    return run


def _by_hand(workload: Workload, device: torch.device, *, compiled: bool) -> Run:
    module, loss_of = workload.handwritten()
    batch, module = _on(device, workload, module)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else "default")

    def step(*batch: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(module, *batch).backward()
        optimizer.step()

    return _repeated(step, batch)


def _ours(workload: Workload, pair: pv.Pair, batch: tuple[Tensor, ...]) -> tuple[Step, torch.optim.Optimizer]:
    step = Step(pair, workload.objective(), pv.structure(pair, *batch))
    return step, torch.optim.Adam(step.known.parameters.values(), lr=LEARNING_RATE, fused=True)


def _peer(function: str, workload: Workload, device: torch.device) -> Run:
    """A column of `examples.benchmarks.peers`, whose packages are the `bench` extra."""
    if device.type == "cuda" and function.startswith("numpyro"):
        import jax

        if jax.default_backend() != "gpu":
            raise Missing("this jax has no GPU")
    try:
        run = getattr(peers, function)(workload.name)
    except ImportError as error:
        raise Missing(str(error)) from error
    if run is None:
        raise Missing("it has no such model")
    return run
