"""Seconds for one training step (forward, backward, Adam) of eight models, for this library and its peers.

    python -m examples.benchmarks.steps [--only tiny_vae m2] [--threads 2] [--device cuda]
    python -m examples.benchmarks.steps --check          # the contenders' losses agree

All cells of a workload are timed in turns, `--repeats` times, each with as many steps as fill `--seconds`; the median
counts. NumPyro, JAX and pythae are the `bench` extra; without them, or where a model is not theirs, a cell stays empty
and says why. `products` is the limit: the step's matrix products alone. Tracing and compiling are timed apart, as the
seconds until a contender is ready, with an empty compiler cache.
"""

import argparse
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks import summary
from examples.benchmarks.agreement import agree
from examples.benchmarks.contenders import CONTENDERS, MULTIPLE_OF, Missing, Run
from examples.benchmarks.workloads import WORKLOADS, Workload
from pyrovae import reports

FIRST = 3  # steps that a compiled update takes to be ready


def measure(workload: Workload, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One workload: every contender made ready, then timed in turns."""
    torch.compiler.reset()  # or shapes of an earlier workload would make this one's dynamic
    runs: dict[str, Run] = {}
    steps: dict[str, int] = {}
    record: dict[str, Any] = {"notes": workload.notes, "seconds_until_ready": {}, "missing": {}}
    for name, contender in CONTENDERS.items():
        if options.columns and name not in options.columns:
            continue
        try:
            unit = MULTIPLE_OF.get(name, 1)
            torch.manual_seed(0)
            began = time.perf_counter()
            run = contender(workload, device)
            run(max(FIRST, unit))
            until_ready = time.perf_counter() - began
            each, steps[name] = _steps_in(run, options.seconds, device, unit)
            record["seconds_until_ready"][name] = max(0.0, until_ready - max(FIRST, unit) * each)
            runs[name] = run
        except Exception as error:  # one empty cell must not cost the table
            reason = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
            record["missing"][name] = " ".join(reason.split())[:300]
        _progress(f"{workload.name}: {name} {'ready' if name in runs else record['missing'][name]}")
    repeats: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            repeats[name].append(seconds_per_step(run, steps[name], device))
    return record | {"steps": steps, "repeats": repeats}


def seconds_per_step(run: Run, n: int, device: torch.device) -> float:
    _synchronise(device)
    began = time.perf_counter()
    run(n)
    _synchronise(device)
    return (time.perf_counter() - began) / n


def _steps_in(run: Run, seconds: float, device: torch.device, unit: int) -> tuple[float, int]:
    """Seconds of a step, and how many steps fill that time, a multiple of `unit`."""
    n = unit
    while (each := seconds_per_step(run, n, device)) * n < seconds / 5 and n < 10**6 * unit:
        n *= 5
    return each, unit * max(1, round(seconds / each / unit))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _use_threads(threads: int | None) -> int:
    """Bind the process to that many cores, which JAX heeds too, before anything starts threads of its own."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        threads = min(threads or len(cores), len(cores))
        os.sched_setaffinity(0, cores[:threads])
    threads = threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads


def _warm_compiler(device: torch.device) -> None:
    """What only a process's first compilation pays: precompiled headers, imports."""
    x = torch.ones(4, device=device, requires_grad=True)
    torch.compile(lambda x: (x * 2).sum())(x).backward()


def _versions() -> dict[str, str]:
    versions = reports.versions()
    for package in ("numpyro", "jax", "pythae"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="NAME", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--columns", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each repeat of each cell")
    parser.add_argument("--threads", type=int, default=None, help="default: every core")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("examples/results/benchmarks/steps.json"))
    parser.add_argument("--check", action="store_true", help="compare the contenders' losses, and time nothing")
    options = parser.parse_args()
    workloads = [workload for name, workload in WORKLOADS.items() if not options.only or name in options.only]
    threads = _use_threads(options.threads)
    if options.check:
        sys.exit(0 if all([agree(workload) for workload in workloads]) else 1)  # noqa: C419 (all lines are wanted)

    device = torch.device(options.device)
    record: dict[str, Any] = {
        "workloads": {},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": threads,
        "settings": {"repeats": options.repeats, "seconds": options.seconds},
        "versions": _versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        _warm_compiler(device)
        for workload in workloads:
            record["workloads"][workload.name] = measure(workload, options, device)
            record["summary"] = summary.of(record)
            reports.write_json(record, options.out)
    print(summary.table(record))


if __name__ == "__main__":
    main()
