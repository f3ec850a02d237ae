"""A ladder and hierarchical VAEs of five layers (Sonderby et al. 2016): NLL, and which layers each makes use of.

All have the same widths and schedule. The hierarchical VAE is there twice: as it is, and with what the ladder has too,
batch norm, softplus variances and warm-up of the KL over half the epochs (200 at most); from that one only the ladder's
guide differs. Counted are the layers with a KL above 0.1 nats, and the units with one above 0.01 nats, on the first
1000 test rows: a unit of the lower layers can vary with the data only because the layer above does.

The paper's best figure is of a ladder that goes on with importance-weighted bounds of a lower learning rate: the cell
"ladder, fine-tuned" does so with five samples for as many epochs again, from the trained cell "ladder".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

import pyrovae as pv
from examples.reproduce.runner import Cell, Finished, Result, Schedule, Start, fit_options, negative
from pyrovae.data import Data


def warm_up(data: Data, schedule: Schedule) -> pv.ELBO:
    return pv.ELBO(beta=pv.schedules.Linear(0.0, 1.0, epochs=min(schedule.epochs / 2, 200)))


def units_above(pair: pv.Pair, x: torch.Tensor, site: str, threshold: float = 0.01) -> tuple[int, int]:
    """How many units of a layer have a KL above the threshold, and how many there are."""
    with torch.no_grad():
        kl = pv.ledger(pair.eval(), x, num_particles=50).kl_by_dimension(site).mean((0, 1))
    return int((kl > threshold).sum()), len(kl)


def layers(pair: pv.Pair, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    estimate = pv.log_likelihood(pair, data.test, num_samples=num_samples, seed=run.seed)
    parts = pv.elbo(pair, data.test)
    kl, few = dict(sorted(parts.kl.items())), data.test.subset(range(min(1000, len(data.test))))
    units = {site: units_above(pair, few["x"], site) for site in kl}
    return {
        **negative(estimate),
        "elbo": parts.elbo.value,
        "kl": kl,
        "layers_above_0.1": sum(value > 0.1 for value in kl.values()),
        "units_above_0.01": sum(count for count, _ in units.values()),
        "units_of_layers": {site: f"{count} / {total}" for site, (count, total) in units.items()},
        "active_units": {site: found.count for site, found in pv.active_layers(pair, few).items()},
    }


def trained(cell: Cell) -> Start:
    """A start from the cell "ladder" of the same seed, which is trained where that has not been done."""

    def start(
        pair: pv.Pair, data: Data, schedule: Schedule, *, seed: int, out: Path, **options: Any
    ) -> dict[str, Any] | None:
        folder = out.with_name(f"ladder_seed_{seed}")
        options |= {**fit_options(cell, data, schedule), "out": folder, "resume": (folder / "checkpoints").exists()}
        run = pv.fit(pair, data, seed=seed, **options)
        return None if run.interrupted else {"epochs": run.epoch, "seconds": run.seconds}

    return start


def cells(*latent_dims: int, paper: float | None = None) -> dict[str, Cell]:
    def made(family: Callable[..., pv.Pair], data: Data) -> pv.Pair:
        hidden = [(8 * dim,) * 2 for dim in latent_dims]  # the paper's 512, 256, ... for 64, 32, ...
        return family(data.event_shape, latent_dims, hidden=hidden)

    softplus = partial(pv.HierarchicalVAE, posterior=pv.conditionals.SoftplusNormal, batch_norm=True)
    ladder = Cell(partial(made, partial(pv.LadderVAE, batch_norm=True)), warm_up, evaluate=layers)
    return {
        "ladder": ladder,
        "ladder, fine-tuned": Cell(
            ladder.pair,
            lambda data, schedule: pv.IWAE(5),
            paper and {"nll": paper},
            options={"lr": 2e-4},
            evaluate=layers,
            start=trained(ladder),
        ),
        "hierarchical, batch norm, warm-up": Cell(partial(made, softplus), warm_up, evaluate=layers),
        "hierarchical": Cell(partial(made, pv.HierarchicalVAE), evaluate=layers),
    }


def pictures(finished: Mapping[str, Finished]) -> dict[str, Axes]:
    """The KL of each layer, and how many of its units have one above 0.01 nats."""
    records = {name: cell.record for name, cell in finished.items()}
    units = {name: record["units_of_layers"] for name, record in records.items()}
    return {"layers": pv.plots.layers({name: record["kl"] for name, record in records.items()}, units)}


RESULT = Result(
    source="Sonderby et al. 2016, dynamic MNIST, 64-32-16-8-4 latents; test NLL, nats",
    load=lambda root: pv.data.load("mnist", root=root),
    cells=cells(64, 32, 16, 8, 4, paper=81.74),
    paper=Schedule(epochs=2000, batch_size=256, num_samples=5000),
    reduced=Schedule(epochs=20, batch_size=256, num_samples=200, lr=2e-3, decay=0.1),
    figure=("nll", "layers_above_0.1", "units_above_0.01"),
    pictures=pictures,
)

DIGITS = Result(
    source="The same on 8 x 8 digits, 16-12-8-6-4 latents; test NLL, nats",
    load=lambda root: pv.data.load("digits"),
    cells=cells(16, 12, 8, 6, 4),
    paper=Schedule(epochs=2000, batch_size=64, num_samples=5000, lr=2e-3, decay=0.1),
    reduced=Schedule(epochs=60, batch_size=64, num_samples=1000, lr=2e-3, decay=0.1),
    figure=("nll", "layers_above_0.1", "units_above_0.01"),
    pictures=pictures,
)
