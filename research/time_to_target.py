"""A run to a target: training with the clock running, probing with the clock stopped."""

import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from jepa_fast.config import LoopOptions, RunConfig
from jepa_fast.engine.loop import Progress, training
from jepa_fast.engine.record import read_metrics
from jepa_fast.errors import RunError
from jepa_fast.generate import generate
from jepa_fast.models.model import Model
from jepa_fast.probing.evaluation import score
from jepa_fast.runs import create_run
from research.targets import CHECK_SEED, CONFIRMATION_SEED, PROBES, Event, Scores, meets

logger = logging.getLogger(__name__)

# Enough for a captured step, whose graph is recorded in the fourth.
WARM_UP_STEPS = 5
# Of the simulator, for the warm-up's trajectories; the data's own is 0 unless somebody chose another.
WARM_UP_SEED = 2**63


class Clock:
    """Wall-clock time, and CPU time of all of this process's threads, while it runs."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.wall_s = self.cpu_s = 0.0

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Count what happens inside, to the end of what the device was told to do."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            if self._device == "cuda":
                torch.cuda.synchronize()
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.process_time() - cpu_s


def warm_up(config: RunConfig) -> None:
    """A few steps of the same configuration, on walks that are in no data set, with a model that is thrown away.

    What a process does once, importing, compiling, touching memory for the first time, is then done.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "data", config.batch_size, ("train",), WARM_UP_SEED + config.seed, workers=1)
        dummy = replace(config, data=str(folder / "data"), steps=WARM_UP_STEPS)
        create_run(folder / "run", dummy)
        for _ in training(dummy, folder / "run", LoopOptions()):
            pass


class Outcome(NamedTuple):
    """What came of a run: the log's events, and the model where the clock stopped, None if it broke down before."""

    log: list[Event]
    model: Model | None


def run_to_target(config: RunConfig, folder: Path, checks: list[int], thresholds: dict[str, float]) -> Outcome:
    """Train in the new run folder `folder` until a check meets `thresholds`, or to the last one.

    The clock runs while the training loop does: it opens the data, makes model, batches and schedule, and steps. It
    stands still while the model is probed. A check that meets the thresholds is confirmed with probes of another seed.

    Args:
        config: of the run; its data folder holds the probe sets as well.
        folder: of the run.
        checks: steps after which the model is probed, ascending.
        thresholds: highest errors in pixels^2 by validation split.
    """
    clock = Clock(config.device)
    log: list[Event] = []

    def tell(kind: str, step: int, **fields: Any) -> None:
        times = {"clock_s": clock.wall_s, "cpu_s": clock.cpu_s, "load_average": os.getloadavg()[0]}
        log.append({"event": kind, "seed": config.seed, "step": step, **times, **fields})

    def probe(kind: str, progress: Progress, first_seed: int) -> bool:
        probe_seed = first_seed + config.seed
        with stopped_at_once():
            found = score(progress.model, Path(config.data), list(thresholds), probe_seed)
        scores: Scores = {name: {probe: getattr(found[name], probe) for probe in PROBES} for name in thresholds}
        met = meets(scores, thresholds)
        tell(kind, progress.done, probe_seed=probe_seed, scores=scores, met=met)
        logger.info("%s", describe(log[-1], config.steps))
        return met

    create_run(folder, config)
    progress: Progress | None = None
    with contextlib.closing(training(config, folder, LoopOptions())) as steps:
        for due in checks:
            try:
                with clock.running():
                    progress = advance(steps, due)
            except RunError as error:
                tell("failure", progress.done if progress else 0, reason=str(error).replace(str(folder), "the run"))
                break
            if probe("check", progress, CHECK_SEED) and probe("confirmation", progress, CONFIRMATION_SEED):
                break
    for metrics in read_metrics(folder):
        # By the loop's own clock, which runs while the model is probed.
        del metrics["trajectories_per_s"]
        log.append({"event": "reading", "seed": config.seed, **metrics})
    return Outcome(log, progress.model if progress else None)


def advance(steps: Iterator[Progress], due: int) -> Progress:
    """Train on until `due` steps are done."""
    return next(progress for progress in steps if progress.done == due)


@contextlib.contextmanager
def stopped_at_once() -> Generator[None]:
    """Between steps of a run, which would note SIGINT and SIGTERM for its next one, let them end what is inside."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    theirs = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in theirs.items():
            signal.signal(number, handler)


def describe(event: Event, steps: int) -> str:
    """A check or a confirmation in one line: errors on the sets in their order, official / converged."""
    errors = ", ".join(f"{one['official']:.3f} / {one['converged']:.3f}" for one in event["scores"].values())
    verdict = f"{event['event']} {'met' if event['met'] else 'not met'}"
    return (
        f"seed {event['seed']}, step {event['step']} of {steps}, {event['clock_s']:.2f} s "
        f"(CPU time {event['cpu_s']:.2f} s): {verdict}: {errors}"
    )
