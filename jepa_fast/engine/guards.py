"""Guards of a run: a step that is not finite is kept for study, states that collapse are noticed."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa_fast.config import ApartModelConfig, FeatureModelConfig, PixelModelConfig, Recipe
from jepa_fast.data.batches import Batch
from jepa_fast.data.host import gather
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import Split
from jepa_fast.engine.checkpoint import State, write_whole
from jepa_fast.engine.distributed import Ranks
from jepa_fast.engine.forward import Forward
from jepa_fast.engine.step import StepResult, Trainer
from jepa_fast.models.gated import states_of
from jepa_fast.probing.collapse import Spectrum, spectrum

logger = logging.getLogger(__name__)

# The probe batch: so many trajectories spread over the training split, every so many frames of each.
TRAJECTORIES, EVERY_FRAME = 64, 4
# Collapsed: the mean standard deviation is below this share of the states' size, or RankMe below 2, or this share of D.
LEAST_SPREAD, LEAST_RANKME = 0.05, 1 / 32
# Looks in a row that find them so before the watch strikes.
PATIENCE = 3


def finite_readings(
    trainer: Trainer, result: StepResult, sampler: Sampler, split: Split, folder: Path, ranks: Ranks
) -> dict[str, float]:
    """The readings of the last step on the host (synchronises).

    Raises:
        RunError: since the last reading a step was not finite; the file that keeps it is named.
    """
    *readings, failed = torch.cat([result.readings, trainer.failed[None]]).tolist()
    named = dict(zip(trainer.names, readings, strict=True))
    if not failed:
        return named
    # The state is still the one that the step began with, and the sampler knows its batch, that of all processes.
    state = trainer.state()
    step: int = state["step"] + 1
    # The terms before their sum, which is bad where any of them is.
    terms = trainer.config.recipe.terms
    name = next(name for name in (*terms, "total", "gradient_norm") if not math.isfinite(named[name]))
    path = folder / f"failure-{step:09d}.pt"
    if ranks.leads:
        epoch, number = divmod(state["step"], sampler.batches_per_epoch)
        whole = Sampler(sampler.count, sampler.global_batch, sampler.seed)
        batch = gather(split, next(whole.batches(epoch, number)))
        write_whole(path, {"readings": named, "state": state, "batch": batch.tensors()})
    kept = f"{path} keeps the batch and the state before it, checkpoints are untouched"
    raise ranks.ending(f"step {step}: {name} is {named[name]}; {kept}")


@dataclass(frozen=True)
class Failure:
    """A step that was not finite: `Trainer.restore(state)`, then `Trainer.step(batch)` shows it again."""

    readings: dict[str, float]
    state: State
    batch: Batch


def load_failure(path: Path) -> Failure:
    """What a run kept of a step that was not finite."""
    kept = torch.load(path, map_location="cpu", weights_only=True)
    return Failure(kept["readings"], kept["state"], Batch.of(kept["batch"]))


def is_collapsed(recipe: Recipe, std: Sequence[float], size: float, rankme: float) -> bool:
    """Whether states with these standard deviations, root mean square and RankMe have collapsed."""
    # A linear encoder of two coordinates with columns of fixed length has rank 2 and nowhere to collapse to.
    if isinstance(recipe.model, FeatureModelConfig):
        return False
    if isinstance(recipe.model, PixelModelConfig | ApartModelConfig):
        # Of rank 2 as well; what their coordinates can do is to come close to one point, at any distance.
        return math.hypot(*std) < LEAST_SPREAD * recipe.model.spread
    return sum(std) / len(std) < LEAST_SPREAD * size or rankme < max(2.0, LEAST_RANKME * len(std))


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
        if not is_collapsed(self._forward.config.recipe, seen.std.tolist(), seen.size, seen.rankme):
            if self._low >= PATIENCE:
                logger.info("step %d: states spread again, RankMe %.1f", done, seen.rankme)
            self._low = 0
            return None
        self._low += 1
        if self._low != PATIENCE:
            return None
        spread = float(seen.std.mean()) / seen.size
        collapse = (
            f"step {done}: states have collapsed: encodings of different frames vary by {100 * spread:.1f}% of their "
            f"size, RankMe {seen.rankme:.1f} and effective rank {seen.rank:.1f} of {len(seen.std)} dimensions"
        )
        if self._on_collapse == "stop":
            return collapse
        logger.warning("%s; some recipes recover, --on-collapse stop does not wait", collapse)
        return None

    @torch.no_grad()
    def _encodings(self) -> Tensor:
        world = self._forward.world.eval()
        try:
            with self._forward.autocast():
                return states_of(self._forward.encode(self._batch, world.dropout_clock))
        finally:
            world.train()
