"""Learning rate and energy weights as pure functions of the step, and as a table that a device reads by itself."""

import numpy as np
import torch
from torch import Tensor

from jepa_fast.config import Recipe, Stage


def stage_at(step: int, steps: int, recipe: Recipe) -> Stage:
    """The stage that step `step` of `steps` belongs to; stages share the steps in proportion to their epochs."""
    if not 0 <= step < steps:
        raise ValueError(f"step: got {step}, expected less than {steps}")
    return recipe.stages[int(_stages(np.array([step]), steps, recipe)[0])]


def schedule_table(steps: int, recipe: Recipe) -> Tensor:
    """float32 [steps, 4]: learning rate, and the weights of invariance, variance and covariance, of every step.

    The rate is a cosine from its base at step 0 towards zero at step `steps`.
    Source: Loshchilov, Hutter, SGDR, arXiv:1608.03983.
    """
    number = np.arange(steps)
    rate = 0.5 * recipe.optimizer.learning_rate * (1.0 + np.cos(np.pi * number / steps))
    weights = np.array([(stage.invariance, stage.variance, stage.covariance) for stage in recipe.stages])
    table = np.column_stack([rate, weights[_stages(number, steps, recipe)]])
    return torch.from_numpy(table).to(torch.float32)


def _stages(number: np.ndarray, steps: int, recipe: Recipe) -> np.ndarray:
    """Index of the stage of each step number."""
    ends = np.cumsum([stage.epochs for stage in recipe.stages])
    return np.searchsorted(ends * steps, number * recipe.epochs, side="right")
