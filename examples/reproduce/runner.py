"""What every reproduced table shares: cells that train in turn, stop at a time limit, and go on from there another day.

A result is a dictionary of cells. Each cell and seed is one run in `runs/reproduce/NAME/SCHEDULE`, resumed from its
checkpoint if it was cut off, and one JSON file in `examples/results/NAME/SCHEDULE` once it is evaluated.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro.infer
import torch
from matplotlib.axes import Axes

import pyrovae as pv
from pyrovae import reports
from pyrovae.data import Data
from pyrovae.models.base import isolated_random_state

Start = Callable[..., dict[str, Any] | None]
RESULTS = Path(__file__).parents[1] / "results"
START = "start.json"


@dataclass(frozen=True)
class Schedule:
    """How long a cell trains, and how well it is evaluated.

    Attributes:
        epochs: passes over the training data.
        batch_size: rows per step.
        num_samples: importance samples of the test log-likelihood.
        lr: learning rate at the start.
        decay: what the learning rate has been multiplied by at the end, by the same factor each epoch.
        pretraining: epochs of what a cell's `start` trains before; cells without a start train so many more.

    A cell's options may have a batch size, a rate or an end of their own.
    """

    epochs: int
    batch_size: int
    num_samples: int
    lr: float = 1e-3
    decay: float = 1.0
    pretraining: int = 0

    def __str__(self) -> str:
        before = f"pretraining_{self.pretraining}_" if self.pretraining else ""
        return f"{before}epochs_{self.epochs}_batch_{self.batch_size}_samples_{self.num_samples}"


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        pair: what is trained, made for the data; None where the paper's figure is quoted beside ours and nothing runs.
        objective: called with the data and the schedule.
        paper: the paper's figure; where a result has several, those that the paper has, by their keys.
        options: further arguments of `pyrovae.fit`, or what makes them of the data.
        evaluate: figures of the trained pair beside the log-likelihood, or instead of it where there is none.
        load: the cell's data, where they are not the result's.
        prepare: what the cell trains on and is evaluated on, made of these data, the seed and the deadline: of a few
            labels, say. None where the time was up before it was there.
        start: takes the new pair to where its training starts, by training in folders of its own, in which it goes on
            if it was cut off: `start(pair, data, schedule, seed=, out=, **options of fit)`. Its figures, of which
            `epochs` and `seconds` are two; None if it was cut off.
        without_pair: figures of a method that trains no pair, called with the data and the seed, where pair is None.
    """

    pair: Callable[[Data], Any] | None = None
    objective: Callable[[Data, Schedule], pyro.infer.ELBO] = lambda data, schedule: pv.ELBO()
    paper: float | Mapping[str, float] | None = None
    options: Mapping[str, Any] | Callable[[Data], Mapping[str, Any]] = field(default_factory=dict)
    evaluate: Callable[[Any, pv.Run, Data, int], dict[str, Any]] | None = None  # likelihood_and_units
    load: Callable[[str | None], Data] | None = None
    prepare: Callable[[Data, int, float], Data | None] = lambda data, seed, deadline: data
    start: Start | None = None
    without_pair: Callable[[Data, int], dict[str, Any]] | None = None

    @property
    def quoted(self) -> bool:
        """Whether nothing runs."""
        return self.pair is None and self.without_pair is None


@dataclass(frozen=True)
class Result:
    """A table of a paper.

    Attributes:
        source: paper and table.
        load: the data, from torchvision's folder.
        cells: by name, in the order in which they run.
        paper, reduced: the paper's schedule, and one for an afternoon on a CPU.
        figure: the key of the figure in a cell's JSON, or the keys of several.
        pictures: what is drawn of the finished cells of one seed, by name: the file in `examples/results/NAME`.
    """

    source: str
    load: Callable[[str | None], Data]
    cells: Mapping[str, Cell]
    paper: Schedule
    reduced: Schedule
    figure: str | Sequence[str] = "nll"
    pictures: Callable[[Mapping[str, Finished]], Mapping[str, Axes]] | None = None

    @property
    def figures(self) -> Sequence[str]:
        """The keys of its figures."""
        return [self.figure] if isinstance(self.figure, str) else self.figure


