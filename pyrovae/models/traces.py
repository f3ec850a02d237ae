"""Traces of model and guide: their random sites, and whether the two fit each other and a batch."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

__all__ = [
    "check_arguments",
    "check_event_shapes",
    "check_plates",
    "check_site_shapes",
    "check_sites",
    "inside",
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
            signature = inspect.signature(program)
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
            f"the guide samples {unmodelled}, which the model (latent sites {list(in_model)}) does not; "
            'rename it to the model\'s site, or mark it infer={"is_auxiliary": True}'
        )


def check_plates(model_trace: Trace, guide_trace: Trace, plate: str, batch: tuple[Any, ...]) -> None:
    """Refuse sites of data that stand outside the data plate."""
    for site in random_sites(model_trace):
        of_batch = any(same_values(site["value"], value) for value in batch)
        if site["is_observed"] and of_batch and not site["cond_indep_stack"]:
            raise ValueError(
                f"model site {site['name']!r} observes the batch outside the plate {plate!r}, so that it has no value "
                f"for each datum; put it inside `with pyro.plate({plate!r}, ...):`"
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


def check_site_shapes(*traces: Trace) -> None:
    """Refuse a site whose log-density has other dims than its plates: a dim too many would be read as particles."""
    for site in (site for trace in traces for site in random_sites(trace)):
        fn, value, mask = site["fn"], site["value"], site["mask"]
        shapes = {"distribution": fn.batch_shape, "value": value.shape[: max(0, value.dim() - fn.event_dim)]}
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
        said = " ".join(said.split())[:300]
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
