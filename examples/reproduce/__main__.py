"""Reproduce a paper's table: `python -m examples.reproduce iwae --budget 60`, as often as it takes.

    python -m examples.reproduce NAME [--cell CELL ...] [--seeds 0 1 2] [--schedule paper|reduced] [--budget MINUTES]
    python -m examples.reproduce NAME --pictures    draws what the result has of pictures, of the first of the seeds
    python -m examples.reproduce --table            prints the tables from the JSON in examples/results alone
    python -m examples.reproduce --readme           puts the README's table into it, likewise

Real data are read from the folder that --root or PYROVAE_DATA names; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses

from examples.reproduce import (
    avb,
    conv,
    cvae,
    disentanglement,
    iwae,
    ladder,
    m1,
    posteriors,
    priors,
    rws,
    semi_supervised,
    topics,
    vade,
)
from examples.reproduce.runner import draw, reproduce
from examples.reproduce.tables import table, write_readme

NAMES = {
    "iwae": iwae.RESULT,
    "iwae_digits": iwae.DIGITS,
    **{f"vade_{name}": result for name, result in vade.RESULTS.items()},
    "m1": m1.RESULT,
    "m2": semi_supervised.M2,
    "m1m2": semi_supervised.M1_M2,
    "m1m2_little_kl": semi_supervised.M1_M2_LITTLE_KL,
    "cvae": cvae.RESULT,
    "topics": topics.RESULT,
    "priors": priors.RESULT,
    "posteriors": posteriors.RESULT,
    "ladder": ladder.RESULT,
    "ladder_digits": ladder.DIGITS,
    "conv": conv.RESULT,
    "avb": avb.RESULT,
    "disentanglement": disentanglement.RESULT,
    "rws": rws.RESULT,
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
    parser.add_argument("--batch_size", type=int, help="other than the schedule's")
    parser.add_argument("--num_samples", type=int, help="importance samples of the NLL, other than the schedule's")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes after which to stop")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--root", default=None, help="folder of torchvision's data sets; default PYROVAE_DATA")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures of finished cells, run nothing")
    parser.add_argument("--table", action="store_true", help="print what there is so far")
    parser.add_argument("--readme", action="store_true", help="put what there is so far into the README")
    options = parser.parse_args()
    if options.readme:
        write_readme(NAMES)
        return
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
            for key in ("epochs", "pretraining", "batch_size", "num_samples")
            if (value := getattr(options, key)) is not None
        }
        schedule = dataclasses.replace(getattr(result, options.schedule), **changed)
        if options.pictures:
            drawn = draw(options.name, result, schedule=schedule, seed=options.seeds[0], root=options.root)
            print(*drawn, sep="\n")
            return
        reproduce(
            options.name,
            result,
            cells=cells,
            seeds=options.seeds,
            schedule=schedule,
            budget=options.budget,
            device=options.device,
            root=options.root,
        )
    print("\n\n".join(table(name, NAMES[name]) for name in names))


if __name__ == "__main__":
    main()
