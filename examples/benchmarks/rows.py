"""Seconds per row and peak memory of one epoch of the tiny VAE (64-64-8), from a thousand rows to ten million.

    python -m examples.benchmarks.rows [--most 7] [--threads 2] [--dtype uint8] [--device cuda]

Each number of rows has a process of its own. Seconds are those of the whole `pyrovae.fit`, its start included, after a
first fit of one batch that pays for imports; memory is the most that was resident, less what was before the data and
less the data as they are given (on a GPU: the most that was allocated there, less the data).
"""

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyrovae as pv
from examples.benchmarks.workloads import WORKLOADS
from pyrovae import reports

COMPILES = "compile" in inspect.signature(pv.fit).parameters


def binary_rows(rows: int, dtype: torch.dtype) -> Tensor:
    """Made in place: a temporary would count as peak memory."""
    return torch.empty(rows, 64, dtype=dtype).bernoulli_(0.3, generator=torch.Generator().manual_seed(0))


def measure(rows: int, options: argparse.Namespace) -> dict[str, Any]:
    dtype, cuda = getattr(torch, options.dtype), options.device == "cuda"
    began = time.perf_counter()
    fit(binary_rows(options.batch_size, dtype), options)
    start = time.perf_counter() - began
    before = 0 if cuda else peak_memory()
    x = binary_rows(rows, dtype)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    fit(x, options)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if cuda else peak_memory()
    return {
        "rows": rows,
        "seconds": seconds,
        "seconds_per_row": seconds / rows,
        "first_fit_seconds": start,
        "data_bytes": x.nbytes,
        "peak_bytes_beyond_data": max(0, peak - before - x.nbytes),
    }


def fit(x: Tensor, options: argparse.Namespace) -> pv.Run:
    how = {"compile": {"auto": "auto", "yes": True, "no": False}[options.compile]} if COMPILES else {}
    return pv.fit(
        WORKLOADS["tiny_vae"].pair(),
        x,
        max_epochs=1,
        batch_size=min(options.batch_size, len(x)),
        accelerator=options.device,
        seed=0,
        progress=False,
        **how,
    )


def peak_memory() -> int:
    """Most bytes that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_own_process(rows: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "examples.benchmarks.rows", "--one", str(rows), *sys.argv[1:]]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        return {"rows": rows, "failed": f"the process ended with status {child.returncode}"}
    return json.loads(child.stdout.splitlines()[-1])


def line(cell: dict[str, Any]) -> str:
    if "failed" in cell:
        return f"{cell['rows']:>10}  {cell['failed']}"
    mebibytes = [cell[name] / 2**20 for name in ("data_bytes", "peak_bytes_beyond_data")]
    return (
        f"{cell['rows']:>10}  {cell['seconds']:>8.2f} s  {cell['seconds_per_row'] * 1e6:>8.2f} us  "
        f"{mebibytes[0]:>8.1f} MiB  {mebibytes[1]:>8.1f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--least", type=int, default=3, help="power of ten of the fewest rows")
    parser.add_argument("--most", type=int, default=7, help="power of ten of the most rows")
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument("--dtype", choices=["float32", "uint8"], default="float32", help="of the data as given")
    parser.add_argument("--compile", choices=["auto", "yes", "no"], default="auto", help="where fit has it")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("examples/results/benchmarks/rows.json"))
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    if options.one is not None:
        print(json.dumps(measure(options.one, options)))
        return
    print(f"{'rows':>10}  {'epoch':>10}  {'per row':>11}  {'data':>12}  {'peak beyond':>12}")
    cells = []
    for power in range(options.least, options.most + 1):
        cells.append(in_own_process(10**power))
        print(line(cells[-1]), flush=True)
    settings = {name: getattr(options, name) for name in ("batch_size", "dtype", "compile", "device")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"rows": cells, "settings": settings, "compiles": COMPILES, "versions": reports.versions()}
    reports.write_json(record, options.out)


if __name__ == "__main__":
    main()