@dataclass(frozen=True)
class Finished:
    """A cell that has its JSON, and its run where this machine has it.

    Attributes:
        record: the JSON.
        make: its data, and a pair like the trained one.
        folder: the run's.
    """

    record: dict[str, Any]
    make: Callable[[], tuple[Any, Data]]
    folder: Path

    def trained(self) -> tuple[Any, Data]:
        """The pair and its data."""
        if not (self.folder / "checkpoints").exists():
            raise FileNotFoundError(f"{self.folder} is no run on this machine; delete the cell's JSON and run it again")
        pair, data = self.make()
        return pv.load(self.folder, pair=pair).pair, data


class OutOfTime(pv.Callback):
    """Ends a run, with a checkpoint, when the time is up."""

    def __init__(self, deadline: float):
        self.deadline = deadline

    def on_step(self, run: pv.Run) -> None:
        """Look at the clock now and then."""
        if run.step % 50 == 0 and time.monotonic() > self.deadline:
            run.interrupted = True


def negative(estimate: pv.Estimate, name: str = "nll") -> dict[str, Any]:
    """A negative log-likelihood in nats per row; its error for these rows, and as a mean of all that there could be."""
    return {
        name: -estimate.value,
        "standard_error": estimate.standard_error,
        "data_standard_error": estimate.data_standard_error,
    }


