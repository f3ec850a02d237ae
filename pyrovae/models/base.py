"""What a pair is: a Pyro `model` and its `guide`, and what one dry run of them tells."""

from __future__ import annotations

import contextlib
import inspect
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrovae.distributions.flat import is_improper

__all__ = [
    "Functions",
    "Pair",
    "PairLike",
    "Structure",
    "as_pair",
    "evaluation_mode",
    "isolated_random_state",
    "random_sites",
    "structure",
]

_constructed: Counter[str] = Counter()


@runtime_checkable
class PairLike(Protocol):
    """Anything with a `model` and a `guide` that take the same batch."""

    @property
    def model(self) -> Callable[..., Any]:
        """The generative process."""

    @property
    def guide(self) -> Callable[..., Any]:
        """The approximate posterior."""


class Functions(NamedTuple):
    """A pair written as two plain callables."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


class Pair(PyroModule):
    """Base class of pairs: a PyroModule whose `model` and `guide` run in stock Pyro as they are.

    A subclass writes `model(self, *batch)` and `guide(self, *batch)`; both become `pyro_method`s, without which stock
    `pyro.infer.SVI` finds no parameters and trains nothing, silently. Each instance has its own name in the param
    store, deterministic by the order of construction and renewed by deepcopy, so that two instances share nothing.

    >>> class Coin(Pair):
    ...     def model(self, x): ...
    ...     def guide(self, x): ...
    >>> first, second = Coin(), Coin()
    >>> first._pyro_name == second._pyro_name
    False

    Attributes:
        arguments: what the constructor was called with, by name; `...` stands for a module, which no JSON can hold.
        continuous: whether its density of x has no bound where data lie on a grid, so that `fit` refuses those.
        trained_by, started_by: names of the objective that `fit` takes by default, and of what pretrains it, if any.
    """

    arguments: dict[str, Any]
    continuous, trained_by, started_by = False, "ELBO", ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102  (it only notes the arguments)
        pair = super().__new__(cls)
        with contextlib.suppress(TypeError):  # wrong arguments are __init__'s to report
            bound = inspect.signature(cls.__init__).bind(pair, *args, **kwargs).arguments
            values = list(bound.items())[1:]
            pair.__dict__["arguments"] = {k: ... if isinstance(v, nn.Module) else v for k, v in values}
        return pair

    def __init__(self) -> None:
        super().__init__(_name_in_param_store(type(self)))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("model", "guide"):
            if name in cls.__dict__:
                setattr(cls, name, pyro_method(cls.__dict__[name]))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pyro_context.used = False  # else Pyro refuses to rename the submodules of a pair that has run
        self._pyro_set_supermodule(_name_in_param_store(type(self)), self._pyro_context)


def _name_in_param_store(cls: type) -> str:
    _constructed[cls.__name__] += 1
    return f"{cls.__name__}_{_constructed[cls.__name__]}"


def as_pair(pair: Any) -> PairLike:
    """What the library works with, from anything that counts as a pair.

    Args:
        pair: an object with callable `model` and `guide`, or a tuple `(model, guide)` of two callables.

    Raises:
        TypeError: for anything else.

    >>> as_pair((len, len)).guide([1, 2])
    2
    """
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(callable(function) for function in pair):
        return Functions(*pair)
    if callable(getattr(pair, "model", None)) and callable(getattr(pair, "guide", None)):
        return pair
    raise TypeError(
        f"pair is {type(pair).__name__} {str(pair)[:60]!r}, not a model with its guide; "
        "pass an object with methods model and guide, or a tuple (model, guide) of two callables"
    )


@dataclass
class Structure:
    """What one dry run of a pair on a batch tells.

    Attributes:
        plate: name of the data plate, whose dim is -1.
        size: the plate's full size N.
        rows: the rows of it that the batch holds; smaller than `size` where the plate subsamples.
        max_plate_nesting: how many dims the plates of model and guide take.
        latent, observed: names of the model's sites in order, `pyro.factor` among neither.
        global_latent: latent sites outside the data plate.
        improper: latent sites whose prior integrates to infinity: the pair has no density of x, and its values are no
            bounds on one.
        supports: for each observed site whose value is a tensor of the batch, reshaped maybe: its position there, and
            what values the site takes.
        enumerated: sites marked `infer={"enumerate": "parallel"}`, of model and guide.
        parameters: unconstrained leaf tensors by name, each once: module-relative names for an `nn.Module`, names of
            the param store for the rest.
        buffers: buffers of every module that ran, by name.
        modules: every `nn.Module` that ran.
        vectorises: whether K particles can be drawn at once in an outer plate; None until that has been tried.
    """

    plate: str
    size: int
    rows: int
    max_plate_nesting: int
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    global_latent: tuple[str, ...]
    supports: dict[str, tuple[int, Any]]
    enumerated: tuple[str, ...]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    modules: tuple[nn.Module, ...]
    vectorises: bool | None = None
    improper: tuple[str, ...] = ()

    def refuse_improper(self) -> None:
        """For what estimates log p(x), or needs a p(z).

        Raises:
            ValueError: naming the latents with a prior that integrates to infinity.
        """
        if self.improper:
            raise ValueError(
                f"latent sites {list(self.improper)} have a flat prior, which integrates to infinity, so that there is "
                "no p(x) to estimate or draw from; pyrovae.elbo reports the reconstruction, and a VAE has a p(x)"
            )

    @property
    def subsampled(self) -> bool:
        """Whether the data plate scales its rows by `size / rows`."""
        return self.size != self.rows


def structure(pair: Any, *batch: Any, plate: str | None = None) -> Structure:
    """Run guide and model once and report their sites, plates, parameters and modules.

    Nothing else changes: the run is in evaluation mode, without gradients, on forked random states. Parameters that
    Pyro creates when a program first runs exist afterwards, as after the first step of SVI.

    Args:
        pair: see `as_pair`.
        batch: what model and guide are called with.
        plate: name of the data plate; needed only where it is neither called "data" nor the one plate at dim -1.

    Raises:
        ValueError: where the pair does not run on the batch, the sites of model and guide or their event shapes do not
            match, or the data plate is missing or ambiguous.
    """
    pair = as_pair(pair)
    with contextlib.ExitStack() as stack:
        modules = stack.enter_context(_recorded_modules(pair))
        stack.enter_context(isolated_random_state())
        stack.enter_context(torch.no_grad())
        stack.enter_context(_told_apart(batch))
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    _check_sites(model_trace, guide_trace)
    frame = _data_plate(model_trace, plate)
    _check_plates(model_trace, guide_trace, frame.name, batch)
    _check_event_shapes(model_trace, guide_trace)
    sites = [*random_sites(model_trace), *random_sites(guide_trace)]
    dims = [f.dim for site in sites for f in site["cond_indep_stack"] if f.dim is not None]
    latent = [site for site in random_sites(model_trace) if not site["is_observed"]]
    named = pair.named_parameters() if isinstance(pair, nn.Module) else ()
    return Structure(
        plate=frame.name,
        size=frame.full_size,
        rows=frame.size,
        max_plate_nesting=-min(dims),
        latent=tuple(site["name"] for site in latent),
        observed=tuple(
            site["name"] for site in random_sites(model_trace) if site["is_observed"] and not site_is_factor(site)
        ),
        global_latent=tuple(site["name"] for site in latent if not _inside(site, frame.name)),
        supports={
            site["name"]: (position, site["fn"].support)
            for site in random_sites(model_trace)
            for position, value in enumerate(batch)
            if site["is_observed"] and _same_values(site["value"], value)
        },
        enumerated=tuple(dict.fromkeys(site["name"] for site in sites if site["infer"].get("enumerate") == "parallel")),
        parameters=_unique([*named, *_param_sites(guide_trace), *_param_sites(model_trace)]),
        buffers=_buffers(pair, modules),
        modules=tuple(modules),
        improper=tuple(site["name"] for site in latent if is_improper(site["fn"])),
    )


def random_sites(trace: Trace) -> Iterator[dict[str, Any]]:
    """The sample sites of a trace that carry a density: neither subsampling nor deterministic ones."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic"):
            yield site


