"""The state of a training run on disk: safetensors and JSON in one folder that appears whole or not at all.

    checkpoints/step-000000123/
      model.safetensors    parameters and buffers
      optim.safetensors    the tensors of the optimizer's state
      rng.safetensors      states of the random number generators
      state.json           {"state": step, epoch, ..., "optimizer": everything of its state that is no tensor}
      config.json          the resolved configuration
      MANIFEST.json        format version, size and sha256 of each file above, versions of the software

Nothing is ever unpickled, no file names code or another path, and bytes are parsed only after their size and sha256
agree with the manifest. That finds damage; it is no signature: whoever can write the folder can write a matching
manifest, and all they gain is other numbers. This module knows no model: the caller gathers values and puts them back.

JSON is strict, see `pyrovae.training.plain_values`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pyro
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyrovae.training.plain_values import decode, dump, encode, load
from pyrovae.training.random_states import random_state, set_random_state

__all__ = [
    "Checkpoint",
    "latest",
    "load_state",
    "random_state",
    "read",
    "save",
    "set_random_state",
    "version_of",
]

FORMAT_VERSION = 1
MODEL, OPTIMIZER, RANDOM = "model.safetensors", "optim.safetensors", "rng.safetensors"
STATE, CONFIG, MANIFEST = "state.json", "config.json", "MANIFEST.json"
FILES = (MODEL, OPTIMIZER, RANDOM, STATE, CONFIG)
JSON_LIMIT = 64 * 2**20  # bytes: far above any run's, and a bound on the memory that a hostile file can ask for

# A folder that is replaced by one of the same step has the suffix until the new one is there, and is read in between.
REPLACED = ".replaced"
STEP = re.compile(r"step-(\d{9,})(\.replaced)?")
TEMPORARY = re.compile(r"\.step-\d{9,}(?:\.replaced)?\.tmp-(\d{1,9})")


@dataclass(eq=False)
class Checkpoint:
    """All that a training run needs to go on as if it had not stopped.

    Args:
        parameters: parameters and buffers by module-relative name, of any shape, dtype and device.
        optimizer: the `state_dict()` of a torch optimizer: nested dicts, lists and tuples of tensors and plain values.
        random: what `random_state()` returned: one uint8 tensor for each generator.
        state: plain values: step, epoch, batch in the epoch, best value, schedules, ...
        config: plain values: the resolved configuration.

    A plain value is None, a bool, int, float (NaN and infinities too) or str, or a list, tuple or dict of them. Types
    come back as they were; of subclasses the plain type does (an OrderedDict as a dict).

    >>> import tempfile
    >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    >>> checkpoint = Checkpoint({"weight": torch.ones(3)}, optimizer.state_dict(), state={"best": float("inf")})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(save(checkpoint, Path(folder), step=7).name)
    ...     again = read(latest(Path(folder)))
    step-000000007
    >>> again.parameters["weight"], again.optimizer["param_groups"][0]["betas"], again.state
    (tensor([1., 1., 1.]), (0.9, 0.999), {'best': inf})
    """

    parameters: dict[str, Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, folder: Path, *, step: int, keep: int = 1, protect: Path | None = None) -> Path:
    """Write a checkpoint as `folder`/step-..., then delete older ones.

    All files are written and synchronised under a temporary name that one rename makes final, so that a crash or a full
    disk at any moment leaves what was there before. A folder has one writer at a time.

    Args:
        checkpoint: the values; tensors may share memory (tied weights), each name gets its own copy.
        folder: holds the checkpoints of one run; made if it is not there.
        step: names the checkpoint; one of the same step is replaced.
        keep: how many to keep, this one included; those of later steps (an earlier branch of the run) are not touched.
        protect: a checkpoint never to delete, such as the best so far.

    Returns:
        The path of the checkpoint.

    Raises:
        TypeError: something in `checkpoint` is no plain value or tensor.
        ValueError: `step`, `keep` or a value is out of range, or the JSON part is larger than 64 MiB.
        OSError: the folder cannot be written (a PermissionError) or the disk is full; what was there before is intact.
    """
    for name, value, least in (("step", step, 0), ("keep", keep, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, wanted an int; pass an int of at least {least}")
        if value < least:
            raise ValueError(f"{name} is {value}, wanted at least {least}; pass {name}={least} or more")
    files = _files(checkpoint)
    folder = Path(folder)
    final = folder / f"step-{step:09d}"
    replaced = final.with_name(final.name + REPLACED)
    temporary = _temporary(final)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        for name, data in files.items():
            _write(temporary / name, data)
        _sync(temporary)
        if final.exists():
            _discard(replaced)
            os.rename(final, replaced)
        os.rename(temporary, final)
        _sync(folder)
    except OSError as error:
        why = f"checkpoint of step {step} cannot be written to {str(folder)!r} ({error.strerror or error})"
        fix = "free some space, or pass a folder that can be written; earlier checkpoints are as they were"
        raise OSError(error.errno, f"{why}; {fix}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # From here the checkpoint is safe: what cannot be deleted costs space, not the run.
    _discard(replaced)
    older = [path for path in _complete(folder) if _order(path) < _order(final)]
    for path in older[: max(0, len(older) + 1 - keep)]:
        if protect is None or path.name != Path(protect).name:
            _discard(path)
    return final


def latest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in `folder`; None where there is none, or no such folder."""
    paths = _complete(Path(folder))
    return paths[-1] if paths else None


