"""The sites of a pair: which one is meant, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.evaluation.running import Evaluation
from pyrovae.models.base import PairLike, Structure, random_sites

__all__ = [
    "given",
    "guide_traces",
    "has_exact_mean",
    "is_discrete",
    "latent_site",
    "mean_of",
    "observed_site",
    "rows_first",
    "summed_sites",
]


def latent_site(on: Evaluation, name: str | None = None, *, dims: Sequence[int] = ()) -> dict[str, Any]:
    """A latent site that the guide samples for each datum: by name, or the first continuous one in the model's order.

    Args:
        on: the pair on data.
        name: of the site.
        dims: how many its event shape may have, 1 for a vector and 0 for a number, the preferred ones first; any if
            empty.

    Raises:
        ValueError: if there is none; it names those there are.
    """
    trace = poutine.trace(on.pair.guide).get_trace(*on.batch())
    sites = {
        site["name"]: site
        for site in random_sites(trace)
        if not site["is_observed"] and any(frame.name == on.known.plate for frame in site["cond_indep_stack"])
    }
    continuous = [s for s in on.known.latent if s in sites and not is_discrete(sites[s])]
    fitting = [s for d in dims for s in continuous if sites[s]["fn"].event_dim == d] if dims else continuous
    shapes = {s: tuple(site["fn"].event_shape) for s, site in sites.items()}
    kind = "continuous vector" if dims else "continuous latent"
    if name is None:
        if not fitting:
            others = f"only {shapes}; pass a pair that has one" if shapes else "nothing at all"
            raise ValueError(f"the guide samples no {kind} for each datum, {others}")
        name = fitting[0]
    elif name not in sites:
        raise ValueError(f"{name!r} is no latent that the guide samples for each datum; name one of {shapes}")
    elif dims and (is_discrete(sites[name]) or sites[name]["fn"].event_dim not in dims):
        raise ValueError(f"latent {name!r} has event shape {shapes[name]} and is no {kind}; name one of {fitting}")
    return sites[name]


def observed_site(known: Structure, name: str | None = None) -> str:
    """The name of a site that the model observes: the given one, else x, else the only one.

    Raises:
        ValueError: if there is none; it names those there are.
    """
    if name is None:
        name = "x" if "x" in known.observed else known.observed[0] if len(known.observed) == 1 else None
        asked = "the model observes several sites" if known.observed else "the model observes no site"
    else:
        asked = f"site={name!r} is no observed site"
    if name is None or name not in known.observed:
        fix = (
            f"pass site= with one of {list(known.observed)} (--site)"
            if known.observed
            else "observe the data with obs="
        )
        raise ValueError(f"{asked}; {fix}")
    return name


def is_discrete(site: dict[str, Any]) -> bool:
    """Whether a site's values are."""
    try:
        return bool(site["fn"].support.is_discrete)
    except (AttributeError, NotImplementedError):
        return bool(site["fn"].has_enumerate_support)


def mean_of(site: dict[str, Any]) -> Tensor | None:
    """The mean of a site's distribution, if it is defined and finite."""
    try:
        mean = site["fn"].mean
    except (AttributeError, NotImplementedError):
        return None
    return mean if torch.isfinite(mean).all() else None


def given(site: dict[str, Any], sample: bool) -> Tensor:
    """What a site gives: the mean of its distribution or else a draw, never the value that the trace has; rows first.

    An observed site's value in a trace is the observation itself.
    """
    mean = None if sample else mean_of(site)
    return rows_first(site["fn"].sample() if mean is None else mean, site)


def rows_first(value: Tensor, site: dict[str, Any]) -> Tensor:
    """(nested plates..., B, *event) to (B, nested plates..., *event)."""
    return value.movedim(value.dim() - site["fn"].event_dim - 1, 0)


def guide_traces(run: PairLike, batch: Sequence[Any], name: str, num_samples: int) -> Iterator[Trace]:
    """Traces of the guide whose means at a site average to E_q[site | x]: one where it is exact, else `num_samples`."""
    trace = poutine.trace(run.guide).get_trace(*batch)
    yield trace
    if not has_exact_mean(trace, name):
        for _ in range(num_samples - 1):
            yield poutine.trace(run.guide).get_trace(*batch)


def has_exact_mean(guide_trace: Trace, name: str) -> bool:
    """Whether a site's mean in a trace of the guide is E_q[site | x]: it has one, and depends on no other latent."""
    first = next(site["name"] for site in random_sites(guide_trace) if not site["is_observed"])
    return first == name and mean_of(guide_trace.nodes[name]) is not None


def summed_sites(
    program: Callable[..., Any], batch: Sequence[Any], names: Iterable[str], max_plate_nesting: int
) -> dict[str, Tensor]:
    """Values of sites that a model enumerates, drawn given all that the program observes or is conditioned on."""
    drawn = infer_discrete(program, first_available_dim=-1 - max_plate_nesting, strict_enumeration_warning=False)
    nodes = poutine.trace(drawn).get_trace(*batch).nodes
    values = {}
    for name in names:
        value, dims = nodes[name]["value"], max_plate_nesting + nodes[name]["fn"].event_dim
        # Pyro draws nothing at a site of one value, which keeps the dim of size 1 that it is enumerated along.
        values[name] = value.reshape(value.shape[max(0, value.dim() - dims) :])
    return values
