"""Plain values as strict JSON, which come back as they were.

A plain value is None, a bool, int, float or str, one of NumPy's, or a list, tuple or dict of them. What JSON lacks is
an object with one key: {"$float": "nan"}, {"$numpy": ["float32", 0.5]}, {"$tuple": [...]}, {"$tensor": "name"}, and
{"$dict": [[key, value], ...]} for keys that are not strings. Python writes and reads floats without loss.
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["DEPTH_LIMIT", "decode", "dump", "encode", "load"]

DEPTH_LIMIT = 100  # levels of nesting: far below Python's own limit, which differs between versions
# Kept apart from Python's: a learning rate times a float32 is a float32. A np.float64 is a float already.
_INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_NUMPY: dict[str, type[np.generic]] = {
    np.dtype(kind).name: kind for kind in (np.bool_, *_INTEGERS, np.float16, np.float32)
}
_KEYS: tuple[type, ...] = (str, int, float, type(None), *_NUMPY.values())


def encode(value: Any, where: str, tensors: dict[str, Tensor] | None, depth: int = 0) -> Any:
    """What JSON can hold of `value`; tensors go to `tensors` where that is given.

    Raises:
        TypeError: for what is no plain value; the message calls it `where`.
        ValueError: for more than `DEPTH_LIMIT` levels.

    >>> encode({"best": float("-inf"), 3: (1, 2)}, "state", None)
    {'$dict': [['best', {'$float': '-inf'}], [3, {'$tuple': [1, 2]}]]}
    """
    if depth > DEPTH_LIMIT:
        raise ValueError(f"{where[:60]}... is nested deeper than {DEPTH_LIMIT} levels; flatten it")
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        case np.generic() if value.dtype.name in _NUMPY:
            return {"$numpy": [value.dtype.name, encode(value.item(), where, None)]}
        case list():
            return [encode(item, f"{where}.{i}", tensors, depth + 1) for i, item in enumerate(value)]
        case tuple():
            return {"$tuple": [encode(item, f"{where}.{i}", tensors, depth + 1) for i, item in enumerate(value)]}
        case dict():
            items = [(key, encode(item, f"{where}.{key}", tensors, depth + 1)) for key, item in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return dict(items)
            if bad := [key for key in value if not isinstance(key, _KEYS)]:
                raise TypeError(f"{where} has a key {bad[0]!r}, wanted str, int, float, bool or None; convert the key")
            return {"$dict": [[encode(key, where, None), item] for key, item in items]}
        case Tensor() if tensors is not None:
            while where in tensors:  # keys 0 and "0" side by side
                where += "'"
            tensors[where] = value
            return {"$tensor": where}
    wanted = "None, bool, int, float, str, or a list, tuple or dict of these"
    fix = "pass value.item() or value.tolist()" if hasattr(value, "tolist") else "pass str(value)"
    raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__name__}, wanted {wanted}; {fix}")


def dump(value: Any) -> bytes:
    """What `encode` returns, as a file of JSON."""
    return (json.dumps(value, allow_nan=False, indent=1) + "\n").encode("ascii")


def load(data: bytes, name: str) -> dict[str, Any]:
    """The object in a file of strict JSON, still encoded.

    Raises:
        ValueError: where it holds none; the message calls the file `name`.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not in the standard")

    try:
        value = json.loads(str(data, "utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not strict JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a {type(value).__name__}, wanted a JSON object")
    return value


def decode(value: Any, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    """The inverse of `encode`, with the tensors that it put aside.

    Raises:
        ValueError: for what `encode` never writes.
    """
    if depth > DEPTH_LIMIT:
        raise ValueError(f"more than {DEPTH_LIMIT} levels of nesting")
    match value:
        case list():
            return [decode(item, tensors, depth + 1) for item in value]
        case {"$float": "nan" | "inf" | "-inf" as number, **rest} if not rest:
            return float(number)
        case {"$numpy": [str(name), number], **rest} if not rest and name in _NUMPY:
            plain = decode(number, {})
            if type(plain) is type(_NUMPY[name]().item()):
                with contextlib.suppress(OverflowError):  # 1000 is no int8
                    return _NUMPY[name](plain)
        case {"$tuple": list(items), **rest} if not rest:
            return tuple(decode(item, tensors, depth + 1) for item in items)
        case {"$tensor": str(name), **rest} if not rest and name in tensors:
            return tensors[name]
        case {"$dict": list(items), **rest} if not rest and all(isinstance(p, list) and len(p) == 2 for p in items):
            pairs = [(decode(key, {}), decode(item, tensors, depth + 1)) for key, item in items]
            if all(isinstance(key, _KEYS) for key, _ in pairs):
                return dict(pairs)
        case dict() if not any(key.startswith("$") for key in value):
            return {key: decode(item, tensors, depth + 1) for key, item in value.items()}
        case None | bool() | int() | float() | str():
            return value
    raise ValueError(f"an unknown value {str(value)[:60]}")