def read(path: Path) -> Checkpoint:
    """Read a checkpoint, after checking every file against the manifest.

    Args:
        path: the folder of one checkpoint, as `latest` returns it.

    Returns:
        The checkpoint; its tensors are on the CPU and own their memory.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is missing, damaged or of another format version; the message names an older checkpoint that
            is intact, if there is one.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {str(path)!r} is not a folder; pass one that latest(...) returns")
    try:
        return _parse(_verified(path))
    except ValueError as error:
        older = _intact_before(path)
        fix = "no intact older one stands beside it: copy it again from its source or start the run anew"
        if older is not None:
            fix = f"use the intact older one, {str(older)!r}"
        raise ValueError(f"checkpoint {str(path)!r} cannot be read: {error}; {fix}") from error


def load_state(state: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy values into parameters and buffers of the same names.

    Raises:
        ValueError: where names or shapes differ.
    """
    if missing := sorted(state.keys() ^ values.keys()):
        raise ValueError(
            f"the pair and the checkpoint do not have the same parameters, {missing[:3]} for example; "
            "pass the pair that the checkpoint was made with"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.shape != values[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)} in the pair and {tuple(values[name].shape)} in the "
                    "checkpoint; pass the pair that the checkpoint was made with"
                )
            tensor.copy_(values[name])


def version_of(package: str) -> str:
    """That of an installed package; "unknown" of one that is run from a checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


# From values to bytes ---------------------------------------------------------------------------------------------


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes of every file, the manifest last."""
    tensors: dict[str, Tensor] = {}
    optimizer = encode(checkpoint.optimizer, "optimizer", tensors)
    state = {"state": encode(checkpoint.state, "state", None), "optimizer": optimizer}
    files = {
        MODEL: _pack(checkpoint.parameters, "parameters"),
        OPTIMIZER: _pack(tensors, "optimizer"),
        RANDOM: _pack(checkpoint.random, "random"),
        STATE: dump(state),
        CONFIG: dump(encode(checkpoint.config, "config", None)),
    }
    for name in (STATE, CONFIG):
        if len(files[name]) > JSON_LIMIT:
            size = f"{len(files[name])} bytes, more than {JSON_LIMIT}"
            raise ValueError(f"{name} would have {size}; keep large values in tensors of parameters=")
    listed = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    versions = {"pyrovae": version_of("pyrovae"), "torch": str(torch.__version__), "pyro": pyro.__version__}
    files[MANIFEST] = dump({"format_version": FORMAT_VERSION, "versions": versions, "files": listed})
    return files


