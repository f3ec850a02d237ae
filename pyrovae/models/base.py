"""What a pair is: a Pyro `model` and its `guide`, and what one dry run of them tells."""

from __future__ import annotations

import contextlib
import inspect
import random
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
from pyro.poutine.util import site_is_factor
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrovae.distributions.flat import is_improper
from pyrovae.models.traces import (
    check_arguments,
    check_auxiliary,
    check_event_shapes,
    check_measures,
    check_plates,
    check_site_shapes,
    check_sites,
    inside,
    random_sites,
    same_values,
    told_apart,
)

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
        guide_size: the plate's full size in the guide, which is not `size` where a guide with a row of parameters for
            each datum is called with other data; None where the guide samples nothing in the plate.
        max_plate_nesting: how many dims the plates of model and guide take.
        latent, observed: names of the model's sites in order, `pyro.factor` among neither.
        global_latent: latent sites outside the data plate.
        global_auxiliary: sites of the guide outside the data plate that the model does not have, such as the one joint
            Normal of `AutoDiagonalNormal`.
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
    global_auxiliary: tuple[str, ...]
    supports: dict[str, tuple[int, Any]]
    enumerated: tuple[str, ...]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    modules: tuple[nn.Module, ...]
    vectorises: bool | None = None
    improper: tuple[str, ...] = ()
    guide_size: int | None = None

    def refuse_shared(self) -> None:
        """For what gives each datum an importance weight.

        Raises:
            ValueError: naming the sites that all data share.
        """
        if self.global_latent:
            raise ValueError(
                f"latent sites {list(self.global_latent)} lie outside the plate {self.plate!r}, so a datum has no "
                "importance weight of its own; use ELBO(), or condition on them with pyro.poutine.condition"
            )
        if self.global_auxiliary:
            raise ValueError(
                f"the guide draws the latents of all data at once, at {list(self.global_auxiliary)} outside the plate "
                f"{self.plate!r}, so a datum has no importance weight of its own; use ELBO(), or a guide whose sites "
                "are in the plate, such as AutoNormal"
            )

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
        TypeError: where model or guide takes another number of arguments.
        ValueError: where the pair does not run on the batch, the sites of model and guide, their event shapes or their
            measures do not match, the data plate is missing or ambiguous, or the batch has no dim for it.
    """
    pair = as_pair(pair)
    check_arguments({"model": pair.model, "guide": pair.guide}, batch)
    with contextlib.ExitStack() as stack:
        modules = stack.enter_context(_recorded_modules(pair))
        stack.enter_context(isolated_random_state())
        stack.enter_context(torch.no_grad())
        stack.enter_context(told_apart(batch))
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    check_sites(model_trace, guide_trace)
    frame = _data_plate(model_trace, plate)
    check_plates(model_trace, guide_trace, frame.name, batch)
    check_event_shapes(model_trace, guide_trace)
    guide_size = _plate_size(guide_trace, frame.name)
    if guide_size in (None, frame.full_size):  # a guide with rows of other data has no shape that fits
        check_site_shapes(guide_trace, model_trace)
    check_auxiliary(model_trace, guide_trace)
    check_measures(model_trace, guide_trace)
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
        global_latent=tuple(site["name"] for site in latent if not inside(site, frame.name)),
        global_auxiliary=tuple(
            site["name"]
            for site in random_sites(guide_trace)
            if site["name"] not in model_trace and not inside(site, frame.name)
        ),
        supports={
            site["name"]: (position, site["fn"].support)
            for site in random_sites(model_trace)
            for position, value in enumerate(batch)
            if site["is_observed"] and same_values(site["value"], value)
        },
        enumerated=tuple(dict.fromkeys(site["name"] for site in sites if site["infer"].get("enumerate") == "parallel")),
        parameters=_unique([*named, *_param_sites(guide_trace, modules), *_param_sites(model_trace, modules)]),
        buffers=_buffers(pair, modules),
        modules=tuple(modules),
        improper=tuple(site["name"] for site in latent if is_improper(site["fn"])),
        guide_size=guide_size,
    )


def _plate_size(trace: Trace, plate: str) -> int | None:
    """The full size of a plate, if a site of the trace is in it."""
    frames = (frame for site in random_sites(trace) for frame in site["cond_indep_stack"])
    return next((frame.full_size for frame in frames if frame.name == plate), None)


def _param_sites(trace: Trace, modules: list[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """By names of the store; the tensors of `pyro.module` are those that ran, whatever module had its name before."""
    held = {id(parameter) for module in modules for parameter in module.parameters()}
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            value = site["value"]
            value = value.unconstrained() if hasattr(value, "unconstrained") else value
            registered = site["args"][1:] if "$$$" in name and id(value) not in held else ()
            yield name, registered[0] if registered else value


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
