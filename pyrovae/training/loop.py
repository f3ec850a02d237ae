"""The training loop: steps, validation, early stopping, checkpoints, interruption."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrovae.data import Split, Stream
from pyrovae.data.seeds import CRITIC, derived_seed
from pyrovae.models.base import Structure, evaluation_mode, isolated_random_state
from pyrovae.objectives import Objective
from pyrovae.training import checkpoint
from pyrovae.training.compiled import CompiledUpdate
from pyrovae.training.critics import CriticTraining, critic_of
from pyrovae.training.diverged import not_finite
from pyrovae.training.history import Epoch, History
from pyrovae.training.kept import check_continues, checked_state, taken_from
from pyrovae.training.optimizers import made
from pyrovae.training.plain_values import encode
from pyrovae.training.processes import Processes
from pyrovae.training.progress import Progress, interruptible
from pyrovae.training.rescue import rescued
from pyrovae.training.step import Step
from pyrovae.training.update import Update

__all__ = ["Callback", "Loop", "Run"]

READ_EVERY = 50  # steps between two looks at the losses, which wait for the device
SAVE_EVERY = 60.0  # seconds between two checkpoints


class Callback:
    """What `fit` calls as it goes; a plain function counts as `on_epoch`."""

    def on_step(self, run: Run) -> None:
        """After each optimizer step; `run.step` counts them from 1."""

    def on_epoch(self, run: Run) -> None:
        """After each epoch and its validation."""


@dataclass
class Run:
    """What `fit` returns, and what callbacks see while it trains.

    Attributes:
        pair: the pair, trained.
        objective: what was optimised.
        history: a row per epoch: losses in nats per datum, learning rate, seconds.
        config: everything that was resolved, as JSON.
        known: the pair's structure.
        seed: of this run.
        out: folder of the run, if it has one.
        step, epoch: steps and whole epochs done.
        best_epoch, best_loss: of the lowest validation loss, nats per datum.
        interrupted: whether Ctrl-C ended it.
        seconds: of training, validation and checkpoints included.
        stopping: set it from a callback to end after this epoch.
        rank: the number of this process among those that train together.
    """

    pair: Any = field(repr=False)
    objective: Any
    history: History
    config: dict[str, Any]
    known: Structure = field(repr=False)
    seed: int
    out: Path | None = None
    step: int = 0
    epoch: int = 0
    best_epoch: int | None = None
    best_loss: float = math.inf
    interrupted: bool = False
    seconds: float = 0.0
    stopping: bool = False
    rank: int = 0

    def plot(self, ax: Any = None) -> Any:
        """Training curves on `ax`, returned."""
        return self.history.plot(ax=ax)


class Loop:
    """The state of one training run, and what changes it."""

    def __init__(
        self,
        step: Step,
        train: Split | Stream,
        validation: Split | Stream | None,
        *,
        batch_size: int,
        seed: int,
        processes: Processes | None = None,
    ):
        self.step = step
        self.processes = processes or Processes()
        self.part = (self.processes.rank, self.processes.size)
        self.train_data = train
        self.validation_data = validation
        self.batch_size = batch_size
        # A batch is what the structure was found on; several processes never train what subsamples itself.
        self.subsamples_itself = step.known.rows < batch_size and self.processes.size == 1
        self.steps_per_epoch = math.ceil(len(train) / (step.known.rows if self.subsamples_itself else batch_size))
        self.run = Run(step.pair, step.objective, History(), {}, step.known, seed, rank=self.processes.rank)
        self.signalled = False
        self.schedules = step.objective.schedules if isinstance(step.objective, Objective) else {}
        self.state = {**step.known.parameters, **step.known.buffers}
        self.in_store = set(pyro.get_param_store().keys())
        self.watched = 0  # the step at which a compiled update was last compared with an eager one
        self.best: dict[str, Tensor] = {}
        self.in_epoch = Epoch()
        self.critic: CriticTraining | None = None

    def optimize(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr: float,
        schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None,
        clip_norm: float | None,
        *,
        autocast: contextlib.AbstractContextManager[Any],
        compiled: bool,
    ) -> None:
        """Make the optimizer, the schedule of its learning rate, and the update."""
        self.optimizer = made(optimizer, list(self.step.known.parameters.values()), lr)
        self.scheduler = None if schedule is None else schedule(self.optimizer)
        if isinstance(self.scheduler, ReduceLROnPlateau) and self.validation_data is None:
            raise ValueError(
                "schedule is ReduceLROnPlateau, which needs a validation loss, but there are no validation data; pass "
                "validation=0.1, or another schedule"
            )
        kind = CompiledUpdate if compiled else Update
        make_update: Any = partial(kind, clip_norm=clip_norm, autocast=autocast, processes=self.processes)
        self.update: Update = make_update(self.step, self.optimizer)
        if critic_of(self.step.objective):
            self.critic = CriticTraining(self.step, self._critic_batches, self.steps_per_epoch, make_update)

    def synchronize(self) -> None:
        """Start all processes from the values of process 0, each with random numbers of its own."""
        if self.processes.size == 1:
            return
        shapes = {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in self.state.items()}
        facts = {**self.run.config, "out is given": self.run.out is not None, "state": shapes}
        facts["the hash of the first rows of data"] = facts.pop("data_hash")
        self.processes.check_same(facts)
        self.processes.broadcast_(self.state.values())
        if self.processes.rank:
            pyro.set_rng_seed(self.processes.seed(self.run.seed))

    def train(
        self,
        max_epochs: int,
        *,
        patience: int | None,
        callbacks: Sequence[Callback | Callable[[Run], None]],
        progress: bool,
    ) -> None:
        """Train until `max_epochs`, the end of patience, a callback's word or Ctrl-C."""
        run, began = self.run, time.monotonic() - self.run.seconds
        saved = time.monotonic()
        if run.out and self.scheduler:
            encode(self.scheduler.state_dict(), "schedule", None)  # or the first checkpoint would fail, at the end
        if patience is not None and not self.best:  # it begins only now
            run.best_epoch, run.best_loss = None, math.inf
        run.stopping = self._out_of_patience(patience) and run.best_epoch is not None
        bar = Progress(max_epochs, self.steps_per_epoch, run, shown=progress and run.rank == 0)
        with contextlib.closing(bar), self._connected(), interruptible(self):
            while run.epoch < max_epochs and not run.stopping and not run.interrupted:
                with rescued(self):
                    self._epoch(callbacks, bar)
                    run.seconds = time.monotonic() - began
                    if run.interrupted and self.in_epoch.steps < self.steps_per_epoch:
                        break
                    self._end_epoch(patience)
                with self._kept():
                    for callback in callbacks:
                        callback.on_epoch(run) if isinstance(callback, Callback) else callback(run)
                run.stopping, run.interrupted, save = self.processes.union(
                    [run.stopping, run.interrupted or self.signalled, time.monotonic() - saved > SAVE_EVERY]
                )
                bar.epoch()
                if run.out and save:
                    self.save()
                    saved = time.monotonic()
            returns_best = patience is not None and run.best_epoch is not None and not run.interrupted
            if run.out:
                self.save(returns_best=returns_best)
            if returns_best:
                self.restore(self.best)

    def _epoch(
        self,
        callbacks: Sequence[Callback | Callable[[Run], None]],
        bar: Progress,
    ) -> None:
        run, epoch = self.run, self.in_epoch
        if isinstance(self.update, CompiledUpdate) and run.step >= self.watched + READ_EVERY:
            self.update.watch()
            self.watched = run.step
            if self.critic:
                self.critic.watch()
        per_step = [callback for callback in callbacks if isinstance(callback, Callback)]
        for batch in self._batches(run.seed, run.epoch, epoch.steps):
            for schedule in self.schedules.values():
                schedule.update(run.epoch + epoch.steps / self.steps_per_epoch)
            # Pyro checks every value at every site: once through the data is enough.
            with pyro.validation_enabled(run.epoch == 0):
                if self.critic:
                    self.critic.learn(run.step)
                loss = self.update(*batch)
            run.step += 1
            epoch.add(loss, len(batch[0]) if self.processes.size == 1 else self._rows(epoch.steps))
            if len(epoch.unread) >= READ_EVERY:
                self._read(batch)
            for callback in per_step:
                callback.on_step(run)
            bar.step()
            run.interrupted = self.processes.any(run.interrupted or self.signalled)
            if run.interrupted:
                break
        self._read(batch)
        self._check_parameters()

    def _batches(self, seed: int, epoch: int, skip: int) -> Iterator[tuple[Tensor, ...]]:
        if self.subsamples_itself:
            for _ in range(skip, self.steps_per_epoch):
                yield next(self.train_data.sequential(len(self.train_data)))
        else:
            order = {"seed": seed, "epoch": epoch, "skip": skip}
            yield from self.train_data.batches(self.batch_size, **order, part=self.part)

    def _critic_batches(self, epoch: int, skip: int) -> Iterator[tuple[Tensor, ...]]:
        """The same data in another order: the pair is never judged on the rows that its critic has just seen."""
        return self._batches(derived_seed(self.run.seed, CRITIC), epoch, skip)

    def _rows(self, step: int) -> int:
        """Rows of a batch of the epoch, all processes together."""
        return min(self.batch_size, len(self.train_data) - step * self.batch_size)

    def _end_epoch(self, patience: int | None) -> None:
        run, finished = self.run, self.in_epoch
        self._check_store()
        row = {"epoch": run.epoch + 1, "step": run.step, "train_loss": finished.total / finished.rows}
        if self.validation_data is not None:
            row["validation_loss"] = self._validate(self.validation_data)
            if row["validation_loss"] < run.best_loss:
                run.best_loss, run.best_epoch = row["validation_loss"], run.epoch + 1
                self.best = self.snapshot() if patience is not None else {}
        if self.critic:
            row["critic_loss"] = self.critic.end_epoch()
        row |= {name: schedule.value.item() for name, schedule in self.schedules.items()}
        run.history.append(**row, lr=self.optimizer.param_groups[0]["lr"], seconds=run.seconds)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(row["validation_loss"])
        elif self.scheduler is not None:
            self.scheduler.step()
        run.epoch += 1
        self.in_epoch = Epoch()
        self.processes.check_alike(self.state.values())
        run.stopping |= self._out_of_patience(patience)

    def _check_store(self) -> None:
        """No parameter has come that would never be trained."""
        store = pyro.get_param_store()
        new = sorted(store.keys() - self.in_store)
        if later := [name for name in new if store[name].unconstrained().grad is not None]:
            raise ValueError(
                f"parameters {later} did not exist when training began, so that nothing trains them; "
                "let the model and the guide make every parameter whenever they are called"
            )

    def _out_of_patience(self, patience: int | None) -> bool:
        return patience is not None and self.run.epoch - (self.run.best_epoch or 0) >= patience

    def _validate(self, data: Split | Stream) -> float:
        """Mean loss over the validation data, in evaluation mode, with the same random numbers each time."""
        objective = self.step.objective
        objective = objective.for_validation() if isinstance(objective, Objective) else objective
        step = Step(self.run.pair, objective, self.step.known)
        total = 0.0
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation_mode(self.run.pair, *self.step.known.modules))
            stack.enter_context(isolated_random_state(self.processes.seed(self.run.seed)))
            stack.enter_context(pyro.validation_enabled(False))
            stack.enter_context(self.update.autocast)
            stack.enter_context(torch.no_grad())
            for batch in filter(None, data.sequential(self.batch_size, part=self.part)):
                total = total + step(*batch) * len(batch[0])
        return self.processes.sum(float(total))[0] / len(data)

    def _read(self, batch: tuple[Tensor, ...]) -> None:
        """Wait for the losses since the last look, and stop if one is not finite."""
        if self.critic:
            self.critic.read()
        first = self.run.step - len(self.in_epoch.unread)
        losses = self.in_epoch.read()
        bad = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise self._diverged(f"the loss is {losses[bad]} at step {first + bad + 1}", self._blame_all(batch))

    def _check_parameters(self) -> None:
        """Stop if the last update, whose loss was finite, left parameters that are not."""
        trained = [tensor.detach() for tensor in self.update.parameters if tensor.requires_grad]
        if not torch.stack([torch.isfinite(tensor).all() for tensor in trained]).all():
            found = f"the loss was finite at step {self.run.step}, and its gradient was not"
            raise self._diverged(found, not_finite(self.step, ()))

    def _diverged(self, found: str, why: str) -> FloatingPointError:
        out, alone = self.run.out, self.processes.size == 1  # several keep what they have saved so far
        saved = out and (self.run.epoch if alone else checkpoint.latest(out / "checkpoints"))
        kept = "parameters from before this epoch" + (f", the last checkpoint is in {out}" if saved else "")
        return FloatingPointError(
            f"{found}, in epoch {self.run.epoch + 1}: {why}. The pair has its {kept}; pass a smaller lr= or "
            "clip_norm=1.0, or look at the data and at scales that go to 0"
        )

    def _blame_all(self, batch: tuple[Tensor, ...]) -> str:
        """What the first process that finds something says, each of its own rows."""
        own = not_finite(self.step, batch) if batch else ""
        told = [text.decode() for text in self.processes.gather(own.encode())]
        for rank, text in enumerate(told):
            if text:
                return text + (f" of process {rank}" if self.processes.size > 1 else "")
        return "every site is finite again on the last batch"

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save(self, *, returns_best: bool = False) -> None:
        """Let process 0 write a checkpoint from which `resume` goes on exactly.

        Args:
            returns_best: whether the run ends here with its best parameters, not its last.
        """
        run = self.run
        assert run.out is not None
        random = self.processes.gather_states(checkpoint.random_state())
        if run.rank == 0:
            self._write(run.out, random, returns_best)
        self.processes.any(False)  # nobody goes on before it is there

    def _write(self, out: Path, random: dict[str, Tensor], returns_best: bool) -> None:
        run = self.run
        tensors = {name: tensor.detach() for name, tensor in self.state.items()}
        best = {f"best/{name}": tensor for name, tensor in self.best.items()}
        state = {
            "step": run.step,
            "epoch": run.epoch,
            "in_epoch": [self.in_epoch.steps, self.in_epoch.rows, self.in_epoch.total],
            "best": [run.best_epoch, run.best_loss],
            "returns_best": returns_best,
            "seconds": run.seconds,
            "history": run.history.rows,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "eager_because": self.update.failure,
            "critic": self.critic.state() if self.critic else None,
        }
        optimizer = self.optimizer.state_dict()
        if self.critic:
            optimizer["critic"] = self.critic.optimizer.state_dict()
        kept = checkpoint.Checkpoint({**tensors, **best}, optimizer, random, state, run.config)
        checkpoint.save(kept, out / "checkpoints", step=run.step)
        run.history.to_csv(out / "history.csv")

    def resume(self) -> None:
        """Take up the newest checkpoint of the run's folder."""
        run = self.run
        assert run.out is not None
        path = checkpoint.latest(run.out / "checkpoints")
        assert path is not None
        kept = checkpoint.read(path)
        check_continues(run.config, kept.config, str(run.out))
        file = str(path / checkpoint.STATE)
        history, before = checked_state(kept.state, file), self.snapshot()
        self.restore({name: tensor for name, tensor in kept.parameters.items() if not name.startswith("best/")})
        self.best = {name[5:]: tensor for name, tensor in kept.parameters.items() if name.startswith("best/")}
        try:
            with taken_from(file):
                if self.critic:
                    self.critic.resume(kept.state["critic"], kept.optimizer.pop("critic"))
                self.optimizer.load_state_dict(kept.optimizer)
                if self.scheduler is not None:
                    self.scheduler.load_state_dict(kept.state["scheduler"])
                self.in_epoch = Epoch(*kept.state["in_epoch"])
                checkpoint.set_random_state(self.processes.own_states(kept.random))
        except ValueError:
            self.restore(before)
            raise
        self.update.failure, self.update.begun = kept.state.get("eager_because"), True
        run.step, run.epoch, run.seconds = kept.state["step"], kept.state["epoch"], kept.state["seconds"]
        run.best_epoch, run.best_loss = kept.state["best"]
        run.history = history
        self.processes.check_same({"step of the checkpoint": run.step})

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """The epochs so far are not lost with what a callback raises; several processes could not agree on it."""
        try:
            yield
        except BaseException:
            if self.run.out and self.processes.size == 1:
                self.save()
            raise

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Say how to go on where another process is gone."""
        try:
            yield
        except ConnectionError as error:
            latest = self.run.out and checkpoint.latest(self.run.out / "checkpoints")
            fix = (
                f"pass resume=True to go on from {latest}"
                if latest
                else "pass out= to keep checkpoints, and start anew"
            )
            raise ConnectionError(f"{error}, at step {self.run.step + 1}; look at what it said, then {fix}") from error

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, by name."""
        return {name: tensor.detach().clone() for name, tensor in self.state.items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put all parameters and buffers back to those of a snapshot."""
        checkpoint.load_state(self.state, snapshot)
