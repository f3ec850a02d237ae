"""What is left of a run where something raises in the middle of an epoch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from pyrovae.training.random_states import remembered

if TYPE_CHECKING:
    from pyrovae.training.loop import Loop

__all__ = ["rescued"]


@contextlib.contextmanager
def rescued(loop: Loop) -> Iterator[None]:
    """The epochs before this one are saved, as they were; where it diverged the pair goes back to them too."""
    run, before, restore_random = loop.run, loop.snapshot(), remembered()
    counting: list[Any] = [loop, loop.critic] if loop.critic else [loop]
    saves = run.out is not None and run.step > 0 and loop.processes.size == 1  # several could not agree on it
    begun = [(copy.deepcopy(part.optimizer.state_dict()), copy.copy(part.in_epoch)) for part in counting if saves]
    step = run.step
    try:
        yield
    except BaseException as error:
        after = loop.snapshot() if saves else {}
        if saves or isinstance(error, FloatingPointError):
            loop.restore(before)
        if saves and all(torch.isfinite(tensor).all() for tensor in loop.update.parameters):
            for part, (optimizer, in_epoch) in zip(counting, begun, strict=True):
                part.optimizer.load_state_dict(optimizer)
                part.in_epoch = in_epoch
            restore_random()
            run.step = step
            loop.save()
        if saves and not isinstance(error, FloatingPointError):
            loop.restore(after)
        raise