def _pack(tensors: dict[str, Tensor], field_name: str) -> bytes:
    copies = {}
    for name, tensor in tensors.items():
        where = f"{field_name}[{name!r}]"
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"{where} is a {type(tensor).__name__}, wanted a tensor under a str; pass a state_dict")
        if name == "__metadata__":  # safetensors' own word: it would be written and not be readable
            raise ValueError(f"{where} has a name that safetensors reserves; rename it")
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "meta" if tensor.is_meta else tensor.layout
            raise ValueError(f"{where} is a {kind} tensor, wanted a dense one with values; pass a dense copy")
        # Clones, because safetensors refuses tensors that share memory or have gaps.
        copies[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return safetensors.torch.save(copies)


# From bytes to values ---------------------------------------------------------------------------------------------


def _verified(path: Path) -> dict[str, bytes]:
    """The bytes of the five files, each as the manifest has it: what is hashed is what is parsed."""
    manifest = load(_bytes(path / MANIFEST), MANIFEST)
    if manifest.get("format_version") != FORMAT_VERSION:
        version = str(manifest.get("format_version"))[:20]
        raise ValueError(f"{MANIFEST} has format version {version}, this pyrovae reads {FORMAT_VERSION}")
    entries = manifest.get("files")
    if not isinstance(entries, dict) or set(entries) != set(FILES):
        raise ValueError(f"{MANIFEST} does not list exactly {', '.join(FILES)}")
    files = {}
    for name in FILES:
        entry = entries[name]
        if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
            raise ValueError(f"{MANIFEST} has no size for {name}")
        files[name] = _bytes(path / name, entry["size"])
        if hashlib.sha256(files[name]).hexdigest() != entry.get("sha256"):
            raise ValueError(f"{name} is damaged: its sha256 is not the one in {MANIFEST}")
    return files


def _bytes(path: Path, size: int | None = None) -> bytes:
    try:
        info = path.lstat()
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{path.name} is not a plain file")
    if size is not None and info.st_size != size:
        raise ValueError(f"{path.name} is damaged: it has {info.st_size} bytes, {MANIFEST} says {size}")
    if path.suffix == ".json" and info.st_size > JSON_LIMIT:
        raise ValueError(f"{path.name} has {info.st_size} bytes, more than {JSON_LIMIT}")
    return path.read_bytes()


def _parse(files: dict[str, bytes]) -> Checkpoint:
    tensors = {}
    for name in (MODEL, OPTIMIZER, RANDOM):
        try:
            # Clones own aligned memory; what safetensors returns are views into its buffer.
            tensors[name] = {key: value.clone() for key, value in safetensors.torch.load(files[name]).items()}
        except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
            raise ValueError(f"{name} is not in the safetensors format ({error})") from error
    values = []
    for name, keys in ((STATE, ("state", "optimizer")), (CONFIG, ())):
        loaded = load(files[name], name)
        try:
            # -1, because state.json has one level more than each of the two values in it.
            value = decode(loaded, tensors[OPTIMIZER] if name == STATE else {}, -1)
        except ValueError as error:
            raise ValueError(f"{name} has {error}") from error
        if not isinstance(value, dict) or not all(isinstance(value.get(key), dict) for key in keys):
            raise ValueError(f"{name} does not hold the objects of a checkpoint")
        values.append(value)
    state, config = values
    return Checkpoint(tensors[MODEL], state["optimizer"], tensors[RANDOM], state["state"], config)


# Folders ----------------------------------------------------------------------------------------------------------


def _order(path: Path) -> tuple[int, bool]:
    """Sorts checkpoints by step, one that is being replaced before its successor; (-1, ...) is not a checkpoint."""
    match = STEP.fullmatch(path.name)
    return (int(match[1]), match[2] is None) if match else (-1, False)


def _complete(folder: Path) -> list[Path]:
    paths = [path for path in folder.iterdir() if STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted((path for path in paths if (path / MANIFEST).is_file()), key=_order)


def _intact_before(path: Path) -> Path | None:
    for other in reversed(_complete(path.parent)):
        if _order(other) < _order(path):
            with contextlib.suppress(ValueError, OSError):
                _parse(_verified(other))
                return other
    return None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _sweep(folder: Path) -> None:
    """Delete what dead writers have left. Our own id counts as dead: containers reuse it, and this save is new."""
    for path in folder.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":  # there, signal 0 would be delivered
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _discard(path: Path) -> None:
    """Delete a checkpoint under a temporary name, so that no half of it is ever taken for one."""
    with contextlib.suppress(OSError):
        os.rename(path, _temporary(path))
        shutil.rmtree(_temporary(path))


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
