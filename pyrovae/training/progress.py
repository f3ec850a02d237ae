"""What a user sees of a run that is under way, and how it is interrupted."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from pyrovae.training.loop import Loop, Run

__all__ = ["Progress", "interruptible"]


class Progress:
    """A bar on a terminal, at most twenty lines elsewhere."""

    def __init__(self, max_epochs: int, steps_per_epoch: int, run: Run, *, shown: bool):
        self.run, self.max_epochs = run, max_epochs
        terminal = sys.stderr.isatty()
        self.lines = shown and not terminal
        self.bar = tqdm(
            total=max_epochs * steps_per_epoch,
            initial=run.step,
            unit="step",
            disable=not (shown and terminal),
            leave=True,
        )

    def step(self) -> None:
        """One more step."""
        self.bar.update()

    def epoch(self) -> None:
        """One more epoch, whose losses are the last row of the run's history."""
        last = self.run.history.last
        losses = {name: f"{last[name]:.3f}" for name in ("train_loss", "validation_loss") if name in last}
        self.bar.set_postfix(epoch=self.run.epoch, **losses)
        every = max(1, self.max_epochs // 20)
        if self.lines and (self.run.epoch % every == 0 or self.run.epoch == self.max_epochs or self.run.stopping):
            text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in losses.items())
            print(f"epoch {self.run.epoch}/{self.max_epochs}: {text} nats, {self.run.seconds:.1f} s", file=sys.stderr)

    def close(self) -> None:
        """The end."""
        self.bar.close()


@contextlib.contextmanager
def interruptible(loop: Loop) -> Iterator[None]:
    """Ctrl-C asks the loop to end after the step; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def handle(*_: Any) -> None:
        loop.signalled = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
