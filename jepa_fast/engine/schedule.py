"""Learning rate and energy weights as pure functions of the step: a table that a device reads by itself."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.config import OneStepConfig, Recipe
from jepa_fast.engine.stages import StageClock


def schedule_table(steps: int, recipe: Recipe, clock: StageClock | None = None) -> Tensor:
    """What each step takes, float32 [steps, .]: the learning rate, then what `energy_weights` gives.

    The rate is a cosine from its base at step 0 towards zero at step `steps`. Steps are in the stages that `clock`
    says; without one, in those that are planned.
    Source: Loshchilov, Hutter, SGDR, arXiv:1608.03983.
    """
    rate = 0.5 * recipe.optimizer.learning_rate * (1.0 + np.cos(np.pi * np.arange(steps) / steps))
    stages = (clock or StageClock(recipe, steps)).numbers(np.arange(steps))
    table = np.column_stack([rate, energy_weights(steps, recipe, stages)])
    return torch.from_numpy(table).to(torch.float32)


def energy_weights(steps: int, recipe: Recipe, stages: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the objective takes in each step, [steps, .]: weights of the three terms; or of the surprise, its width, and
    the weights of variance and covariance.

    Where a stage has targets without gradient, a fourth column is the share of their gradient that encodings get, 0 or
    1. `stages` are the steps' stages; the width, in pixels, falls geometrically over the run.
    """
    weights = np.array([(stage.invariance, stage.variance, stage.covariance) for stage in recipe.stages])[stages]
    if isinstance(recipe.energy, OneStepConfig):
        first, last = recipe.energy.first_width, recipe.energy.last_width
        widths = first * (last / first) ** (np.arange(steps) / steps)
        return np.column_stack([weights[:, 0], widths, weights[:, 1:]])
    stopped = np.array([stage.stop_gradient for stage in recipe.stages])
    return np.column_stack([weights, ~stopped[stages]]) if stopped.any() else weights
