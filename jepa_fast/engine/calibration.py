"""How long a step takes on this machine, by the clock, and how many fit into a time budget.

What is timed is thrown away: it has a model and an optimiser of its own, so that a run whose length is fixed this way
has the bits of one that was given the same number of steps.
"""

import contextlib
import copy
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from jepa_fast.config import RunConfig
from jepa_fast.data.host import group_bases
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_training
from jepa_fast.engine.distributed import ALONE, Ranks
from jepa_fast.engine.progress import UNTIMED
from jepa_fast.engine.schedule import stages_of
from jepa_fast.engine.step import Trainer
from jepa_fast.errors import require
from jepa_fast.models.model import Model

logger = logging.getLogger(__name__)

# Steps are timed in rounds of so many, until so many seconds or rounds are over; the mean is taken.
ROUND, ENOUGH_S, MOST_ROUNDS = 5, 2.0, 40
MOST = UNTIMED + ROUND * MOST_ROUNDS


def steps_within(budget_s: float, config: RunConfig, ranks: Ranks = ALONE, model: Model | None = None) -> int:
    """How many steps of `config` take `budget_s` seconds in all, this measurement included; `config.steps` is unused.

    `model` is what is trained, in place of one that is built from the configuration; it is copied.

    Raises:
        InputError: the budget is over before a step could be made.
    """
    began = time.monotonic()
    logger.info("timing steps to find how many fit: about %d s", len(config.recipe.stages) * (ENOUGH_S + 1))
    step_s, start_s = measure(config, ranks, model)

    def fitted() -> int:
        spent_s = time.monotonic() - began + start_s
        least = (spent_s + step_s) / 60
        require(
            budget_s / 60 >= least,
            "--minutes",
            budget_s / 60,
            f"at least {least:.2g}, where a step takes {step_s:.2g} s",
        )
        return int((budget_s - spent_s) / step_s)

    steps = ranks.share(fitted)
    logger.info("%g minutes: %d steps of %.3g s, timed on steps that are thrown away", budget_s / 60, steps, step_s)
    return steps


def measure(config: RunConfig, ranks: Ranks = ALONE, model: Model | None = None) -> tuple[float, float]:
    """Seconds of a step, the mean over the recipe's stages by their shares, and seconds that come before the first."""
    stages = config.recipe.stages
    epochs = [stage.epochs for stage in stages]
    # Long enough for every stage to be timed within it.
    config = replace(config, steps=math.ceil((MOST + 1) * sum(epochs) / min(epochs)))
    timed: dict[tuple[str, ...], float] = {}
    start_s = 0.0
    for number, stage in enumerate(stages):
        if stage.frozen not in timed:
            timed[stage.frozen], start_s = _time_stage(config, number, ranks, model)
    return sum(stage.epochs * timed[stage.frozen] for stage in stages) / sum(epochs), start_s


def _time_stage(config: RunConfig, number: int, ranks: Ranks, model: Model | None) -> tuple[float, float]:
    """Seconds of a step in a stage, and from here to the end of the first steps, which are not timed."""
    began = time.monotonic()
    split = open_training(Path(config.data), config.frames, config.frame_skip)
    sampler = Sampler(split.count, config.batch_size // ranks.count, config.seed, ranks.count, ranks.rank)
    trainer = Trainer(
        config, split.spec, group_bases(split, torch.device(config.device)), ranks, model=copy.deepcopy(model)
    )
    stages = stages_of(trainer.config.recipe, config.steps, np.arange(config.steps))
    trainer.restore(trainer.state() | {"step": int(np.searchsorted(stages, number))})
    batches = open_loader(config.loader, split, trainer.device).batches(sampler.steps(0, MOST))
    with contextlib.closing(batches):

        def advance(steps: int) -> None:
            for _ in range(steps):
                trainer.step(next(batches))
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)

        advance(UNTIMED)
        ready = time.monotonic()
        rounds = 0
        is_over = False
        while not is_over:
            advance(ROUND)
            rounds += 1
            is_over = ranks.agree(time.monotonic() - ready >= ENOUGH_S or rounds == MOST_ROUNDS)[0]
        return (time.monotonic() - ready) / (rounds * ROUND), ready - began
