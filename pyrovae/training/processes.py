"""The processes that train one pair together: each has all parameters, and takes its part of every batch.

Gradients are averaged after the backward pass and before clipping, so that every process does the same update. That is
done here and not by `torch.nn.parallel.DistributedDataParallel`, whose hooks see neither parameters of Pyro's store or
of modules that plain functions call (it wraps one module), nor the gradients that a captured step returns (no hook
runs there); which averages over processes and not over rows, wrong where the last batch splits unevenly; and which
makes parameters that a step did not use a special case. What it has over this, gradients sent while the backward pass
still runs, pays for networks far larger than those of variational auto-encoders.

Small agreements (flags, sums for validation) travel between the hosts over gloo, so that no device is waited for; the
gradients of GPUs travel over NCCL. A process that ends or fails closes its connections, which the others see at the
next agreement, once a step: no time limit on collectives has to be short for that, so that a long callback of one
process does no harm.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pyro.infer
import torch
import torch.distributed as dist
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrovae.data.seeds import PROCESS, derived_seed
from pyrovae.training.step import Step

__all__ = ["Processes", "check_divisible", "in_workers", "join", "wants_workers"]

PATIENCE = timedelta(minutes=30)  # for a process that is alive, but late: it may compile, or draw pictures
# Pyro's own objectives that weigh or compare the rows of a batch together; the library's say so themselves.
COUPLED = (pyro.infer.RenyiELBO, pyro.infer.Trace_MMD)


class Processes:
    """What the processes of one run do together; one alone has nothing to do.

    Args:
        rank: this process's number.
        size: how many there are.
        device: what this one computes on.

    Every method but `seed` is called by all processes, in the same order.

    >>> alone = Processes()
    >>> alone.size, alone.any(True), alone.sum(2.0, 3.0)
    (1, True, [2.0, 3.0])
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu"):
        self.rank = rank
        self.size = size
        self.device = torch.device(device)
        self.hosts: Any = None
        self.devices: Any = None
        if size > 1:
            with self._together():
                self.hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
            over_nccl = self.device.type == "cuda" and "nccl" in dist.get_backend()
            self.devices = dist.group.WORLD if over_nccl else self.hosts

    def close(self) -> None:
        """End the connections; whoever still waits for this process learns it at once."""
        hosts, self.hosts, self.devices = self.hosts, None, None
        if hosts is not None and dist.is_initialized():
            dist.destroy_process_group(hosts)

    def seed(self, seed: int) -> int:
        """The seed of this process's own draws: process 0 has the run's, as if it were alone."""
        return seed if self.rank == 0 else derived_seed(seed, PROCESS, self.rank) % 2**32  # numpy takes no more

    def union(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set on any process."""
        if self.size == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.uint8, device="cpu")
        with self._together():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.hosts)
        return [bool(flag) for flag in tensor.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.union([flag])[0]

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over the processes, the same to the last bit on all of them."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        with self._together():
            dist.all_reduce(tensor, group=self.hosts)
        return tensor.tolist()

    def average_(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace each tensor by its mean over the processes, in one message for each dtype.

        Args:
            tensors: of this process's device, with the same shapes on all; whole numbers are rounded.
            weight: of this process, the number of its rows; a process without rows brings zeros.
        """
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(_summed_in(tensor.dtype), []).append(tensor)
        for dtype, members in by_dtype.items():
            one = torch.ones(1, dtype=dtype, device=self.device)
            flat = torch.cat([*(tensor.detach().reshape(-1).to(dtype) for tensor in members), one]) * weight
            with self._together():
                dist.all_reduce(flat, group=self.devices)
            mean = flat[:-1] / flat[-1]
            for tensor, part in zip(members, mean.split([tensor.numel() for tensor in members]), strict=True):
                part = part if tensor.is_floating_point() or tensor.is_complex() else part.round()
                tensor.detach().copy_(part.view_as(tensor))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give every tensor the value that it has on process 0."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        # As bytes: one message for all dtypes, those that gloo can't send (bool) too.
        parts = [tensor.detach().contiguous().reshape(-1).view(torch.uint8).to(self.device) for tensor in tensors]
        flat = torch.cat(parts)
        with self._together():
            dist.broadcast(flat, src=0, group=self.devices)
        for tensor, part in zip(tensors, flat.split([len(part) for part in parts]), strict=True):
            tensor.detach().copy_(part.clone().view(tensor.dtype).view_as(tensor))

    def gather(self, content: bytes) -> list[bytes]:
        """What each process brings, in their order."""
        if self.size == 1:
            return [content]
        sizes = [int(size) for size in self.sum(*(len(content) * (rank == self.rank) for rank in range(self.size)))]
        mine = torch.zeros(max(1, *sizes), dtype=torch.uint8, device="cpu")
        mine[: len(content)] = torch.tensor(list(content), dtype=torch.uint8, device="cpu")
        each = [torch.zeros_like(mine) for _ in sizes]
        with self._together():
            dist.all_gather(each, mine, group=self.hosts)
        return [bytes(tensor[:size].tolist()) for tensor, size in zip(each, sizes, strict=True)]

    def first(self, value: Any) -> Any:
        """The plain value that process 0 has."""
        return value if self.size == 1 else json.loads(self.gather(json.dumps(value).encode())[0])

    def gather_states(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States of the generators of all: those of process 0 under their names, of the others as "1/cpu"."""
        together = dict(states)
        for name in sorted(states) if self.size > 1 else ():
            for rank, content in enumerate(self.gather(bytes(states[name].tolist()))):
                key = name if rank == 0 else f"{rank}/{name}"
                together[key] = torch.tensor(list(content), dtype=torch.uint8, device="cpu")
        return together

    def own_states(self, together: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's part of what `gather_states` returned."""
        prefix = f"{self.rank}/" if self.rank else ""
        names = [name for name in together if ("/" not in name if not prefix else name.startswith(prefix))]
        return {name.removeprefix(prefix): together[name] for name in names}

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Refuse to train where the processes were called with different things, which would hang or go wrong.

        Raises:
            ValueError: on every process, naming what differs.
        """
        told = [json.loads(text) for text in self.gather(json.dumps(facts, default=str).encode())]
        for name in facts:
            for rank, other in enumerate(told):
                if other.get(name) != told[0].get(name):
                    raise ValueError(
                        f"{name} is {str(told[0].get(name))[:100]} on process 0 and {str(other.get(name))[:100]} on "
                        f"process {rank}; give all the same data and arguments, and seed what the script draws for "
                        "them: torch.manual_seed(0), say"
                    )

    def check_alike(self, tensors: Iterable[Tensor]) -> None:
        """Stop where the processes' parameters have drifted apart, which nothing else would show.

        Raises:
            RuntimeError: on every process.
        """
        if self.size == 1:
            return
        size = sum(tensor.detach().abs().sum(dtype=torch.float64).item() for tensor in tensors)
        sizes = [float(text) for text in self.gather(repr(size).encode())]
        if max(sizes) - min(sizes) > 1e-6 * max(sizes):  # GPUs of several kinds may round in several ways
            raise RuntimeError(
                f"the parameters and buffers of the {self.size} processes are no longer the same (sums of sizes "
                f"{sizes}); an optimizer that draws numbers, or a callback, changed them on one: change them on all"
            )

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's own words are about sockets
            if self.devices is not self.hosts:  # else what NCCL still waits for would keep this process from ending
                with contextlib.suppress(Exception):
                    self.devices.abort()
            said = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". This is")[0][:200]
            raise ConnectionError(f"another of the {self.size} processes has died or failed ({said})") from error


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    """Half precision is summed in float32, whole numbers in float64."""
    floating = dtype.is_floating_point or dtype.is_complex
    return torch.promote_types(dtype, torch.float32) if floating else torch.float64


def check_divisible(step: Step, *, rows: int, batch_size: int, batch_rows: int, processes: Processes) -> None:
    """Refuse what gives another result where each process sees only its part of a batch.

    Args:
        step: what is trained.
        rows: of the training data.
        batch_size: rows of a batch, all processes together.
        batch_rows: rows of the batch that the structure was found on.
        processes: those that train.

    Raises:
        ValueError: naming the part and what to do.
    """
    known, size, objective = step.known, processes.size, step.objective
    if size == 1:
        return
    if batch_size < size:
        raise ValueError(f"batch_size is {batch_size} for {size} processes; pass batch_size={size} or more")
    if known.rows < batch_rows:
        raise ValueError(
            f"the plate {known.plate!r} draws {known.rows} rows by itself, so that each of the {size} processes would "
            f"draw its own; write pyro.plate({known.plate!r}, {rows}, subsample=torch.arange(len(x))) and pass "
            "batch_size= to fit"
        )
    if getattr(objective, "couples_rows", isinstance(objective, COUPLED)):
        raise ValueError(
            f"{type(objective).__name__} couples the rows of a batch, of which each of the {size} processes has a "
            "part; pass devices=1, or an objective that treats rows independently"
        )
    names = {id(part): name for name, part in step.named_modules()}
    modules = {id(part): part for part in [*known.modules, *step.modules()]}
    for part in modules.values():
        kind, name = type(part).__name__, names.get(id(part), "").removeprefix("pair.") or "a module"
        if isinstance(part, nn.SyncBatchNorm):
            if batch_size % size or rows % batch_size % size:
                raise ValueError(
                    f"{name} is a {kind}, which needs parts of equal size, but batches of {batch_size} among {rows} "
                    f"rows do not split evenly over {size} processes; pass a batch_size that does, or drop rows"
                )
        elif (isinstance(part, _BatchNorm) and _of_the_batch(part)) or isinstance(part, transforms.BatchNorm):
            raise ValueError(
                f"{name} is a {kind}, whose statistics would be of a part of each batch only; use nn.LayerNorm or "
                "nn.GroupNorm, on GPUs nn.SyncBatchNorm.convert_sync_batchnorm(pair), or pass devices=1"
            )


def _of_the_batch(norm: _BatchNorm) -> bool:
    return norm.training or norm.running_mean is None


# Starting them ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def join(devices: int | str | None, strategy: str, device: torch.device) -> Iterator[Processes]:
    """Start the processes or find those that a launcher started, and connect them until the block ends.

    Args:
        devices: how many on this machine, "auto" for one a GPU, None for those of the launcher, else one.
        strategy: how Fabric starts them.
        device: the kind of device; each process gets its own GPU.
    """
    count = _count(devices, strategy, device)
    if count > 1 and not _launched():
        _fabric(count, strategy, device).launch()
    if count == 1 or not _launched():
        yield Processes(device=device)
        return
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(_leave)
    processes = Processes(dist.get_rank(), dist.get_world_size(), _own_device(device))
    try:
        with torch.cuda.device(processes.device) if device.type == "cuda" else contextlib.nullcontext():
            yield processes
    finally:
        processes.close()


def _launched() -> bool:
    """Whether there are several processes already: of torchrun, of Fabric, or of the user's own making."""
    if not dist.is_available():
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _count(devices: int | str | None, strategy: str, device: torch.device) -> int:
    """How many processes this machine is to have; 0 for as many as there are."""
    if not (isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("ddp"))):
        raise ValueError(
            f"strategy is {strategy!r}, but here every process holds all parameters and a part of the rows; pass "
            "strategy='ddp' or 'auto'"
        )
    if devices is None:
        return 0
    if devices == "auto":
        return 0 if _launched() else torch.cuda.device_count() if device.type == "cuda" else 1
    if isinstance(devices, bool) or not isinstance(devices, int):
        raise TypeError(f"devices is {devices!r}, a whole number, 'auto' or None is wanted; pass devices=2, say")
    if devices < 1:
        raise ValueError(f"devices is {devices}, it must be at least 1; pass devices=1")
    if devices > 1 and device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"devices is {devices}, this machine has {torch.cuda.device_count()} GPUs; pass at most that many, or "
            "accelerator='cpu'"
        )
    if devices > 1 and _launched():
        here = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size() if dist.is_initialized() else devices))
        if devices != here:
            raise ValueError(f"devices is {devices}, but {here} processes were started here; leave devices out")
    return devices


