"""Learning rate, weights and what else changes as pure functions of the step: a table that a device reads by itself."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.config import Recipe

LEARNING_RATE = "learning_rate"


class Schedule(NamedTuple):
    """What each step takes, a column for each name."""

    names: tuple[str, ...]
    table: Tensor  # float32 [steps, columns]

    def column(self, name: str) -> Tensor:
        """A column, float32 [steps]."""
        return self.table[:, self.names.index(name)]


def schedule(steps: int, recipe: Recipe) -> Schedule:
    """The learning rate, the weights of the objective's terms, and what the objective schedules beside them.

    The learning rate is a cosine from its base at step 0, or where a stage restarts it, towards zero at the next
    restart or the end. Source: Loshchilov, Hutter, SGDR, arXiv:1608.03983.
    """
    numbers = np.arange(steps)
    done, length = _courses(recipe, steps, numbers)
    stages, objective = stages_of(recipe, steps, numbers), recipe.objective
    weights = [objective.weights(stage.weights) for stage in recipe.stages]
    columns = {
        LEARNING_RATE: 0.5 * recipe.optimizer.learning_rate * (1.0 + np.cos(np.pi * done / length)),
        **{name: np.array([one[name] for one in weights])[stages] for name in objective.weighted},
        **objective.schedule(done / length),
    }
    return Schedule(tuple(columns), torch.from_numpy(np.column_stack(list(columns.values()))).to(torch.float32))


def stages_of(recipe: Recipe, steps: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stages, 0 is the first, that steps `numbers` of `steps` are in."""
    return np.searchsorted(_begins(recipe, steps)[1:], numbers, side="right")


def _begins(recipe: Recipe, steps: int) -> list[int]:
    """The first step of every stage: they share the steps in proportion to their epochs."""
    ends = np.cumsum([stage.epochs for stage in recipe.stages])
    return [0, *(math.ceil(end * steps / ends[-1]) for end in ends[:-1].tolist())]


def _courses(recipe: Recipe, steps: int, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many steps after the last restart, or the run's first step, steps are, and after how many the next or the
    run's end is."""
    begins = zip(_begins(recipe, steps), recipe.stages, strict=True)
    starts = [begin for begin, stage in begins if begin == 0 or stage.restarts]
    ends = np.array([*starts[1:], steps])
    which = np.searchsorted(ends, numbers, side="right")
    firsts = np.array(starts)[which]
    return numbers - firsts, ends[which] - firsts
