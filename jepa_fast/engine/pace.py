"""What is due after a step: a log step, a look at the latents, a checkpoint, the end. All processes decide alike."""

import math
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from jepa_fast.config import LoopOptions, RunConfig
from jepa_fast.engine.distributed import Ranks

# Steps between log steps, at which metrics are read; each waits for the device.
LOG_EVERY = {"cpu": 10, "cuda": 100}
# Looks of the collapse watch in a run, each at a log step, and the most steps between two of them.
LOOKS, MOST_BETWEEN_LOOKS = 25, 1000


class StopSignal:
    """While entered, the first SIGINT or SIGTERM is noted in `received` instead of ending the process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


class Due(NamedTuple):
    """What follows a step."""

    log: bool  # metrics are read and told
    look: bool  # the collapse watch looks
    save: bool  # a checkpoint is written
    end: bool  # the run ends here, done or stopped


class Pace:
    """Decides after every step. Processes that share a run talk about it at log steps alone, and stop only there."""

    def __init__(self, config: RunConfig, options: LoopOptions, ranks: Ranks, stop: StopSignal) -> None:
        self._steps, self._ranks, self._stop = config.steps, ranks, stop
        self._every = LOG_EVERY[config.device]
        self._between_s = 60 * options.checkpoint_minutes
        self._saved_at = time.monotonic()

    def after(self, done: int) -> Due:
        """What is due after `done` steps of the run."""
        finished = done == self._steps
        log = finished or done % self._every == 0
        stopped = self._stop.received is not None
        save = time.monotonic() - self._saved_at >= self._between_s
        if self._ranks.group is not None:
            # Clocks and signals differ between processes; what all know without asking is the step.
            at_once = self._between_s == 0
            stopped, save = self._ranks.agree(stopped, save) if log else (False, at_once)
        end = finished or stopped
        if save or end:
            self._saved_at = time.monotonic()
        look = log and look_is_due(done, self._steps, self._every)
        return Due(log or end, look or end, save or end, end)


def look_is_due(done: int, steps: int, every: int) -> bool:
    """Whether the log step after `done` of `steps` steps, one in `every`, is one at which the collapse watch looks."""
    between = min(max(steps // LOOKS, every), MOST_BETWEEN_LOOKS)
    return done == every or done % (math.ceil(between / every) * every) == 0
