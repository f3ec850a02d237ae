"""A library pair as JSON and back: a closed set of names, never a path to import."""

from __future__ import annotations

import difflib
import inspect
from functools import partial
from types import ModuleType
from typing import Any

from pyrovae import conditionals, models, nets, priors
from pyrovae.models.base import Pair

__all__ = ["build", "describe", "family", "part"]

_PARTS: dict[str, ModuleType] = {
    "encoder": nets,
    "decoder": nets,
    "prior": priors,
    "posterior": conditionals,
    "likelihood": conditionals,
}


def family(name: str) -> type[Pair]:
    """The library's pair of that name, in any case of letters.

    Raises:
        ValueError: for an unknown name, with the nearest ones.

    >>> family("vae").__name__
    'VAE'
    """
    return getattr(models, _known(name, models.__all__, "pair"))


def part(slot: str, value: str | dict[str, Any]) -> Any:
    """What fills a slot, from the name of one of the library's parts, or `{"name": ..., options...}`.

    Raises:
        ValueError: for an unknown name or option.

    >>> part("likelihood", {"name": "FixedNormal", "scale": 0.1}).keywords
    {'scale': 0.1}
    """
    options = dict(value) if isinstance(value, dict) else {"name": value}
    name = options.pop("name", None)
    library = _PARTS[slot]
    makers = [known for known in library.__all__ if isinstance(getattr(library, known), type)]
    maker = getattr(library, _known(str(name), makers, slot))
    accepted = [p.name for p in inspect.signature(maker).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        _known(option, accepted, f"option of {name}")
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
        _known(name, accepted, f"argument of {cls.__name__}")
        arguments[name] = part(name, value) if name in _PARTS and value is not None else value
    return cls(**arguments)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, partial) and not value.args and name in _PARTS:
        return {"name": _plain(name, value.func), **{key: _plain("", option) for key, option in value.keywords.items()}}
    if isinstance(value, type) and name in _PARTS and vars(_PARTS[name]).get(value.__name__) is value:
        return value.__name__
    if isinstance(value, (tuple, list)):
        return [_plain("", item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is {value!r}, which JSON cannot hold")


def _known(name: str, valid: list[str], what: str) -> str:
    folded = {known.lower(): known for known in valid}
    if name.lower() in folded:
        return folded[name.lower()]
    near = difflib.get_close_matches(name.lower(), folded, n=2, cutoff=0.4)
    guess = f"did you mean {' or '.join(folded[match] for match in near)}? " if near else ""
    raise ValueError(f"there is no {what} called {name!r}; {guess}pass one of {', '.join(valid) or 'none'}")
