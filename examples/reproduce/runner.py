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
OURS = "ours, mean ± sd (min, median, max)"
SETTING = ("epochs", "batch_size", "num_samples", "device")  # of a record, shown in the table


@dataclass(frozen=True)
class Schedule:
    """How long a cell trains, and how well it is evaluated.

    Attributes:
        epochs: passes over the training data.
        batch_size: rows per step.
        num_samples: importance samples of the test log-likelihood.
        lr: learning rate at the start.
        decay: what the learning rate has been multiplied by at the end, by the same factor each epoch.
    """

    epochs: int
    batch_size: int
    num_samples: int
    lr: float = 1e-3
    decay: float = 1.0

    def __str__(self) -> str:
        return f"epochs_{self.epochs}_batch_{self.batch_size}_samples_{self.num_samples}"


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        pair: what is trained, made for the data; None where the paper's figure is quoted beside ours and nothing runs.
        objective: called with the data and the schedule.
        paper: the paper's figure; where a result has several, those that the paper has, by their keys.
        options: further arguments of `pyrovae.fit`.
        evaluate: figures of the trained pair beside the log-likelihood, or instead of it where there is none.
        load: the cell's data, where they are not the result's.
    """

    pair: Callable[[Data], Any] | None
    objective: Callable[[Data, Schedule], pyro.infer.ELBO] = lambda data, schedule: pv.ELBO()
    paper: float | Mapping[str, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Callable[[Any, pv.Run, Data, int], dict[str, Any]] | None = None
    load: Callable[[str | None], Data] | None = None


@dataclass(frozen=True)
class Result:
    """A table of a paper.

    Attributes:
        source: paper and table.
        load: the data, from torchvision's folder.
        cells: by name, in the order in which they run.
        paper, reduced: the paper's schedule, and one for an afternoon on a CPU.
        figure: the key of the figure in a cell's JSON, or the keys of several.
    """

    source: str
    load: Callable[[str | None], Data]
    cells: Mapping[str, Cell]
    paper: Schedule
    reduced: Schedule
    figure: str | Sequence[str] = "nll"

    @property
    def figures(self) -> Sequence[str]:
        """The keys of its figures."""
        return [self.figure] if isinstance(self.figure, str) else self.figure


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
    if cell.pair is None or path.exists():
        return True
    data = (cell.load or result.load)(root)
    out = Path("runs/reproduce") / name / str(schedule) / path.stem
    with isolated_random_state(seed):
        pair = cell.pair(data)
    run = pv.fit(
        pair,
        data,
        **{
            "objective": cell.objective(data, schedule),
            "validation": False,
            "max_epochs": schedule.epochs,
            "batch_size": schedule.batch_size,
            "lr": schedule.lr,
            "schedule": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=schedule.decay ** (1 / schedule.epochs)),
            "accelerator": device,
            **cell.options,
        },
        seed=seed,
        out=out,
        resume=(out / "checkpoints").exists(),
        callbacks=[OutOfTime(deadline)],
    )
    if run.interrupted:
        return False
    record = {
        **(cell.evaluate or likelihood)(run.pair, run, data, schedule.num_samples),
        "cell": cell_name,
        "paper": cell.paper,
        "num_samples": schedule.num_samples,
        "epochs": run.epoch,
        "batch_size": schedule.batch_size,
        "seed": seed,
        "fit_seconds": run.seconds,
        "versions": reports.versions(),
        "device": next(iter(run.known.parameters.values())).device.type,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    reports.write_json(record, path)
    print(f"{cell_name}, seed {seed}:", ", ".join(f"{key} {record[key]:.4g}" for key in result.figures), flush=True)
    return True


def record_path(name: str, schedule: Schedule, cell: str, seed: int) -> Path:
    """Where a cell's figures are kept."""
    return RESULTS / name / str(schedule) / f"{_stem(cell)}_seed_{seed}.json"


def _stem(cell: str) -> str:
    return cell.lower().replace(" ", "_")


def table(name: str, result: Result) -> str:
    """The table so far, a row for each cell and setting, from the JSON alone."""
    several = len(result.figures) > 1
    titles = [f"{key}, {whose}" if several else whose for key in result.figures for whose in ("paper", OURS)]
    titles = ["cell", *titles, "seeds", *SETTING]
    lines = [result.source, "", _row(titles), "|---" * len(titles) + "|"]
    for cell_name, cell in result.cells.items():
        papers = cell.paper if isinstance(cell.paper, Mapping) else {result.figures[0]: cell.paper}
        settings: dict[str, list[dict[str, Any]]] = {}
        for path in sorted((RESULTS / name).glob(f"*/{_stem(cell_name)}_seed_*.json")):
            settings.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
        absent = "not run yet" if cell.pair is not None else "quoted"
        for records in list(settings.values()) or [[]]:
            pairs = [(_figure(papers.get(key)), _spread(key, records) or absent) for key in result.figures]
            figures = [figure for pair in pairs for figure in pair]
            setting = [str(records[0][key]) if records else "" for key in SETTING]
            lines.append(_row([cell_name, *figures, str(len(records) or ""), *setting]))
    return "\n".join(lines)


def _row(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _spread(key: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Mean, deviation and extremes over the seeds."""
    values = [record[key] for record in records]
    if len(values) < 2:
        return "".join(map(_figure, values))
    extremes = ", ".join(map(_figure, (min(values), statistics.median(values), max(values))))
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({extremes})"


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
