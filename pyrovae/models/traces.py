"""Traces of model and guide: their random sites, and whether the two fit each other and a batch."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

__all__ = [
    "check_arguments",
    "check_auxiliary",
    "check_event_shapes",
    "check_measures",
    "check_plates",
    "check_site_shapes",
    "check_sites",
    "inside",
    "is_point",
    "point_of",
    "random_sites",
    "same_values",
    "told_apart",
]


def random_sites(trace: Trace) -> Iterator[dict[str, Any]]:
    """The sample sites of a trace that carry a density: neither subsampling nor deterministic ones."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic"):
            yield site


def check_arguments(programs: dict[str, Callable[..., Any]], batch: tuple[Any, ...]) -> None:
    """Refuse a program that can't be called with the batch."""
    for name, program in programs.items():
        with contextlib.suppress(ValueError):  # it has no signature to look at
            signature = inspect.signature(program, follow_wrapped=False)
            try:
                signature.bind(*batch)
            except TypeError as error:
                raise TypeError(
                    f"the {name} takes {signature}, a batch has {len(batch)} tensors ({error}); model and guide are "
                    "called alike: give both the same arguments"
                ) from error


def check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse latents that only one of model and guide has."""
    in_model = {site["name"]: site for site in random_sites(model_trace) if not site["is_observed"]}
    in_guide = {site["name"]: site for site in random_sites(guide_trace) if not site["is_observed"]}
    unguided = [
        name for name, site in in_model.items() if name not in in_guide and site["infer"].get("enumerate") != "parallel"
    ]
    if unguided:
        raise ValueError(
            f"the model samples {unguided}, which the guide (sites {list(in_guide)}) does not; sample it in the guide, "
            'mark it infer={"enumerate": "parallel"} if it is discrete, or observe it with obs='
        )
    unmodelled = [
        name for name, site in in_guide.items() if name not in in_model and not site["infer"].get("is_auxiliary")
    ]
    if unmodelled:
        raise ValueError(
            f"the guide samples {unmodelled}, which the model (latent sites {list(in_model)}) does not; rename it to "
            "the model's site, or sample it in the model too, whose p of it is any density"
        )


def check_auxiliary(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse what only the guide draws and does not turn into latents: p(x, z) / q(a, z) is no weight."""
    latent = [site for site in random_sites(guide_trace) if not site["is_observed"]]
    points = [site for site in latent if is_point(site["fn"])]
    own = [site for site in latent if site["name"] not in model_trace.nodes and not is_point(site["fn"])]
    if sum(site["value"].numel() for site in own) > sum(site["value"].numel() for site in points):
        raise ValueError(
            f"the guide alone samples {[site['name'] for site in own]}, and puts no latents on points made of them (a "
            "Delta with a log_density, as autoguides do), so that p / q has no mean and bounds nothing; sample them in "
            "the model too, whose p of them given the rest is any density"
        )


def check_plates(model_trace: Trace, guide_trace: Trace, plate: str, batch: tuple[Any, ...]) -> None:
    """Refuse sites of data that stand outside the data plate, or whose data have no dim for it."""
    for site in random_sites(model_trace):
        of_batch = any(same_values(site["value"], value) for value in batch)
        if site["is_observed"] and of_batch and not site["cond_indep_stack"]:
            raise ValueError(
                f"model site {site['name']!r} observes the batch outside the plate {plate!r}, so that it has no value "
                f"for each datum; put it inside `with pyro.plate({plate!r}, ...):`"
            )
        # Its elements would be taken for rows, and broadcast against themselves.
        if site["is_observed"] and of_batch and site["value"].dim() <= site["fn"].event_dim:
            raise ValueError(
                f"model site {site['name']!r} observes a tensor of the batch of shape {tuple(site['value'].shape)}, "
                f"which is one event, without a dim for the plate {plate!r}; pass x[None]"
            )
    for site in random_sites(guide_trace):
        name = site["name"]
        if name in model_trace.nodes and inside(model_trace.nodes[name], plate) and not inside(site, plate):
            raise ValueError(
                f"guide site {name!r} is outside the plate {plate!r} that the model has it in; "
                f"put it inside `with pyro.plate({plate!r}, ...):` in the guide too"
            )


