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

from pyrovae.implicit import has_density
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


def _difference_from_loop(pair: PairLike, batch: Sequence[Any], known: Structure) -> str | None:
    try:
        together = traces(pair, batch, 2, known, enumerate_sites=False)
        for k in (0, 1):
            one = {site["name"]: site for trace in together for site in random_sites(trace) if not site["is_observed"]}
            drawn = Trace()
            for trace in together:
                for name, site in trace.nodes.items():
                    if site["type"] == "sample" and (name in one or site_is_subsample(site)) and name not in drawn:
                        event_dim = 0 if site_is_subsample(site) else site["fn"].event_dim
                        drawn.add_node(name, **{**site, "value": _particle(site["value"], k, event_dim, known)})
            guide = poutine.replay(pair.guide, trace=drawn)
            alone = Functions(poutine.replay(pair.model, trace=drawn), guide)
            for trace, single in zip(together, traces(alone, batch, 1, known, enumerate_sites=False), strict=True):
                for site in random_sites(trace):
                    if not has_density(site["fn"]):
                        continue
                    other = single.nodes[site["name"]]
                    value = _particle(site["fn"].log_prob(site["value"]), k, 0, known)
                    expected = other["fn"].log_prob(other["value"])
                    if not torch.allclose(value, expected, rtol=1e-4, atol=1e-3):
                        return f"site {site['name']!r} scores differently"
    except Exception as error:  # whatever a program raises when its tensors get one more dim
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


def _particle(value: Tensor, k: int, event_dim: int, known: Structure) -> Tensor:
    dim = value.dim() - event_dim - 1 - known.max_plate_nesting
    return value.select(dim, k) if dim >= 0 and value.size(dim) == 2 else value
