"""A library pair as JSON and back: a closed set of names, never a path to import."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from pyrovae import conditionals, models, nets, priors
from pyrovae.models import conjugate, flow
from pyrovae.models.base import Pair
from pyrovae.nets import corruption
from pyrovae.priors import covariances

__all__ = ["build", "describe", "family", "named", "part", "parts"]

# Where the parts of a slot are looked for, and what the pair makes them with.
_SLOTS: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "classifier": (nets, ("event_shape",)),
    "encoder": (nets, ("event_shape",)),
    "decoder": (nets, ("latent_dim", "event_shape")),
    "prior": (priors, ("event_shape",)),
    "posterior": (conditionals, ("feature_shape", "event_shape")),
    "likelihood": (conditionals, ("feature_shape", "event_shape")),
    "codebook": (nets, ("num_codes", "code_dim")),
    "coupling": (flow, ("dim",)),
    "corruption": (corruption, ()),
    "covariance": (covariances, ("num_components", "event_shape")),
    "components": (conjugate, ("num_components", "event_shape")),
}


def family(name: str) -> type[Pair]:
    """The library's pair of that name, in any case of letters.

    Raises:
        ValueError: for an unknown name, with the nearest ones.

    >>> family("vae").__name__
    'VAE'
    """
    return getattr(models, named(name, models.__all__, "pair"))


def parts(slot: str) -> dict[str, Callable[..., Any]]:
    """The library's parts that fill a slot, by name.

    >>> list(parts("decoder"))
    ['ConvDecoder', 'GridDecoder']
    """
    library, made_with = _SLOTS[slot]
    public = {name: getattr(library, name) for name in library.__all__}
    return {
        name: maker
        for name, maker in public.items()
        if isinstance(maker, type)
        and not inspect.isabstract(maker)
        and tuple(inspect.signature(maker).parameters)[: len(made_with)] == made_with
    }


def part(slot: str, value: str | dict[str, Any]) -> Any:
    """What fills a slot, from the name of one of the library's parts, or `{"name": ..., options...}`.

    Raises:
        ValueError: for an unknown name or option.

    >>> part("likelihood", {"name": "FixedNormal", "scale": 0.1}).keywords
    {'scale': 0.1}
    >>> part("prior", {"name": "GaussianMixture", "num_components": 3, "covariance": "FullCovariance"}).keywords
    {'num_components': 3, 'covariance': <class 'pyrovae.priors.covariances.FullCovariance'>}
    """
    options = dict(value) if isinstance(value, dict) else {"name": value}
    name, makers = str(options.pop("name", None)), parts(slot)
    maker = makers[named(name, makers, slot)]
    accepted = list(inspect.signature(maker).parameters)[len(_SLOTS[slot][1]) :]
    for option, given in options.items():
        named(option, accepted, f"option of {name}")
        if option in _SLOTS:  # a part of the part, such as the covariance of a mixture
            options[option] = part(option, given)
    return partial(maker, **options) if options else maker


def describe(pair: Any) -> dict[str, Any] | None:
    """Name and arguments of a library pair as JSON; None where it is not one, or was given something no JSON can hold.

    >>> describe(models.VAE(8, 2, likelihood=conditionals.LearnedNormal))["arguments"]["likelihood"]
    'LearnedNormal'
    """
    if type(pair) not in [getattr(models, name) for name in models.__all__]:
        return None
    try:
        arguments = {name: _plain(name, value) for name, value in pair.arguments.items()}
    except TypeError:
        return None
    return {"name": type(pair).__name__, "arguments": arguments}


def build(description: dict[str, Any]) -> Pair:
    """The pair that `describe` described, with new weights.

    Raises:
        ValueError: for an unknown name, argument or part.
    """
    cls = family(str(description.get("name")))
    accepted = list(inspect.signature(cls).parameters)
    arguments = {}
    for name, value in dict(description.get("arguments") or {}).items():
        named(name, accepted, f"argument of {cls.__name__}")
        arguments[name] = part(name, value) if name in _SLOTS and value is not None else value
    return cls(**arguments)


def named(name: str, valid: Iterable[str], what: str) -> str:
    """The one of `valid` that is `name` in any case of letters.

    Raises:
        ValueError: if there is none, with the nearest ones.

    >>> named("iwae", ["ELBO", "IWAE"], "objective")
    'IWAE'
    """
    folded = {known.lower(): known for known in valid}
    if name.lower() in folded:
        return folded[name.lower()]
    near = difflib.get_close_matches(name.lower(), folded, n=2, cutoff=0.4)
    guess = f"did you mean {' or '.join(folded[match] for match in near)}? " if near else ""
    raise ValueError(f"there is no {what} called {name!r}; {guess}pass one of {', '.join(folded.values()) or 'none'}")


def _plain(slot: str, value: Any) -> Any:
    if slot in _SLOTS:
        names = {maker: name for name, maker in parts(slot).items()}
        maker = value.func if isinstance(value, partial) and not value.args else value
        if isinstance(maker, type) and maker in names:
            options = {key: _plain(key, option) for key, option in getattr(value, "keywords", {}).items()}
            return {"name": names[maker], **options} if options else names[maker]
    if isinstance(value, (tuple, list)):
        return [_plain("", item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} is not what JSON can hold")