def check_event_shapes(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a site whose events have another shape in the guide than in the model."""
    for site in random_sites(guide_trace):
        name = site["name"]
        if name in model_trace.nodes:
            p, q = (tuple(trace.nodes[name]["fn"].event_shape) for trace in (model_trace, guide_trace))
            if p != q:
                raise ValueError(
                    f"site {name!r} has event shape {p} in the model and {q} in the guide; "
                    f"make the prior of event shape {q}, or the guide's distribution of {p}"
                )


def check_measures(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a density in one of model and guide against a mass in the other, whose ratio is no weight."""
    for site in random_sites(guide_trace):
        name = site["name"]
        if name in model_trace.nodes:
            (p, p_is_mass), (q, q_is_mass) = (_measure(trace.nodes[name]["fn"]) for trace in (model_trace, guide_trace))
            if None not in (p_is_mass, q_is_mass) and p_is_mass != q_is_mass:
                words = {True: "a mass", False: "a density"}
                raise ValueError(
                    f"site {name!r} is {words[p_is_mass]} in the model ({p}) and {words[q_is_mass]} in the guide "
                    f"({q}); pass both over the same values, relaxed categories as pyrovae.distributions.GumbelOneHot"
                )


def _measure(fn: Any) -> tuple[str, Any]:
    """A distribution's own name, without what wraps it, and whether it is a mass; None for a point, that is neither."""
    base = fn
    while getattr(base, "base_dist", None) is not None:
        base = base.base_dist
    try:  # relaxed categories have shares as values, and a mass all the same
        is_mass = None if is_point(base) else base.has_enumerate_support or fn.support.is_discrete
    except (AttributeError, NotImplementedError):  # what states no support
        is_mass = None
    return type(base).__name__, is_mass


def is_point(fn: Any) -> bool:
    """Whether a distribution is a Delta, whatever wraps it."""
    return point_of(fn) is not None


def point_of(fn: Any) -> Delta | None:
    """The Delta that a distribution is or wraps."""
    while fn is not None and not isinstance(fn, Delta):
        fn = getattr(fn, "base_dist", None)
    return fn


def check_site_shapes(*traces: Trace) -> None:
    """Refuse a site whose log-density has other dims than its plates: a dim too many would be read as particles."""
    for site in (site for trace in traces for site in random_sites(trace)):
        fn, value, mask = site["fn"], site["value"], site["mask"]
        shape = getattr(value, "shape", ())  # an observation may be a number
        shapes = {"distribution": fn.batch_shape, "value": shape[: max(0, len(shape) - fn.event_dim)]}
        shapes |= {"mask": mask.shape} if isinstance(mask, Tensor) else {}
        try:  # from shapes alone: an implicit guide has no density to ask for
            log_prob = torch.empty(torch.broadcast_shapes(*shapes.values()), device="meta")
            check_site_shape({**site, "log_prob": log_prob}, math.inf)
        except (RuntimeError, ValueError) as error:
            plates = {frame.name: frame.size for frame in site["cond_indep_stack"]}
            batch_shapes = ", ".join(f"{what} {tuple(shape)}" for what, shape in shapes.items())
            raise ValueError(
                f"site {site['name']!r} has batch shapes {batch_shapes}, which make other than one log-density for "
                f"each place of its plates ({plates or 'none'}); call .to_event(1) on the distribution where a datum "
                "has a dim of its own, or squeeze or sum that dim away"
            ) from error


def same_values(site_value: Any, value: Any) -> bool:
    """Whether a site observes a tensor of the batch, itself or a view of all of it."""
    if not isinstance(value, Tensor) or not isinstance(site_value, Tensor):
        return False
    same_memory = site_value.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    return site_value is value or (same_memory and site_value.numel() == value.numel() > 0)


def inside(site: dict[str, Any], plate: str) -> bool:
    """Whether a site is in a plate."""
    return any(frame.name == plate for frame in site["cond_indep_stack"])


@contextlib.contextmanager
def told_apart(batch: tuple[Any, ...]) -> Iterator[None]:
    """What torch or Pyro say when a program can't run on a batch, as one sentence that names the batch."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        said = re.split(r"\n *Trace Shapes:", str(error))[0]  # Pyro appends a table of the trace so far
        said = " ".join(said.split())[:300] or type(error).__name__
        if isinstance(error, ValueError):
            raise ValueError(said) from error
        tensors = [f"{tuple(v.shape)} {str(v.dtype).removeprefix('torch.')}" for v in batch if isinstance(v, Tensor)]
        own = " (numbers of PyroSample(Normal(0.0, 1.0)) have torch's default dtype)" if "same dtype" in said else ""
        fix = f"pass data of the shape and dtype that it takes{own}, or see above where it fails"
        if own and not any(isinstance(v, Tensor) and v.is_floating_point() for v in batch):
            fix = "a network takes floating numbers: save the array with .astype('float32'), or pass x.float()"
        raise ValueError(
            f"the pair does not run on tensors of shape and type {', '.join(tensors)} ({said}); {fix}"
        ) from error
