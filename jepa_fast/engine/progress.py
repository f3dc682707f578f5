"""What people see of a run: metrics on disk, its progress with throughput and the time that is left."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from jepa_fast.engine.record import Metrics, Record
from jepa_fast.engine.step import Trainer
from jepa_fast.probing.collapse import Spectrum
from jepa_fast.progress import Progress, duration, rough

# Steps at the start of a command that no timing counts: they compile, capture and touch memory.
UNTIMED = 5
logger = logging.getLogger(__name__)


class Meter:
    """Throughput since the last log step and time that is left, from the step after the first UNTIMED ones on."""

    def __init__(self, batch_size: int, steps: int) -> None:
        self._batch_size, self._steps = batch_size, steps
        self._seen = 0
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def tick(self, done: int) -> None:
        """After every step."""
        if self._seen < UNTIMED:
            self._seen += 1
            if self._seen == UNTIMED:
                self._first = self._last = (done, time.monotonic())

    def throughput(self, done: int) -> float:
        """Trajectories per second since the last log step; 0 where no step in between counts."""
        now = time.monotonic()
        if self._last is None or done == self._last[0]:
            return 0.0
        throughput = (done - self._last[0]) * self._batch_size / (now - self._last[1])
        self._last = (done, now)
        return throughput

    def left_s(self, done: int) -> float | None:
        """Seconds until the last step at the mean speed so far; None before there is one."""
        if self._first is None or done == self._first[0]:
            return None
        return (time.monotonic() - self._first[1]) / (done - self._first[0]) * (self._steps - done)


class Journal:
    """The run's record, bar and meter; on processes that do not lead, nothing."""

    def __init__(self, folder: Path, done: int, trainer: Trainer, leads: bool) -> None:
        config = trainer.config
        self._record = Record(folder, done) if leads else None
        self._progress = Progress("train", config.steps, "steps", done, keeps=True, foretold=True, is_shown=leads)
        self._meter = Meter(config.batch_size, config.steps)
        self._terms, self._told, self._steps = trainer.forward.objective.names, done, config.steps
        self._foretold = False

    def tick(self, done: int) -> None:
        """After every step."""
        self._meter.tick(done)

    def tell(self, metrics: Metrics) -> None:
        """Write the metrics of a step down and show them. Adds the throughput to it."""
        done = int(metrics["step"])
        metrics["trajectories_per_s"] = self._meter.throughput(done)
        if not self._foretold and (left_s := self._meter.left_s(done)) is not None:
            self._foretold = True
            if self._record is not None and left_s > 0:
                step_s = left_s / (self._steps - done)
                logger.info("about %s on this machine: %.3g s a step", rough(left_s), step_s)
        if self._record is not None:
            self._record.write(metrics)
        self._progress.update(done - self._told, describe(metrics, self._terms, self._meter.left_s(done)))
        self._told = done

    def tell_spectrum(self, done: int, spectrum: Spectrum) -> None:
        """Write a spectrum down."""
        if self._record is not None:
            self._record.write_spectrum(done, spectrum)

    def close(self) -> None:
        """Close bar and files."""
        self._progress.close()
        if self._record is not None:
            self._record.close()


def metrics_of(step: int, found: dict[str, float], latents: Tensor) -> Metrics:
    """What is written of a step: its terms and gradient norm, and the spread of its predictions (synchronises)."""
    metrics: Metrics = {"step": step, **found}
    std = latents.detach().flatten(0, 1).double().var(dim=0).float().sqrt()
    metrics["latent_std_mean"], metrics["latent_std_min"] = float(std.mean()), float(std.min())
    return metrics


def describe(metrics: Metrics, names: Sequence[str], left_s: float | None) -> str:
    """The terms of these names, the throughput, of which there is none at first, and the time that is left."""
    terms = " ".join(f"{name[:3]} {metrics[name]:.4f}" for name in names)
    left = "" if left_s is None else f", {duration(left_s)} left"
    throughput = metrics["trajectories_per_s"]
    return f"{terms} {f'{throughput:,.0f}' if throughput else '–'} traj/s{left}"
