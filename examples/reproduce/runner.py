"""What every reproduced table shares: cells that train in turn, stop at a time limit, and go on from there another day.

A result is a dictionary of cells. Each cell and seed is one run in `runs/reproduce/NAME/SCHEDULE`, resumed from its
checkpoint if it was cut off, and one JSON file in `examples/results/NAME/SCHEDULE` once it is evaluated. Tables are
printed from the JSON alone.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro.infer
import torch

import pyrovae as pv
from pyrovae import reports
from pyrovae.data import Data
from pyrovae.models.base import isolated_random_state

RESULTS = Path(__file__).parents[1] / "results"


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
        pair: what is trained, made for the data.
        objective: called with the data and the schedule.
        paper: the paper's figure.
        options: further arguments of `pyrovae.fit`.
        evaluate: figures of the trained pair beside the log-likelihood, or instead of it where there is none.
        start: takes the new pair to where its training starts, such as by training in folders of its own, in which it
            goes on if it was cut off: `start(pair, data, schedule, seed=, out=, **options of fit)`; False if it was.
        without_pair: figures of a method that trains no pair, called with the data and the seed; then only these count.
    """

    pair: Callable[[Data], Any] | None = None
    objective: Callable[[Data, Schedule], pyro.infer.ELBO] = lambda data, schedule: pv.ELBO()
    paper: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Callable[[Any, pv.Run, Data, int], dict[str, Any]] | None = None
    start: Callable[..., bool] | None = None
    without_pair: Callable[[Data, int], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Result:
    """A table of a paper.

    Attributes:
        source: paper and table.
        load: the data, from torchvision's folder.
        cells: by name, in the order in which they run.
        paper, reduced: the paper's schedule, and one for an afternoon on a CPU.
        figure: the key of the figure in a cell's JSON.
        row: how the table summarises the records of one cell and setting, the columns after the paper's; by default
            mean and spread.
        columns: what these are.
    """

    source: str
    load: Callable[[str | None], Data]
    cells: Mapping[str, Cell]
    paper: Schedule
    reduced: Schedule
    figure: str = "nll"
    row: Callable[[list[dict[str, Any]]], list[str]] | None = None
    columns: Sequence[str] = ("ours, mean ± sd",)


class OutOfTime(pv.Callback):
    """Ends a run, with a checkpoint, when the time is up."""

    def __init__(self, deadline: float):
        self.deadline = deadline

    def on_step(self, run: pv.Run) -> None:
        """Look at the clock now and then."""
        if run.step % 50 == 0 and time.monotonic() > self.deadline:
            run.interrupted = True


def likelihood(pair: Any, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    """The negative log-likelihood of the test set, in nats, and the latents in use."""
    estimate = pv.log_likelihood(pair, data.test, num_samples=num_samples, seed=run.seed)
    return {
        "nll": -estimate.value,
        "standard_error": estimate.standard_error,
        "data_standard_error": estimate.data_standard_error,
        "active_units": pv.active_units(pair, data.test).count,
    }


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
    """Train and evaluate one cell with one seed, or go on with it; whether it is finished."""
    cell = result.cells[cell_name]
    path = record_path(name, schedule, cell_name, seed)
    if path.exists():
        return True
    data = result.load(root)
    out = Path("runs/reproduce") / name / str(schedule) / path.stem
    record = {
        "cell": cell_name,
        "paper": cell.paper,
        "num_samples": schedule.num_samples,
        "batch_size": schedule.batch_size,
        "seed": seed,
        "versions": reports.versions(),
    }
    if cell.pair is None:
        assert cell.without_pair is not None
        record |= {"epochs": 0, "fit_seconds": 0.0, "device": "cpu", **cell.without_pair(data, seed)}
    else:
        with isolated_random_state(seed):
            pair = cell.pair(data)
        run = _trained(cell, pair, data, schedule, out, seed=seed, deadline=deadline, device=device)
        if run is None:
            return False
        record |= {
            **(cell.evaluate or likelihood)(run.pair, run, data, schedule.num_samples),
            "epochs": run.epoch,
            "fit_seconds": run.seconds,
            "device": next(iter(run.known.parameters.values())).device.type,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    reports.write_json(record, path)
    print(f"{cell_name}, seed {seed}: {result.figure} {record[result.figure]:.2f}", flush=True)
    return True


def _trained(
    cell: Cell, pair: Any, data: Data, schedule: Schedule, out: Path, *, seed: int, deadline: float, device: str
) -> pv.Run | None:
    """The run of a cell, or None if time was up."""
    resume = (out / "checkpoints").exists()
    common = {"accelerator": device, "callbacks": [OutOfTime(deadline)], "validation": False}
    if cell.start is not None and not resume and not cell.start(pair, data, schedule, seed=seed, out=out, **common):
        return None
    epochs = schedule.epochs + (0 if cell.start else schedule.pretraining)
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=schedule.decay ** (1 / epochs))
    options = {
        "objective": cell.objective(data, schedule),
        "max_epochs": epochs,
        "batch_size": schedule.batch_size,
        "lr": schedule.lr,
        "schedule": decay,
        **common,
        **cell.options,
    }
    run = pv.fit(pair, data, **options, seed=seed, out=out, resume=resume)
    return None if run.interrupted else run


def record_path(name: str, schedule: Schedule, cell: str, seed: int) -> Path:
    """Where a cell's figures are kept."""
    return RESULTS / name / str(schedule) / f"{_stem(cell)}_seed_{seed}.json"


def _stem(cell: str) -> str:
    return cell.lower().replace(" ", "_")


def table(name: str, result: Result) -> str:
    """The table so far, a row for each cell and setting, from the JSON alone."""
    lines = [
        f"{result.source}",
        "",
        f"| cell | paper | {' | '.join(result.columns)} | seeds | epochs | batch | samples | device |",
        "|---|---|" + "---|" * len(result.columns) + "---|---|---|---|---|",
    ]
    for cell_name, cell in result.cells.items():
        paper = "" if cell.paper is None else f"{cell.paper:.2f}"
        settings: dict[str, list[dict[str, Any]]] = {}
        for path in sorted((RESULTS / name).glob(f"*/{_stem(cell_name)}_seed_*.json")):
            settings.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
        for records in settings.values():
            first, values = records[0], [record[result.figure] for record in records]
            ours = " | ".join([mean_and_spread(values)] if result.row is None else result.row(records))
            setting = f"{first['epochs']} | {first['batch_size']} | {first['num_samples']} | {first['device']}"
            lines.append(f"| {cell_name} | {paper} | {ours} | {len(values)} | {setting} |")
        if not settings:
            lines.append(f"| {cell_name} | {paper} | not run yet |{' |' * (4 + len(result.columns))}")
    return "\n".join(lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """mean ± standard deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


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
    for seed in seeds:
        for cell in cells:
            where = {"device": device, "root": root}
            if not run_cell(name, result, cell, schedule=schedule, seed=seed, deadline=deadline, **where):
                print(f"out of time in {cell}, seed {seed}; the same command goes on with it", flush=True)
                return
