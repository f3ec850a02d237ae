"""`fit`: the one way to train any pair. What it is given is checked here; the loop itself is in `loop`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch

from pyrovae.graphs.backends import compiler
from pyrovae.models.base import Structure, as_pair
from pyrovae.models.rebuild import describe
from pyrovae.objectives import Objective
from pyrovae.training import checkpoint
from pyrovae.training.alone import alone_in
from pyrovae.training.arguments import check_callbacks, check_numbers
from pyrovae.training.compiled import worthwhile
from pyrovae.training.loop import Callback, Loop, Run
from pyrovae.training.precision import default_dtype, tensor_float32
from pyrovae.training.preparation import check_batches, check_support, first_rows_hash, prepare, splits
from pyrovae.training.processes import check_divisible, in_workers, join, wants_workers
from pyrovae.training.runs import load
from pyrovae.training.step import Step

__all__ = ["fit"]

_DTYPES = {
    None: None,
    "float32": torch.float32,
    "float64": torch.float64,
    "tf32": torch.float32,
    "bfloat16": torch.float32,
}


def fit(
    pair: Any,
    data: Any,
    *,
    objective: pyro.infer.ELBO | None = None,
    max_epochs: int = 100,
    batch_size: int | None = None,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, fused=True),  # noqa: B008
    schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    clip_norm: float | None = None,
    validation: Any = None,
    patience: int | None = None,
    plate: str | None = None,
    accelerator: str = "auto",
    devices: int | str | None = None,
    strategy: str = "auto",
    precision: str | None = None,
    compile: bool | str = "auto",
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback | Callable[[Run], None]] = (),
    progress: bool | None = None,
) -> Run:
    """Fit any pair to data by stochastic gradient ascent on an objective.

    It updates the parameters that the pair owns, as SVI does, those in Pyro's param store too, and leaves all else as
    it was: random states, Pyro's settings, the default dtype, signal handlers. Ctrl-C ends it after the current step
    and leaves a usable pair; a second one ends it at once.

    Several processes train one pair together, data-parallel: with `devices=2`, or started by
    `torchrun --nproc_per_node=2 script.py` where nothing need be passed. Each runs the script from the start, has all
    parameters and data, and takes its part of each batch; `run.rank` is its number. Gradients are those of the whole
    batch. Process 0 alone writes to `out` and shows progress; callbacks run on all.

    Args:
        pair: see `pyrovae.as_pair`.
        data: `pyrovae.data.Data` (its validation split is used), or a tensor, tuple or dict of tensors, Split or torch
            Dataset; see `pyrovae.data.match`.
        objective: what to maximise; one of the library's or of `pyro.infer`'s. Default: the one that a pair of
            the library names as its `trained_by`, else `ELBO()`. A critic that it owns
            is trained too, by turns with the pair and in place, see `pyrovae.RatioObjective`.
        max_epochs: passes over the data.
        batch_size: rows per step, of all processes together, by default 128 or all; the last batch of an epoch may be
            smaller. A model that subsamples by itself gets all rows in each step instead.
        lr: learning rate of the optimizer.
        optimizer: called as `optimizer(parameters, lr=lr)`; a torch optimizer class or a partial of one.
            Default: Adam.
        schedule: called as `schedule(optimizer)`; a torch learning-rate scheduler, stepped once an epoch.
        clip_norm: largest norm of all gradients together; of a critic's likewise.
        validation: data to validate on after each epoch, or a fraction of the rows to hold out; False for none.
        patience: end after this many epochs without a lower validation loss, and restore the best parameters.
        plate: name of the data plate, where it is not plain.
        accelerator: "auto" (a GPU if there is one), "cpu", "cuda", or any name of a torch device.
        precision: "float32", "float64", "tf32", "bfloat16"; None leaves pair and data as they are. See
            `pyrovae.training.precision`.
        compile: whether steps are captured as graphs and compiled, see `pyrovae.training.compiled`; what can't be goes
            on eagerly, with a warning that says why. "auto" does where the planned steps are worth the seconds that
            compiling takes, and where there is a compiler; a resumed run goes on as it began.
        devices: processes on this machine, each with its device: a number, or "auto" for one a GPU. None for those that
            a launcher has started, else one; 1 for one even there.
        strategy: how Lightning Fabric (the extra `distributed`) starts them: "ddp" or "auto" runs this script again
            for each, so that it must lead here without a prompt or a notebook; "ddp_fork" (notebooks) and
            "ddp_spawn" start processes that end with this call, and leave the pair on the CPU.
        seed: of the order of rows, the particles and every other draw. None draws one from torch's generator, or takes
            the run's where that is resumed.
        out: folder for history.csv and checkpoints.
        resume: go on from the newest checkpoint in `out`, exactly as if there had been no interruption.
        callbacks: see `Callback`.
        progress: True for a bar (lines where there is no terminal), False for silence; None is True.

    Returns:
        the `Run`, its pair moved to the accelerator.

    Raises:
        TypeError, ValueError, FileNotFoundError: for arguments and data that can't work, before training starts.
        FloatingPointError: if the loss stops being finite; the pair then has its parameters from before that epoch.
        ConnectionError: if another process dies or fails.
        ImportError: if processes are to be started and lightning-fabric is not installed.

    >>> import torch
    >>> from pyrovae.models import VAE
    >>> x = torch.rand(64, 4).round()
    >>> run = fit(VAE((4,), latent_dim=2, hidden=(8,)), x, max_epochs=2, seed=0, progress=False)
    >>> len(run.history["train_loss"]), run.step
    (2, 2)
    """
    arguments = dict(locals())
    pair = as_pair(pair)
    check_numbers(max_epochs=max_epochs, batch_size=batch_size, lr=lr, clip_norm=clip_norm, patience=patience)
    if compile not in ("auto", True, False):
        raise ValueError(f"compile is {compile!r}; pass 'auto', True or False")
    if precision not in _DTYPES:
        raise ValueError(f"precision is {precision!r}; pass one of {', '.join(str(name) for name in _DTYPES)}")
    device = _device(accelerator)
    train, held_out = splits(data, pair, validation)
    batch_size = min(128, len(train)) if batch_size is None else batch_size
    if batch_size > len(train):
        raise ValueError(f"batch_size is {batch_size}, the data have {len(train)} rows; pass batch_size<={len(train)}")
    if patience is not None and held_out is None:
        raise ValueError(
            f"patience is {patience}, but there are no validation data; pass validation=0.1, or patience=None"
        )
    check_callbacks(callbacks)
    folder = _run_folder(out, resume)
    recorded = _recorded(folder) if resume else {}
    seed = _seed(recorded.get("seed") if seed is None else seed)
    if wants_workers(devices, strategy, device):
        return _in_workers({**arguments, "seed": seed}, device)

    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(join(devices, strategy, device))
        if folder is not None and processes.rank == 0:
            stack.enter_context(alone_in(folder))
            _run_folder(out, resume)  # another run may have ended there meanwhile
        device, seed = processes.device, processes.first(seed)
        stack.enter_context(_surroundings(seed, device, _DTYPES[precision], recorded.get("threads")))
        stack.enter_context(tensor_float32(precision == "tf32"))
        train = train.to(device, _DTYPES[precision])
        held_out = None if held_out is None else held_out.to(device, _DTYPES[precision])
        part = -(-batch_size // processes.size)  # rows of process 0, which has the most
        known, batch = prepare(pair, train, part, plate, device, _DTYPES[precision])
        check_support(pair, known, train, "data")
        if held_out is not None:
            check_support(pair, known, held_out, "validation")
        step = Step(pair, objective, known)
        if callable(check := getattr(step.objective, "check_data", None)):
            check(train)
        check_divisible(step, rows=len(train), batch_size=batch_size, batch_rows=len(batch[0]), processes=processes)
        batch_size = len(batch[0]) if processes.size == 1 else batch_size
        autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
        if processes.size == 1:  # each of several has batches of its own
            with autocast:
                check_batches(step, train, held_out, batch_size)
        loop = Loop(step, train, held_out, batch_size=batch_size, seed=seed, processes=processes)
        says = progress is not False and processes.rank == 0
        compiled: Any = recorded.get("compile", compile) if compile == "auto" else compile
        if compiled == "auto":
            compiled = _compiles(max_epochs * loop.steps_per_epoch, known, device, says=says)
        loop.optimize(optimizer, lr, schedule, clip_norm, autocast=autocast, compiled=compiled)
        loop.run.config = {
            "pair": describe(pair),
            "batch": [[list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for tensor in batch],
            "plate": known.plate,
            "objective": _spell(step.objective),
            "optimizer": _spell(optimizer),
            "schedule": None if schedule is None else _spell(schedule),
            "batch_size": batch_size,
            "lr": lr,
            "clip_norm": clip_norm,
            "patience": patience,
            "max_epochs": max_epochs,
            "rows": len(train),
            "data_hash": first_rows_hash(train),
            "validation_rows": None if held_out is None else len(held_out),
            "precision": precision,
            "compile": compiled,
            "threads": torch.get_num_threads(),
            "seed": seed,
            "processes": processes.size,
        }
        loop.run.out = folder
        loop.synchronize()
        if resume:
            loop.resume()
        loop.train(max_epochs, patience=patience, callbacks=callbacks, progress=progress is not False)
    return loop.run


def _in_workers(arguments: dict[str, Any], device: torch.device) -> Run:
    """The run of processes that end with it, brought back through its folder."""
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments["out"] or temporary
        kept = {**arguments, "out": out, "devices": None, "strategy": "auto"}
        interrupted = in_workers(_work, kept, arguments["devices"], arguments["strategy"], device)
        run = load(out, arguments["pair"], critic=getattr(arguments["objective"], "critic", None))
    run.interrupted, run.out = interrupted, None if arguments["out"] is None else run.out
    return run


def _work(_: Any, arguments: dict[str, Any]) -> bool:
    return fit(**arguments).interrupted


def _recorded(folder: Path | None) -> dict[str, Any]:
    """The configuration of the run that is resumed."""
    assert folder is not None
    path = checkpoint.latest(folder / "checkpoints")
    assert path is not None
    return checkpoint.read(path).config


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(torch.randint(2**31, ()))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed is {seed!r}, a whole number is wanted; pass seed=0, say")
    if not 0 <= seed < 2**32:  # numpy's generator takes no other
        raise ValueError(f"seed is {seed}, it must be at least 0 and below 2**32; pass seed=0, say")
    return seed


def _device(accelerator: str) -> torch.device:
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(accelerator)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"accelerator is {accelerator!r}; pass 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"accelerator is {accelerator!r}, but torch finds no GPU here; pass accelerator='cpu'")
    try:
        torch.empty((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"accelerator is {accelerator!r}, which torch can't use here ({first}); pass 'cpu'") from error
    return device


def _compiles(steps: int, known: Structure, device: torch.device, *, says: bool) -> bool:
    """What compile="auto" means here."""
    obstacle = compiler(device)
    if obstacle is None and not worthwhile(steps, known, device):
        obstacle = "too few to be worth compiling"
    if says:
        reason = "" if obstacle is None else f": {obstacle}"
        print(f"{'eager' if obstacle else 'compiled'} steps, {steps} are planned{reason}", file=sys.stderr)
    return obstacle is None


def _run_folder(out: str | os.PathLike[str] | None, resume: bool) -> Path | None:
    if out is None:
        if resume:
            raise ValueError("resume is True, but out is None; pass the folder of the run as out=")
        return None
    folder = Path(out)
    complete = checkpoint.latest(folder / "checkpoints") is not None
    left = [*(folder / "checkpoints").glob("*"), *folder.glob("history.csv")]
    incomplete = not complete and bool(left)  # what is left of a run is not written over
    if not resume and (complete or incomplete):
        fix = "resume=True to go on with it, or another folder" if complete else "another folder, or delete this one"
        raise ValueError(f"out={str(folder)!r} already holds a run; pass {fix}")
    if resume and not complete:
        fix = "pass another folder" if incomplete else "pass resume=False to start a run there"
        raise FileNotFoundError(f"out={str(folder)!r} has no complete checkpoint; {fix}")
    if (folder / "checkpoints").is_file():
        raise ValueError(f"out={str(folder)!r} has a file called checkpoints; pass another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"out={str(folder)!r} can't be written to; pass a folder that you may write to")
    return folder


@contextlib.contextmanager
def _surroundings(seed: int, device: torch.device, dtype: torch.dtype | None, threads: int | None) -> Iterator[None]:
    """Seeded generators, and new tensors of a user's program where they belong; all as before afterwards."""
    if device.type == "cuda":
        torch.cuda.init()  # or its generators would have no state yet to come back to
    states = checkpoint.random_state()
    threads_before = torch.get_num_threads()
    try:
        if threads is not None:  # sums over other parts would round differently
            torch.set_num_threads(threads)
        pyro.set_rng_seed(seed)
        with default_dtype(dtype), contextlib.nullcontext() if device.type == "cpu" else device:
            yield
    finally:
        torch.set_num_threads(threads_before)
        checkpoint.set_random_state(states)


def _spell(value: Any) -> str:
    """A readable name for the record: of a class, a function, a partial of one, or an objective."""
    if isinstance(value, partial):
        options = {name: _spell(option) if callable(option) else option for name, option in value.keywords.items()}
        return f"{_spell(value.func)}({', '.join(f'{name}={option}' for name, option in options.items())})"
    if isinstance(value, Objective):
        return repr(value)
    if isinstance(value, pyro.infer.ELBO):
        return f"{type(value).__name__}(num_particles={value.num_particles})"
    return getattr(value, "__name__", type(value).__name__)