def likelihood(pair: Any, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """The negative log-likelihood of the test set, in nats."""
    return negative(pv.log_likelihood(pair, data.test, num_samples=num_samples, seed=run.seed))


def likelihood_and_units(pair: Any, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """The same, and the latents in use."""
    active = pv.active_units(pair, data.test).count
    return {**likelihood(pair, run, data, num_samples), "active_units": active}


def run_cell(
    name: str,
    result: Result,
    cell_name: str,
    *,
    schedule: Schedule,
    seed: int,
    deadline: float,
    device: str = "auto",
    root: str | None = None,
) -> bool:
    """Train and evaluate one cell with one seed, or go on with it; whether it came to its end."""
    cell = result.cells[cell_name]
    path, out = record_path(name, schedule, cell_name, seed), run_folder(name, schedule, cell_name, seed)
    data = prepared(result, cell, seed=seed, root=root, deadline=deadline)
    if data is None:
        return False
    record = {
        "cell": cell_name,
        "seed": seed,
        "schedule": dataclasses.asdict(schedule),
        "num_samples": schedule.num_samples,
        "batch_size": schedule.batch_size,
        "versions": reports.versions(),
        "commit": commit(),
    }
    if cell.without_pair is not None:
        began = time.monotonic()
        record |= {"epochs": 0, "device": "cpu", **cell.without_pair(data, seed)}
        record["fit_seconds"] = time.monotonic() - began
    else:
        options = fit_options(cell, data, schedule)
        common = {"accelerator": device, "callbacks": [OutOfTime(deadline)], "validation": False}
        pair, resume = new_pair(cell, data, seed=seed), (out / "checkpoints").exists()
        if cell.start is not None and not resume:
            start = cell.start(pair, data, schedule, seed=seed, out=out, **common)
            if start is None:
                return False
            out.mkdir(parents=True, exist_ok=True)
            reports.write_json(start, out / START)
        run = pv.fit(pair, data, **{**common, **options}, seed=seed, out=out, resume=resume)
        began = time.monotonic()
        if run.interrupted or began > deadline:
            return False
        record |= {
            "batch_size": options["batch_size"],
            **(cell.evaluate or likelihood_and_units)(run.pair, run, data, schedule.num_samples),
            "epochs": run.epoch,
            "fit_seconds": run.seconds,
            "evaluate_seconds": time.monotonic() - began,
            "device": next(iter(run.known.parameters.values())).device.type,
        }
        if cell.start is not None:
            record["start"] = json.loads((out / START).read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    reports.write_json(record, path)
    print(f"{cell_name}, seed {seed}:", ", ".join(f"{key} {record[key]:.4g}" for key in result.figures), flush=True)
    return True


def fit_options(cell: Cell, data: Data, schedule: Schedule) -> dict[str, Any]:
    """With what `pyrovae.fit` trains a cell."""
    epochs = schedule.epochs + (0 if cell.start else schedule.pretraining)
    return {
        "objective": cell.objective(data, schedule),
        "max_epochs": epochs,
        "batch_size": schedule.batch_size,
        "lr": schedule.lr,
        "schedule": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=schedule.decay ** (1 / epochs)),
        **(cell.options(data) if callable(cell.options) else cell.options),
    }


def commit() -> str | None:
    """That of the code that runs, where it is a checkout; "-dirty" at its end where code was changed."""
    try:
        found = _git("rev-parse", "--short", "HEAD")
        return f"{found}-dirty" if found and _git("status", "--porcelain", "pyrovae", "examples/reproduce") else found
    except OSError:  # there is no git
        return None


def _git(*arguments: str) -> str | None:
    where = Path(__file__).parents[2]
    return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True).stdout.strip() or None


def record_path(name: str, schedule: Schedule, cell: str, seed: int) -> Path:
    """Where a cell's figures are kept."""
    return RESULTS / name / str(schedule) / f"{_stem(cell)}_seed_{seed}.json"


def records(name: str, cell: str) -> dict[str, list[dict[str, Any]]]:
    """A cell's figures so far, by schedule, seed after seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    paths = (RESULTS / name).glob(f"*/{_stem(cell)}_seed_*.json")
    for path in sorted(paths, key=lambda path: (path.parent.name, int(path.stem.rpartition("_")[2]))):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    return found


def run_folder(name: str, schedule: Schedule, cell: str, seed: int) -> Path:
    """Where a cell's run is kept."""
    return Path("runs/reproduce") / name / str(schedule) / f"{_stem(cell)}_seed_{seed}"


def prepared(result: Result, cell: Cell, *, seed: int, root: str | None, deadline: float = float("inf")) -> Data | None:
    """A cell's data; None if the time was up before they were there."""
    return cell.prepare((cell.load or result.load)(root), seed, deadline)


def new_pair(cell: Cell, data: Data, *, seed: int) -> Any:
    """A cell's pair before training."""
    assert cell.pair is not None
    with isolated_random_state(seed):
        return cell.pair(data)


def made(result: Result, cell: Cell, *, seed: int, root: str | None) -> tuple[Any, Data]:
    """A cell's pair before training, and its data."""
    data = prepared(result, cell, seed=seed, root=root)
    assert data is not None
    return new_pair(cell, data, seed=seed), data


def _stem(cell: str) -> str:
    return cell.lower().replace(",", "").replace(" ", "_")


def reproduce(
    name: str,
    result: Result,
    *,
    cells: Sequence[str],
    seeds: Sequence[int],
    schedule: Schedule,
    budget: float,
    device: str = "auto",
    root: str | None = None,
) -> None:
    """Run the cells of a result, seed by seed, until they are done or the minutes are up."""
    deadline = time.monotonic() + 60 * budget
    wanted = [(seed, cell) for seed in seeds for cell in cells if not _finished(name, result, cell, schedule, seed)]
    for number, (seed, cell) in enumerate(wanted):
        where = {"device": device, "root": root}
        if not run_cell(name, result, cell, schedule=schedule, seed=seed, deadline=deadline, **where):
            print(f"out of time in {cell}, seed {seed}; the same command goes on with it", flush=True)
            return
        if time.monotonic() > deadline and wanted[number + 1 :]:
            print(f"out of time, {len(wanted) - number - 1} to go; the same command goes on with them", flush=True)
            return


def _finished(name: str, result: Result, cell: str, schedule: Schedule, seed: int) -> bool:
    """Whether there is nothing to run.

    Raises:
        ValueError: where it ran otherwise than it would here.
    """
    path = record_path(name, schedule, cell, seed)
    if result.cells[cell].quoted or not path.exists():
        return result.cells[cell].quoted
    ran, here = json.loads(path.read_text()).get("schedule"), dataclasses.asdict(schedule)
    if ran not in (None, here):  # figures from before it was kept have none
        other = {key: value for key, value in ran.items() if here[key] != value}
        raise ValueError(
            f"{path} ran with {other}, here that is { {key: here[key] for key in other} }; move it and its folder in "
            "runs/reproduce away to run it anew, or ask for another number of epochs"
        )
    return True


def draw(name: str, result: Result, *, schedule: Schedule, seed: int, root: str | None = None) -> list[Path]:
    """Draw a result's pictures of the cells that are finished."""
    finished = {
        cell_name: Finished(
            json.loads(path.read_text()),
            partial(made, result, cell, seed=seed, root=root),
            run_folder(name, schedule, cell_name, seed),
        )
        for cell_name, cell in result.cells.items()
        if (path := record_path(name, schedule, cell_name, seed)).exists()
    }
    drawn = result.pictures(finished) if result.pictures else {}
    return [pv.plots.save(ax, RESULTS / name / f"{title}.png") for title, ax in drawn.items()]
