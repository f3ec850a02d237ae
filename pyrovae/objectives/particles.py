"""Drawing particles: traces of guide and model, K at once in an outer plate where a pair allows it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyrovae.distributions.implicit import has_density
from pyrovae.models.base import (
    Functions,
    PairLike,
    Structure,
    evaluation_mode,
    isolated_random_state,
    random_sites,
)

__all__ = ["PARTICLES", "traces", "vectorises", "without_autocast"]

PARTICLES = "_particles"  # name of the outer plate


def traces(
    pair: PairLike,
    batch: Sequence[Any],
    num_particles: int,
    known: Structure,
    *,
    enumerate_sites: bool,
    detached: bool = False,
) -> tuple[Trace, Trace]:
    """Traces of model and guide, the model replayed against the guide; `detached` cuts its samples off from it."""
    model, guide = pair.model, pair.guide
    if num_particles > 1:
        dim = -1 - known.max_plate_nesting
        model = pyro.plate(PARTICLES, num_particles, dim=dim)(model)
        guide = pyro.plate(PARTICLES, num_particles, dim=dim)(guide)
    if enumerate_sites:
        guide = EnumMessenger(first_available_dim=-2 - known.max_plate_nesting)(guide)
        model = EnumMessenger()(model)
    with _Detached() if detached else contextlib.nullcontext():
        guide_trace = poutine.trace(guide).get_trace(*batch)
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch), guide_trace


class _Detached(Messenger):
    """Cuts samples off from what they were drawn with; around a trace, so that it records them so."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor) and not msg["is_observed"]:
            msg["value"] = msg["value"].detach()


def vectorises(pair: PairLike, batch: Sequence[Any], known: Structure) -> bool:
    """Whether two particles drawn at once score as they do one by one; found out once, in evaluation mode."""
    if known.vectorises is None:
        # In half precision one particle rounds otherwise than two.
        tensors = (*batch, *known.parameters.values())
        with (
            evaluation_mode(pair, *known.modules),
            isolated_random_state(),
            torch.no_grad(),
            without_autocast(*tensors),
        ):
            difference = _difference_from_loop(pair, batch, known)
            if difference is None and (fewer := _fewer_rows(pair, batch, known)):
                difference = _difference_from_loop(pair, fewer, known)
        known.vectorises = difference is None
        if difference is not None:
            warnings.warn(
                f"the pair does not vectorise over particles ({difference}); looping over them instead. "
                "Networks must accept leading dims: flatten them, or index from the right",
                stacklevel=4,
            )
    return known.vectorises


@contextlib.contextmanager
def without_autocast(*values: Any) -> Iterator[None]:
    """No autocast on the devices of these tensors, whatever holds outside."""
    devices = {value.device.type for value in values if isinstance(value, Tensor)}
    with contextlib.ExitStack() as stack:
        for device in devices:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _fewer_rows(pair: PairLike, batch: Sequence[Any], known: Structure) -> list[Any]:
    """The batch without its first row, where the pair runs on that; else nothing.

    A layer that counts dims from the left takes the rows of (K, B, D) for its D features where B is D, and a batch norm
    that was not trained yet shows that by no other value.
    """
    rows = [isinstance(value, Tensor) and value.dim() > 0 and len(value) == known.rows for value in batch]
    fewer = [value[1:] if is_rows else value for value, is_rows in zip(batch, rows, strict=True)]
    if known.rows < 2 or not any(rows):
        return []
    with contextlib.suppress(Exception):  # a program may be one of so many rows: conditioned, say
        _scores(traces(pair, fewer, 1, known, enumerate_sites=False))
        return fewer
    return []


def _difference_from_loop(pair: PairLike, batch: Sequence[Any], known: Structure) -> str | None:
    try:
        together = traces(pair, batch, 2, known, enumerate_sites=False)
        one = {site["name"]: site for trace in together for site in random_sites(trace) if not site["is_observed"]}
        # Before another run: transforms that are modules remember their last value only.
        scores = _scores(together)
        noises = {name: noise for name, site in one.items() if (noise := _noise(site)) is not None}
        for k in (0, 1):
            drawn = Trace()
            for trace in together:
                for name, site in trace.nodes.items():
                    if site["type"] == "sample" and (name in one or site_is_subsample(site)) and name not in drawn:
                        event_dim = 0 if site_is_subsample(site) else site["fn"].event_dim
                        drawn.add_node(name, **{**site, "value": _particle(site["value"], k, event_dim, known)})
            moved = {
                name: _particle(noise, k, noise.dim() - one[name]["value"].dim() + one[name]["fn"].event_dim, known)
                for name, noise in noises.items()
            }
            guide = _Moved(moved)(poutine.replay(pair.guide, trace=drawn))
            alone = Functions(poutine.replay(pair.model, trace=drawn), guide)
            singly = traces(alone, batch, 1, known, enumerate_sites=False)
            for trace, score, single in zip(together, scores, singly, strict=True):
                for site in random_sites(trace):
                    if site["name"] not in score:
                        continue
                    other = single.nodes[site["name"]]
                    expected = other["fn"].log_prob(other["value"])
                    if not torch.allclose(_particle(score[site["name"]], k, 0, known), expected, rtol=1e-4, atol=1e-3):
                        return f"site {site['name']!r} scores differently"
                    value = _particle(site["value"], k, site["fn"].event_dim, known)
                    if site["name"] in moved and not torch.allclose(value, other["value"], rtol=1e-4, atol=1e-3):
                        return f"site {site['name']!r} moves its noise differently"
    except Exception as error:  # whatever a program raises when its tensors get one more dim
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


def _scores(of: Sequence[Trace]) -> list[dict[str, Tensor]]:
    """log p or log q of each site that has a density, for each trace."""
    return [
        {s["name"]: s["fn"].log_prob(s["value"]) for s in random_sites(trace) if has_density(s["fn"])} for trace in of
    ]


def _flow(fn: Any) -> TransformedDistribution | None:
    while not isinstance(fn, TransformedDistribution) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn if isinstance(fn, TransformedDistribution) else None


def _noise(site: dict[str, Any]) -> Tensor | None:
    """What the transforms of a site's distribution made its value of, by their memory: some have no inverse."""
    flow, noise = _flow(site["fn"]), site["value"]
    if flow is None or site["is_observed"]:
        return None
    for transform in reversed(flow.transforms):
        noise = transform.inv(noise)
    return noise


class _Moved(Messenger):
    """Gives sites the values that their transforms make of given noise, so that these remember them."""

    def __init__(self, noises: dict[str, Tensor]):
        super().__init__()
        self.noises = noises

    def _pyro_sample(self, msg: Any) -> None:
        if (value := self.noises.get(msg["name"])) is not None and (flow := _flow(msg["fn"])) is not None:
            for transform in flow.transforms:
                value = transform(value)
            msg["value"], msg["done"] = value, True


def _particle(value: Tensor, k: int, event_dim: int, known: Structure) -> Tensor:
    dim = value.dim() - event_dim - 1 - known.max_plate_nesting
    return value.select(dim, k) if dim >= 0 and value.size(dim) == 2 else value
