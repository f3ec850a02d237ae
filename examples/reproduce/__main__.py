"""Reproduce a paper's table: `python -m examples.reproduce iwae --budget 60`, as often as it takes.

    python -m examples.reproduce NAME [--cell CELL ...] [--seeds 0 1 2] [--schedule paper|reduced] [--budget MINUTES]
    python -m examples.reproduce --table        prints the tables from the JSON in examples/results alone

Real data are read from the folder that --root or PYROVAE_DATA names; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses

from examples.reproduce import iwae, posteriors, priors, vade
from examples.reproduce.runner import reproduce, table

NAMES = {
    "iwae": iwae.RESULT,
    "priors": priors.RESULT,
    "posteriors": posteriors.RESULT,
    **{f"vade_{name}": result for name, result in vade.RESULTS.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=NAMES, help="the table; all of them with --table")
    parser.add_argument("--cell", nargs="+", help="cells of the table; default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--schedule", choices=("paper", "reduced"), default="reduced")
    parser.add_argument("--epochs", type=int, help="other than the schedule's")
    parser.add_argument(
        "--pretraining", type=int, help="epochs before, of cells that have some; other than the schedule's"
    )
    parser.add_argument("--num_samples", type=int, help="importance samples of the NLL, other than the schedule's")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes after which to stop")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--root", default=None, help="folder of torchvision's data sets; default PYROVAE_DATA")
    parser.add_argument("--table", action="store_true", help="print what there is so far")
    options = parser.parse_args()
    if options.name is None and not options.table:
        parser.error(f"say which table, one of {', '.join(NAMES)}")
    names = NAMES if options.name is None else [options.name]
    if not options.table:
        result = NAMES[options.name]
        cells = options.cell or list(result.cells)
        if unknown := [cell for cell in cells if cell not in result.cells]:
            parser.error(f"{options.name} has no cells {unknown}; it has {', '.join(map(repr, result.cells))}")
        changed = {
            key: value
            for key in ("epochs", "pretraining", "num_samples")
            if (value := getattr(options, key)) is not None
        }
        reproduce(
            options.name,
            result,
            cells=cells,
            seeds=options.seeds,
            schedule=dataclasses.replace(getattr(result, options.schedule), **changed),
            budget=options.budget,
            device=options.device,
            root=options.root,
        )
    print("\n\n".join(table(name, NAMES[name]) for name in names))


if __name__ == "__main__":
    main()
