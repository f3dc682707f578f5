"""Which stage a step is in: planned by shares of epochs, brought forward where a stage's trigger fires.

Triggers are judged on the host, at the readings and looks that a run has anyway. What they decide is the number of the
step that a stage begins with; from these numbers the table is made that the step, on the device, looks its weights up
in. So a step stays a function of state and batch, and a captured one is not captured anew.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.config import Recipe
from jepa_fast.stages import EpochReached, Plateau, RankReached, Stage


class StageClock:
    """The first step of every stage, and what a trigger has seen of the stage that is under way."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self._stages, self._steps = recipe.stages, steps
        self.begins = [0, *_shared(recipe.stages, 0, steps)]
        # Where a plateau is waited for: the stage, its lowest reading, and how many since then were not lower.
        self._watched, self._lowest, self._since = 0, math.inf, 0

    def number(self, step: int) -> int:
        """The stage that a step is in, 0 is the first."""
        return int(self.numbers(np.array([step]))[0])

    def numbers(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """The stages that steps are in."""
        return np.searchsorted(self.begins[1:], steps, side="right")

    def courses(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many steps after the last restart, or the run's first step, steps are, and after how many the next or the
        run's end is."""
        starts = [begin for begin, stage in zip(self.begins, self._stages, strict=True) if begin == 0 or stage.restarts]
        ends = np.array([*starts[1:], self._steps])
        which = np.searchsorted(ends, steps, side="right")
        firsts = np.array(starts)[which]
        return steps - firsts, ends[which] - firsts

    def waits(self, done: int) -> bool:
        """Whether a trigger may end a stage after `done` steps."""
        number = self.number(done)
        return number + 1 < len(self._stages) and self._stages[number].until is not None

    def judge(self, done: int, epoch: float, readings: dict[str, float], rank: float | None) -> bool:
        """Whether the trigger of the stage under way fires after `done` steps, to be asked at every reading.

        Args:
            done: steps done; `waits` holds.
            epoch: epochs done.
            readings: of the last step, by name.
            rank: effective rank of the encodings, where the collapse watch has looked.
        """
        number = self.number(done)
        if number != self.number(done - 1):
            return False  # The reading is of the stage before, which has just ended by its share.
        until = self._stages[number].until
        if isinstance(until, EpochReached):
            return epoch >= until.epoch
        if isinstance(until, RankReached):
            return rank is not None and rank >= until.rank
        assert isinstance(until, Plateau)
        if self._watched != number:
            self._watched, self._lowest, self._since = number, math.inf, 0
        value, lowest = readings[until.term], self._lowest
        if math.isinf(lowest) or value < lowest - until.least * abs(lowest):
            self._lowest, self._since = value, 0
        else:
            self._since += 1
        return self._since >= until.patience

    def end_stage(self, done: int) -> None:
        """Let the next stage begin now, after `done` steps, and those after it share what is left."""
        number = self.number(done)
        self.begins[number + 1 :] = [done, *_shared(self._stages[number + 1 :], done, self._steps)]

    def reason(self, step: int) -> str:
        """What ended the stage that a step was in, for the log."""
        until = self._stages[self.number(step)].until
        if isinstance(until, Plateau):
            return f"{until.term} has stopped falling"
        if isinstance(until, RankReached):
            return f"states have reached rank {until.rank:g}"
        return f"epoch {until.epoch:g} is reached" if until else "its share is over"

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"begins": list(self.begins), "plateau": (self._watched, self._lowest, self._since)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.begins = list(state["begins"])
        self._watched, self._lowest, self._since = state["plateau"]


def _shared(stages: tuple[Stage, ...], first: int, steps: int) -> list[int]:
    """The first steps of `stages` but the first of them, which share steps `first` to `steps` by their epochs."""
    ends = np.cumsum([stage.epochs for stage in stages])
    return [first + math.ceil(end * (steps - first) / ends[-1]) for end in ends[:-1].tolist()]