def _own_device(device: torch.device) -> torch.device:
    """The GPU of this process."""
    if device.type != "cuda":
        return device
    count, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    if device.index is not None:
        raise ValueError(f"accelerator is '{device}', the same for all processes; pass accelerator='cuda'")
    if local_rank >= count > 1:  # one GPU may be all that a launcher lets each process see
        raise ValueError(
            f"process {local_rank} of this machine has no GPU of its own among {count}; start {count} processes"
        )
    return torch.device("cuda", local_rank % count)


def wants_workers(devices: int | str | None, strategy: str, device: torch.device) -> bool:
    """Whether processes are to be started that end with the call, instead of this script once more for each."""
    started = strategy in ("ddp_fork", "ddp_notebook", "ddp_spawn")
    return started and not _launched() and _count(devices, strategy, device) > 1


def in_workers(
    function: Callable[..., Any], arguments: Any, devices: int | str | None, strategy: str, device: torch.device
) -> Any:
    """What `function(fabric, arguments)` returns in the first of several new processes; spawned ones get it pickled."""
    return _fabric(_count(devices, strategy, device), strategy, device).launch(function, arguments)


def _fabric(count: int, strategy: str, device: torch.device) -> Any:
    try:
        from lightning_fabric import Fabric  # an extra, and slow to import
    except ImportError as error:
        raise ImportError(
            f"devices is {count}, and starting processes takes lightning-fabric; pip install 'pyrovae[distributed]', "
            f"or start the script with torchrun --nproc_per_node={count}"
        ) from error
    accelerator = {"cuda": "gpu"}.get(device.type, device.type)
    return Fabric(accelerator=accelerator, devices=count, strategy="ddp" if strategy == "auto" else strategy)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
