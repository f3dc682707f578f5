"""Guards of a run: a step that is not finite is kept for study, latents that collapse are noticed."""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_fast.data.batches import Batch
from jepa_fast.data.host import gather
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import Split
from jepa_fast.engine.checkpoint import State, read_whole, write_whole
from jepa_fast.engine.distributed import Ranks
from jepa_fast.engine.forward import Forward
from jepa_fast.engine.step import StepResult, Trainer
from jepa_fast.errors import require
from jepa_fast.probing.collapse import Spectrum, spectrum

logger = logging.getLogger(__name__)

# The probe batch: so many trajectories spread over the training split, every so many frames of each.
TRAJECTORIES, EVERY_FRAME = 64, 4
# What is kept of a step that was not finite.
FAILURE = re.compile(r"failure-\d{9}\.pt")
# Looks in a row that find them so before the watch strikes.
PATIENCE = 3


@torch.no_grad()
def try_out(trainer: Trainer, split: Split) -> None:
    """Run a small batch through model and objective, so that what does not fit is known before anything is written.

    Nothing is changed by it, and nothing is compiled for it.

    Raises:
        InputError: the objective cannot have trajectories of this length.
        Exception: what a model that was made in Python raises.
    """
    batch = gather(split, np.arange(min(2, split.count))).to(trainer.device)
    weights = dict.fromkeys(trainer.scheduled, torch.ones((), device=trainer.device))
    model = trainer.model.eval()
    try:
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            trainer.forward(batch, weights)
    finally:
        model.train()


def finite_metrics(
    trainer: Trainer, result: StepResult, sampler: Sampler, split: Split, folder: Path, ranks: Ranks
) -> dict[str, float]:
    """The metrics of the last step on the host, by name (synchronises).

    Raises:
        RunError: since they were read last a step was not finite; the file that keeps it is named.
    """
    *values, failed = torch.cat([result.metrics, trainer.failed[None]]).tolist()
    named = dict(zip(trainer.names, values, strict=True))
    if not failed:
        return named
    # The state is still the one that the step began with, and the sampler knows its batch, that of all processes.
    state = trainer.state()
    step: int = state["step"] + 1
    name = first_not_finite(named)
    path = folder / f"failure-{step:09d}.pt"
    if ranks.leads:
        epoch, number = divmod(state["step"], sampler.batches_per_epoch)
        whole = Sampler(sampler.count, sampler.global_batch, sampler.seed)
        batch = gather(split, next(whole.batches(epoch, number)))
        write_whole(path, {"metrics": named, "state": state, "batch": batch.tensors()})
    kept = f"{path} keeps the batch and the state before it, checkpoints are untouched"
    raise ranks.ending(f"step {step}: {name} is {named[name]}; {kept}")


def first_not_finite(metrics: dict[str, float]) -> str:
    """The term that went wrong, of the metrics of a step in the trainer's order; the norm, where no term did."""
    # The terms before their sum, which is bad where any of them is.
    total, *others = metrics
    return next((name for name in (*others[:-1], total) if not math.isfinite(metrics[name])), others[-1])


class Divergence(NamedTuple):
    """A step whose loss or gradient was not finite, where a run ended.

    Attributes:
        step: its number, 1 is the first.
        term: what was not finite first.
        value: of the term.
        path: what was kept of it.
    """

    step: int
    term: str
    value: float
    path: Path


def find_divergence(folder: Path, done: int) -> Divergence | None:
    """Where the run in `folder` diverged; None if it did not, or has gone past it in its `done` steps.

    Raises:
        InputError: what it kept of that step is damaged.
    """
    found = sorted(path for path in folder.glob("failure-*.pt") if FAILURE.fullmatch(path.name))
    if not found or int(found[-1].stem[8:]) <= done:
        return None
    metrics = read_whole(found[-1]).get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    right = len(metrics) >= 2 and all(isinstance(value, float) for value in metrics.values())
    require(right, f"{found[-1]}: metrics", metrics, "the terms of a step")
    term = first_not_finite(metrics)
    return Divergence(int(found[-1].stem[8:]), term, metrics[term], found[-1])


@dataclass(frozen=True)
class Failure:
    """A step that was not finite: `Trainer.restore(state)`, then `Trainer.step(batch)` shows it again."""

    metrics: dict[str, float]
    state: State
    batch: Batch


def load_failure(path: Path) -> Failure:
    """What a run kept of a step that was not finite.

    Raises:
        InputError: the file is damaged.
    """
    kept = read_whole(path)
    return Failure(kept["metrics"], kept["state"], Batch.of(kept["batch"]))


class CollapseWatch:
    """Looks at encodings of the same trajectories in evaluation mode, where no dropout noise hides a collapse.

    The spread of training predictions shows none: with the shared targets of the published recipes it stays at a third
    of what it should be from dropout alone, while encodings of different frames hardly differ (docs/training.md).
    """

    def __init__(self, forward: Forward, split: Split, on_collapse: Literal["warn", "stop"]) -> None:
        self._forward, self._on_collapse = forward, on_collapse
        self._low = 0
        count = min(TRAJECTORIES, split.count)
        batch = gather(split, np.linspace(0, split.count - 1, count).astype(np.int64))
        self._batch = batch.frames(slice(None, None, EVERY_FRAME)).to(torch.device(forward.config.device))

    def look(self) -> Spectrum:
        """The spectrum of the encodings now (synchronises)."""
        return spectrum(self._encodings().flatten(0, 1))

    def judge(self, done: int, seen: Spectrum) -> str | None:
        """Strike at the PATIENCE-th look in a row that finds a collapse: warn, or say why the run has to stop."""
        if not self._forward.model.is_collapsed(seen.std.tolist(), seen.size, seen.rankme):
            if self._low >= PATIENCE:
                logger.info("step %d: latents spread again, RankMe %.1f", done, seen.rankme)
            self._low = 0
            return None
        self._low += 1
        if self._low != PATIENCE:
            return None
        spread = float(seen.std.mean()) / seen.size
        collapse = (
            f"step {done}: latents have collapsed: encodings of different frames vary by {100 * spread:.1f}% of their "
            f"size, RankMe {seen.rankme:.1f} and effective rank {seen.rank:.1f} of {len(seen.std)} dimensions"
        )
        if self._on_collapse == "stop":
            return collapse
        logger.warning("%s; some recipes recover, --on-collapse stop does not wait", collapse)
        return None

    @torch.no_grad()
    def _encodings(self) -> Tensor:
        model = self._forward.model.eval()
        try:
            with self._forward.autocast():
                return model.latents(self._forward.encode(self._batch, model.dropout_clock))
        finally:
            model.train()
