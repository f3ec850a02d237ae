"""What the numbers of `steps` say: medians, ratios, and whether each target is met."""

import math
import statistics
from typing import Any

from examples.benchmarks.contenders import CONTENDERS

OURS, BY_HAND, SCANNED, STOCK, LIMIT = "pyrovae compiled", "torch compiled", "numpyro epoch", "stock", "products"


def of(record: dict[str, Any]) -> dict[str, Any]:
    """Medians in seconds per step, the geometric mean against stock Pyro, and the targets."""
    seconds = {
        workload: {name: statistics.median(values) for name, values in cells["repeats"].items()}
        for workload, cells in record["workloads"].items()
    }
    speedups = _ratios(seconds, STOCK, OURS)
    wanted = 5.0 if record["device"] == "cpu" else 10.0
    mean = math.exp(statistics.fmean(map(math.log, speedups.values()))) if speedups else None
    dominated = {
        workload: ratio
        for workload, ratio in _ratios(seconds, LIMIT, OURS).items()
        if seconds[workload][LIMIT] >= 0.5 * seconds[workload].get(BY_HAND, math.inf)
    }
    return {
        "seconds_per_step": seconds,
        "geometric_mean_speedup_over_stock": mean,
        "targets": [
            _target("at most 1.0 of hand-written torch.compile", _ratios(seconds, OURS, BY_HAND), at_most=1.0),
            _target("at most 1.0 of NumPyro's scanned epoch", _ratios(seconds, OURS, SCANNED), at_most=1.0),
            _target(
                f"geometric mean at least {wanted:g} times faster than stock Pyro",
                {} if mean is None else {f"mean of {len(speedups)}": mean},
                at_least=wanted,
            ),
            _target("at least 0.8 of the products' limit where it is half of torch's", dominated, at_least=0.8),
            _target(
                "M2 at least 2 times faster than stock Pyro",
                {name: ratio for name, ratio in speedups.items() if name == "m2"},
                at_least=2.0,
            ),
        ],
    }


def table(record: dict[str, Any]) -> str:
    """One table: time per step, its ratio to torch compiled, and how often it fits into stock Pyro's."""
    summary = record["summary"]
    seconds: dict[str, dict[str, float]] = summary["seconds_per_step"]
    workloads = record["workloads"]
    present = {name for cells in workloads.values() for name in (*cells["repeats"], *cells["missing"])}
    columns = [name for name in CONTENDERS if name in present]
    lines = [f"device {record['device']}, {record['threads']} threads; {_packages(record['versions'])}"]
    parts = [
        ("time per step", lambda cells, name: _time(cells.get(name))),
        (f"/ {BY_HAND}", lambda cells, name: _ratio(cells.get(name), cells.get(BY_HAND))),
        (f"{STOCK} /", lambda cells, name: _ratio(cells.get(STOCK), cells.get(name))),
    ]
    for title, cell in parts:
        rows = [[name, *(cell(seconds[workload], name) for workload in workloads)] for name in columns]
        lines += ["", *_aligned([[title, *workloads], *rows])]
    rows = [
        [name, *(_time(cells["seconds_until_ready"].get(name)) for cells in workloads.values())]
        for name in (BY_HAND, OURS, "numpyro step", SCANNED)
        if name in columns
    ]
    lines += ["", *_aligned([["until ready", *workloads], *rows]), ""]
    mean = summary["geometric_mean_speedup_over_stock"]
    lines.append(f"geometric mean of {STOCK} / {OURS}: {'-' if mean is None else f'{mean:.2f}'}")
    lines += [f"{target['met']:<8} {target['target']}{_spelled(target)}" for target in summary["targets"]]
    empty: dict[tuple[str, str], list[str]] = {}
    for workload, cells in workloads.items():
        for name, reason in cells["missing"].items():
            empty.setdefault((name, reason), []).append(workload)
    lines += [f"empty    {name} of {', '.join(of)}: {reason}" for (name, reason), of in empty.items()]
    return "\n".join(lines)


def _ratios(seconds: dict[str, dict[str, float]], above: str, below: str) -> dict[str, float]:
    return {
        workload: cells[above] / cells[below]
        for workload, cells in seconds.items()
        if above in cells and below in cells
    }


def _target(
    text: str, ratios: dict[str, float], *, at_most: float = math.inf, at_least: float = -math.inf
) -> dict[str, Any]:
    met = all(at_least <= ratio <= at_most for ratio in ratios.values())
    return {"target": text, "ratios": ratios, "met": ("met" if met else "not met") if ratios else "open"}


def _spelled(target: dict[str, Any]) -> str:
    ratios = [f"{name} {ratio:.2f}" for name, ratio in target["ratios"].items()]
    return f": {', '.join(ratios)}" if ratios else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _ratio(above: float | None, below: float | None) -> str:
    return "-" if above is None or below is None else f"{above / below:.2f}"


def _packages(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in ("torch", "pyro", "numpyro", "jax", "pythae"))


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
