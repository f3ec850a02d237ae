"""Tables of reproduced figures, printed from the JSON in `examples/results` alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.reproduce.runner import Cell, Result, records

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- python -m examples.reproduce --readme -->\n", "<!-- end -->\n"
OURS = "ours, mean ± sd (min, median, max)"
MOST = 10  # seeds of which each is listed
SETTING = ("epochs", "batch_size", "num_samples", "device")  # of a record, shown in the table


def table(name: str, result: Result) -> str:
    """The table so far, a row for each cell and setting."""
    papers = {cell_name: _papers(result, cell) for cell_name, cell in result.cells.items()}
    quoted = {key for paper in papers.values() for key in paper}
    columns = [(key, whose) for key in result.figures for whose in ("paper", OURS) if whose == OURS or key in quoted]
    several = len(result.figures) > 1
    titles = [
        "cell",
        *(f"{key}, {whose}" if several else whose for key, whose in columns),
        "each seed",
        "seeds",
        *SETTING,
    ]
    lines = [result.source, "", *_head(titles)]
    for cell_name, cell in result.cells.items():
        absent = "quoted" if cell.quoted else "not run yet"
        for found in records(name, cell_name).values() or [[]]:
            paper = papers[cell_name]
            figures = [
                _figure(paper.get(key)) if whose == "paper" else _spread(key, found) or absent for key, whose in columns
            ]
            setting = [_setting(found, key) for key in SETTING]
            each = [f"{record['seed']}: {_figure(record[result.figures[0]])}" for record in found[:MOST]]
            lines.append(_row([cell_name, *figures, ", ".join(each), str(len(found) or ""), *setting]))
    return "\n".join(lines)


def summary(results: Mapping[str, Result]) -> str:
    """The README's table: which cells have not run, and of the others the longest training, whatever its figure.

    A cell that has the setting of most cells too, by which they can be compared, has a row for both.
    """
    lines = _head(["cell", "paper", OURS, "seeds", "epochs", "batch", "samples", "device"])
    for name, result in results.items():
        found = {cell: records(name, cell) for cell in result.cells}
        by_setting = [(setting, runs) for settings in found.values() for setting, runs in settings.items()]
        count = Counter(setting for setting, _ in by_setting)
        common, _ = max(by_setting, key=lambda item: (count[item[0]], _longest(item[1])), default=("", []))
        several = f": {', '.join(result.figures)}" if len(result.figures) > 1 else ""
        lines.append(_row([f"**`{name}`** {result.source}{several}", *[""] * 7]))
        for cell_name, settings in found.items():
            cell = result.cells[cell_name]
            papers = [_figure(_papers(result, cell).get(key)) for key in result.figures]
            paper = "; ".join(figure or "–" for figure in papers) if any(papers) else ""
            if cell.quoted:
                lines.append(_row([cell_name, paper, "quoted", *[""] * 5]))
            elif settings:
                longest = max(settings, key=lambda setting: _longest(settings[setting]))
                for runs in (settings[setting] for setting in dict.fromkeys((common, longest)) if setting in settings):
                    first, *others = result.figures
                    ours = "; ".join([_spread(first, runs), *(_spread(key, runs, extremes=False) for key in others)])
                    setting = [_setting(runs, key) for key in SETTING]
                    lines.append(_row([cell_name, paper, ours, str(len(runs)), *setting]))
        if absent := [cell for cell, settings in found.items() if not settings and not result.cells[cell].quoted]:
            lines.append(_row([f"not run yet: {'; '.join(absent)}", *[""] * 7]))
    return "\n".join(lines) + "\n"


def write_readme(results: Mapping[str, Result]) -> None:
    """Put the summary where the README has it."""
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README.name} has no table to put the new one in; it stands between {BEGIN!r} and {END!r}")
    README.write_text(f"{before}{BEGIN}{summary(results)}{END}{after}")


def _longest(runs: Sequence[Mapping[str, Any]]) -> int:
    """The most epochs of a cell's seeds, its start's among them."""
    return max(run.get("start", {}).get("epochs", 0) + run["epochs"] for run in runs)


def _setting(found: Sequence[Mapping[str, Any]], key: str) -> str:
    """With what a cell's seeds ran: one value, or from the least to the most; a start's epochs stand before its own."""
    values = sorted({record[key] for record in found})
    if not values:
        return ""
    own = str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
    before = found[0].get("start", {}).get("epochs") if key == "epochs" else None
    return f"{before} + {own}" if before else own


def _papers(result: Result, cell: Cell) -> Mapping[str, float]:
    """The paper's figures by their keys."""
    if isinstance(cell.paper, Mapping):
        return cell.paper
    return {} if cell.paper is None else {result.figures[0]: cell.paper}


def _head(titles: Sequence[str]) -> list[str]:
    return [_row(titles), "|---" * len(titles) + "|"]


def _row(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _spread(key: str, found: Sequence[Mapping[str, Any]], *, extremes: bool = True) -> str:
    """Mean, deviation and extremes over the seeds."""
    values = [record[key] for record in found]
    if len(values) < 2:
        return "".join(map(_figure, values))
    mean = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    least_to_most = ", ".join(map(_figure, (min(values), statistics.median(values), max(values))))
    return f"{mean} ({least_to_most})" if extremes else mean
