"""Dreams: data and latents that a pair's own model draws, unconditioned, and how the guide scores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyrovae.models.base import PairLike, Structure, random_sites
from pyrovae.objectives.draws import Draw, scored

__all__ = ["dream", "dream_log_q", "dreamt_batch", "uncondition", "why_not"]


def uncondition(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model whose data are drawn: `poutine.uncondition`, but for sites that observe nothing.

    Pyro's own draws the value of a `pyro.deterministic` anew too, whose distribution takes all of the value for one
    event and so gives it once more for each row of a plate, and that of a `pyro.factor`, which has none.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         loc = pyro.deterministic("loc", 2 * x)
    ...         return loc.shape, pyro.sample("x", dist.Normal(loc, 1.0), obs=x).eq(x).all().item()
    >>> poutine.uncondition(model)(torch.ones(3)), uncondition(model)(torch.ones(3))
    ((torch.Size([3, 3]), False), (torch.Size([3]), False))
    """
    return _Uncondition()(model)


class _Uncondition(UnconditionMessenger):
    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic") and not site_is_factor(msg):
            super()._pyro_sample(msg)


def dream(pair: PairLike, batch: Sequence[Any], known: Structure) -> tuple[Trace, list[Any]]:
    """One dream (x, z) ~ p(x, z) for each row of the batch: the trace, and what to call the guide with.

    The model runs unconditioned; each observed tensor of the batch is replaced by the dreamt one. Tensors that nobody
    observes, what a conditional model is given, stay. A model that reads the data it observes, as an autoregressive
    one does, would dream given the real data.

    Raises:
        ValueError: where an observed site is no tensor of the batch, so that nobody knows what to call the guide with,
            and where the model has a `pyro.factor`, which can't be drawn from.
    """
    trace = poutine.trace(uncondition(pair.model)).get_trace(*batch)
    if why := why_not(trace, known):
        raise ValueError(
            f"{why}: there are no dreams; pass an objective that needs none, ReweightedWakeSleep(5) for one"
        )
    return trace, dreamt_batch(trace, batch, known)


def dream_log_q(pair: PairLike, batch: Sequence[Any], known: Structure) -> Tensor:
    """log q(z | x) of one `dream` for each row of the batch, to which no gradient flows: shape (B,), nats.

    Raises:
        ValueError: see `dream`; also where the guide samples nothing, or what the model does not.
    """
    if not known.latent:
        raise ValueError("the pair has no latent site, so that its guide has nothing to learn of dreams; use ELBO()")
    with torch.no_grad():
        dreamt, given = dream(pair, batch, known)
    guide_trace = poutine.trace(poutine.replay(pair.guide, trace=dreamt)).get_trace(*given)
    sampled = [site["name"] for site in random_sites(guide_trace)]
    if not sampled:
        raise ValueError(
            f"the guide samples none of the latents {list(known.latent)}, which the model sums, so that it has nothing "
            "to learn of dreams; use ELBO()"
        )
    if unknown := [name for name in sampled if name not in dreamt.nodes]:
        raise ValueError(
            f"the guide samples {unknown}, which the model does not, so that it can't score dreams; "
            "pass objective=ReweightedWakeSleep(5), which needs none"
        )
    return Draw([*scored(guide_trace, in_guide=True)], known, 1, {}).log_q(lambda _: True).squeeze(0)


def why_not(dreamt: Trace, known: Structure) -> str:
    """What keeps the guide from being given a dream; empty where nothing does."""
    factors = [site["name"] for site in random_sites(dreamt) if site_is_factor(site)]
    claimed = Counter(position for position, _ in known.supports.values())
    lost = [name for name in known.observed if name not in known.supports or claimed[known.supports[name][0]] > 1]
    if factors:
        return f"the model has the factors {factors}, which can't be drawn from"
    if not known.observed:
        return "the model observes no site"
    if lost:
        return (
            f"observed sites {lost} are no tensors of the batch of their own, so that the guide can't be given others"
        )
    return ""


def dreamt_batch(dreamt: Trace, batch: Sequence[Any], known: Structure) -> list[Any]:
    """The batch with the dream in place of what the model observes of it, transposed or flattened as that is.

    Raises:
        ValueError: where a site draws another shape than it observes, or observes a copy of the batch.
    """
    replaced = list(batch)
    for name, (position, _) in known.supports.items():
        site, tensor = dreamt.nodes[name], batch[position]
        seen, value = site["infer"]["obs"], site["value"]  # what uncondition took away, and the dream
        if value.shape != seen.shape:
            raise ValueError(
                f"site {name!r} observes shape {tuple(seen.shape)} and draws {tuple(value.shape)}; "
                "give the data the shape that the site draws"
            )
        if seen is tensor:
            replaced[position] = value.to(tensor.dtype)
        elif seen.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():  # a view: x.T, x.flatten(1)
            whole = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
            offset = seen.storage_offset() - tensor.storage_offset()
            whole.as_strided(seen.shape, seen.stride(), offset).copy_(value)
            replaced[position] = whole
        else:
            raise ValueError(f"site {name!r} observes a copy of the batch; pass contiguous data, so that it is a view")
    return replaced
