"""The training loop: batches through the step, metrics and checkpoints out, clean stops in between."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from jepa_fast.config import RunConfig
from jepa_fast.data.host import wall_bases
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import Position, Sampler
from jepa_fast.data.shards import Split, open_split
from jepa_fast.engine.checkpoint import load_checkpoint, save_checkpoint
from jepa_fast.engine.record import Metrics, Record
from jepa_fast.engine.step import StepResult, Trainer
from jepa_fast.errors import InputError, RunError
from jepa_fast.kernels.column_moments import column_moments
from jepa_fast.probing.collapse import spectrum

logger = logging.getLogger(__name__)

METRICS_EVERY = 10  # steps; each reading synchronises with the device
SPECTRA = 50  # in a run, each at a reading of the metrics


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


def train(config: RunConfig, folder: Path, resume: bool, checkpoint_minutes: float) -> int:
    """Train in run folder `folder` until `config.steps` or a stop signal; returns the steps done.

    Raises:
        InputError: the data or the checkpoint do not fit the configuration.
        RunError: an energy that is not finite.
    """
    split = open_split(Path(config.data) / "train")
    sampler = Sampler(split.count, config.batch_size, config.seed)
    trainer = Trainer(config, split.spec, wall_bases(split, torch.device(config.device)))
    done = _restore(trainer, sampler, split, folder) if resume else 0
    loader = open_loader(config.loader, split, trainer.device)
    batches = loader.batches(sampler.steps(done, config.steps))
    record = Record(folder, done)
    meter: Meter | None = None
    saved_at = time.monotonic()
    bar = tqdm(total=config.steps, initial=done, unit="step", dynamic_ncols=True)
    with StopSignal() as stop, contextlib.closing(record), contextlib.closing(batches), bar:
        for batch in batches:
            if meter is None:
                logger.info("%s", trainer.encode.explain(batch))
            result = trainer.step(batch, done)
            done += 1
            bar.update()
            if meter is None:
                meter = Meter(done, config.batch_size)
            last = done == config.steps or stop.received is not None
            due = last or time.monotonic() - saved_at >= 60 * checkpoint_minutes
            told = last or done % METRICS_EVERY == 0
            # Read before saving too: a step gone wrong must not become a checkpoint.
            metrics = read_result(result, done) if told or due else {}
            if told:
                metrics |= {
                    "epoch": done / sampler.batches_per_epoch,
                    "learning_rate": trainer.optimizer.param_groups[0]["lr"],
                    "trajectories_per_s": meter.rate(done),
                }
                record.write(metrics)
                if last or spectrum_is_due(done, config.steps):
                    record.write_spectrum(done, spectrum(result.states.flatten(0, 1)))
                bar.set_postfix_str(describe(metrics, config.recipe.terms))
            if due:
                position = Position.of(sampler, split.fingerprint, *divmod(done, sampler.batches_per_epoch))
                save_checkpoint(folder, done, {"step": done, "position": position.to_json(), **trainer.state()})
                saved_at = time.monotonic()
            if stop.received is not None:
                break
    if stop.received is not None and done < config.steps:
        logger.info("%s: saved at step %d; go on with --resume %s", stop.received.name, done, folder)
        raise SystemExit(128 + stop.received)
    return done


def spectrum_is_due(done: int, steps: int) -> bool:
    """Whether the reading after `done` of `steps` steps is the first one in its share of the run."""
    before = done - METRICS_EVERY
    return before <= 0 or done * SPECTRA // steps > before * SPECTRA // steps


def _restore(trainer: Trainer, sampler: Sampler, split: Split, folder: Path) -> int:
    """Load the newest checkpoint into `trainer` and return the steps it has done."""
    state = load_checkpoint(folder)
    try:
        done: int = state["step"]
        Position.from_json(state["position"]).check(sampler, split.fingerprint)
        trainer.restore(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}: its checkpoint is not of the model in its config.json ({error})") from error
    return done


def read_result(result: StepResult, step: int) -> Metrics:
    """The step's figures on the host (synchronises).

    Raises:
        RunError: one of the energy's terms, or the gradient, is not finite.
    """
    metrics: Metrics = {"step": step}
    for name, value in {**result.energy._asdict(), "gradient_norm": result.gradient_norm}.items():
        metrics[name] = float(value)
        if not math.isfinite(metrics[name]):
            raise RunError(f"step {step}: {name} is {metrics[name]}; the last checkpoint is untouched")
    std = column_moments(result.states.flatten(0, 1))[1].sqrt()
    metrics["state_std_mean"], metrics["state_std_min"] = float(std.mean()), float(std.min())
    return metrics


def describe(metrics: Metrics, names: Sequence[str]) -> str:
    """The terms of these names and the throughput, for the progress bar."""
    terms = " ".join(f"{name[:3]} {metrics[name]:.4f}" for name in names)
    return f"{terms} {metrics['trajectories_per_s']:,.0f} traj/s"


class Meter:
    """Throughput between readings. Made after the first step, so that compilation is left out."""

    def __init__(self, done: int, batch_size: int) -> None:
        self._batch_size, self._done, self._at = batch_size, done, time.monotonic()

    def rate(self, done: int) -> float:
        """Trajectories per second since the last reading; 0 where there was no step in between."""
        now = time.monotonic()
        rate = (done - self._done) * self._batch_size / (now - self._at)
        self._done, self._at = done, now
        return rate