def _param_sites(trace: Trace) -> Iterator[tuple[str, Tensor]]:
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            value = site["value"]
            yield name, value.unconstrained() if hasattr(value, "unconstrained") else value


def _unique(named: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Each tensor once, under its first name."""
    by_identity: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in named:
        by_identity.setdefault(id(tensor), (name, tensor))
    return dict(by_identity.values())


def _buffers(pair: PairLike, modules: list[nn.Module]) -> dict[str, Tensor]:
    if isinstance(pair, nn.Module):
        return dict(pair.named_buffers())
    return _unique(
        [
            (f"module_{index}.{name}", buffer)
            for index, module in enumerate(modules)
            for name, buffer in module.named_buffers(recurse=False)
        ]
    )


def _same_values(site_value: Any, value: Any) -> bool:
    """Whether a site observes a tensor of the batch, itself or a view of all of it."""
    if not isinstance(value, Tensor) or not isinstance(site_value, Tensor):
        return False
    same_memory = site_value.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    return site_value is value or (same_memory and site_value.numel() == value.numel() > 0)


def _inside(site: dict[str, Any], plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def _data_plate(model_trace: Trace, plate: str | None) -> CondIndepStackFrame:
    frames = {f.name: f for site in random_sites(model_trace) for f in site["cond_indep_stack"]}
    if plate is None:
        rightmost = [name for name, frame in frames.items() if frame.dim == -1]
        if "data" in frames:
            plate = "data"
        elif len(rightmost) == 1:
            plate = rightmost[0]
        elif rightmost:
            raise ValueError(
                f"the model has several plates at dim -1, {rightmost}; pass plate= (--plate) to say which has the data"
            )
        else:
            raise ValueError(
                f"the model has no plate over the data (its plates: {list(frames) or 'none'}); "
                "put its local sites inside `with pyro.plate('data', len(x)):`"
            )
    if plate not in frames:
        raise ValueError(
            f"plate={plate!r} is no plate of the model, whose plates are {list(frames) or 'none'}; pass one of them"
        )
    if frames[plate].dim != -1:
        raise ValueError(
            f"the data plate {plate!r} has dim {frames[plate].dim}; make it the rightmost batch dim, "
            f"`pyro.plate({plate!r}, ..., dim=-1)`, and not a Python loop"
        )
    return frames[plate]


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
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


def _check_plates(model_trace: Trace, guide_trace: Trace, plate: str, batch: tuple[Any, ...]) -> None:
    for site in random_sites(model_trace):
        of_batch = any(_same_values(site["value"], value) for value in batch)
        if site["is_observed"] and of_batch and not site["cond_indep_stack"]:
            raise ValueError(
                f"model site {site['name']!r} observes the batch outside the plate {plate!r}, so that it has no value "
                f"for each datum; put it inside `with pyro.plate({plate!r}, ...):`"
            )
    for site in random_sites(guide_trace):
        name = site["name"]
        if name in model_trace.nodes and _inside(model_trace.nodes[name], plate) and not _inside(site, plate):
            raise ValueError(
                f"guide site {name!r} is outside the plate {plate!r} that the model has it in; "
                f"put it inside `with pyro.plate({plate!r}, ...):` in the guide too"
            )


def _check_event_shapes(model_trace: Trace, guide_trace: Trace) -> None:
    for site in random_sites(guide_trace):
        name = site["name"]
        if name in model_trace.nodes:
            p, q = (tuple(trace.nodes[name]["fn"].event_shape) for trace in (model_trace, guide_trace))
            if p != q:
                raise ValueError(
                    f"site {name!r} has event shape {p} in the model and {q} in the guide; "
                    f"make the prior of event shape {q}, or the guide's distribution of {p}"
                )


@contextlib.contextmanager
def _told_apart(batch: tuple[Any, ...]) -> Iterator[None]:
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
        raise ValueError(
            f"the pair does not run on tensors of shape and type {', '.join(tensors)} ({said}); "
            f"pass data of the shape and dtype that it takes{own}, or see above where it fails"
        ) from error


@contextlib.contextmanager
def _recorded_modules(pair: PairLike) -> Iterator[list[nn.Module]]:
    """The modules that run, each in evaluation mode while it does.

    A global hook of torch sees every module that a program calls, whichever way it got hold of it; a module of which
    only other methods run is seen when they fetch its parts.
    """
    modules: dict[int, nn.Module] = {}
    training: list[nn.Module] = []

    def enter(module: nn.Module, _: Any = None) -> None:
        modules.setdefault(id(module), module)
        if module.training:
            training.append(module)
            module.training = False

    get = nn.Module.__getattr__

    def fetch(module: nn.Module, name: str) -> Any:
        enter(module)
        return get(module, name)

    found: list[nn.Module] = []
    handle = register_module_forward_pre_hook(enter)
    nn.Module.__getattr__ = fetch  # type: ignore[method-assign]
    try:
        with evaluation_mode(*(pair if isinstance(pair, Functions) else [pair])):
            yield found
    finally:
        nn.Module.__getattr__ = get  # type: ignore[method-assign]
        handle.remove()
        for module in training:
            module.training = True
        found.extend(modules.values())


@contextlib.contextmanager
def evaluation_mode(*modules: Any) -> Iterator[None]:
    """Put modules (and what they contain) in evaluation mode, and each back in its own mode afterwards."""
    contained = [inner for module in modules if isinstance(module, nn.Module) for inner in module.modules()]
    modes = [module.training for module in contained]
    try:
        for module in contained:
            module.training = False
        yield
    finally:
        for module, mode in zip(contained, modes, strict=True):
            module.training = mode


@contextlib.contextmanager
def isolated_random_state(seed: int | None = None) -> Iterator[None]:
    """Leave all generators, torch's, Python's and NumPy's, as they were; start torch's from `seed` if it is given."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
