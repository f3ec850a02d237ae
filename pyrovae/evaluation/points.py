"""Points of a pair's latent space: values of latents for each row, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.evaluation.running import Evaluation, cycled
from pyrovae.evaluation.sites import given, mean_of, rows_first, summed_sites
from pyrovae.models.base import PairLike, Structure, isolated_random_state, random_sites

__all__ = ["Values", "at_data", "by_row", "decoded", "posterior_trace", "shared", "values_at"]


class Values(NamedTuple):
    """Values of a latent, rows first, and the dim of the data plate in what its site takes: None where all share it."""

    value: Tensor
    dim: int | None

    def at(self, rows: Any) -> Values:
        """Those of some rows."""
        return self if self.dim is None else Values(self.value[rows], self.dim)


def by_row(value: Tensor, site: dict[str, Any]) -> Values:
    """Values with rows first, for a site."""
    return Values(value, value.dim() - site["fn"].event_dim - 1)


def values_at(values: dict[str, Values], rows: Any) -> dict[str, Tensor]:
    """Values of some rows as the sites take them."""
    chosen = {name: of.at(rows) for name, of in values.items()}
    return {name: value if dim is None else value.movedim(0, dim) for name, (value, dim) in chosen.items()}


def posterior_trace(run: PairLike, batch: Sequence[Any], known: Structure) -> Trace:
    """The model's trace at latents drawn from the guide; those that the model sums are drawn from p(c | x, z)."""
    guide_trace = poutine.trace(run.guide).get_trace(*batch)
    sampled = {s["name"]: s["value"] for s in random_sites(guide_trace) if not s["is_observed"]}
    latents = {name: sampled[name] for name in known.latent if name in sampled}
    if summed := set(known.enumerated) & set(known.latent) - set(latents):
        model = poutine.condition(run.model, data=latents)
        latents |= summed_sites(model, batch, summed, known.max_plate_nesting)
    return poutine.trace(poutine.condition(run.model, data=latents)).get_trace(*batch)


def shared(trace: Trace, known: Structure) -> dict[str, Values]:
    """The latents that all data share, at their values in a trace."""
    return {name: Values(trace.nodes[name]["value"], None) for name in known.global_latent}


def at_data(on: Evaluation) -> dict[str, Values]:
    """A draw of each latent of each datum given the data, and one of each that they share."""
    traces = [posterior_trace(run, batch, on.known) for run, batch, _ in on]
    values = shared(traces[0], on.known)
    for name in (name for name in on.known.latent if name not in values):
        sites = [trace.nodes[name] for trace in traces]
        # a sum over classes that is drawn from for one row has no dim for it
        each = [rows_first(site["value"].expand(site["fn"].shape()), site) for site in sites]
        values[name] = by_row(on.join(each), sites[0])
    return values


def decoded(
    on: Evaluation, data: Tensor, walked: dict[str, Values], held: dict[str, Values], site: str, seed: int
) -> Tensor:
    """What a site gives at points near data: (P, *event).

    Latents that are not walked are held, but those whose distribution in the model changes with the walked ones are
    drawn from it, with the same noise at each point.

    Args:
        on: the pair on data.
        data: for each point the row of its datum, (P,), whose inputs of the model it has.
        walked: values of latents at each point.
        held: values of all latents of each datum, see `at_data`.
        site: an observed site.
        seed: of the noise.
    """
    tensors = tuple(tensor[data] for tensor in on.batch(len(on.rows)))
    points = on.on_rows(tensors)
    total = len(points.rows)
    at = {name: of.at(cycled(data, total)) for name, of in held.items()}
    to = {name: of.at(cycled(torch.arange(len(data)), total)) for name, of in walked.items()}
    changed = _changed(points, to, at)
    values = {name: of for name, of in at.items() if name not in changed} | to
    parts = []
    for run, batch, covered in points:
        node = _model_trace(run, batch, values_at(values, covered)).nodes[site]
        if changed or mean_of(node) is None:
            return _one_by_one(on, tensors, values, site, seed)
        parts.append(given(node, sample=False))
    return points.join(parts)[: len(data)]


def _model_trace(run: PairLike, batch: Sequence[Any], latents: dict[str, Tensor]) -> Trace:
    return poutine.trace(poutine.condition(run.model, data=latents)).get_trace(*batch)


def _changed(points: Evaluation, to: dict[str, Values], at: dict[str, Values]) -> list[str]:
    """Latents whose distribution in the model is another one at the walked values than at those of the data."""
    others = [name for name, of in at.items() if name not in to and of.dim is not None]
    changed: list[str] = []
    if not others:
        return changed
    run, batch, covered = next(iter(points))
    with pyro.validation_enabled(False):  # what the data have may have left the support
        before = _model_trace(run, batch, values_at(at, covered)).nodes
        for name in others:  # in the model's order, so that what changed is drawn anew for those after it
            kept = {other: of for other, of in at.items() if other not in changed}
            now = _model_trace(run, batch, values_at(kept | to, covered)).nodes
            first, second = (nodes[name]["fn"].log_prob(before[name]["value"]) for nodes in (before, now))
            if not torch.allclose(first, second, equal_nan=True):
                changed.append(name)
    return changed


def _one_by_one(on: Evaluation, tensors: tuple[Tensor, ...], values: dict[str, Values], site: str, seed: int) -> Tensor:
    """What a site gives at each point by itself, each time from the same random state."""
    parts = []
    for row in range(len(tensors[0])):
        run, batch, covered = next(iter(on.on_rows(tuple(tensor[row : row + 1] for tensor in tensors))))
        latents = values_at(values, [row] * (covered.stop - covered.start))
        with isolated_random_state(seed):
            parts.append(given(_model_trace(run, batch, latents).nodes[site], sample=False)[:1])
    return torch.cat(parts)
