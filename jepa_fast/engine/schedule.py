"""Learning rate and energy weights as pure functions of the step: a table that a device reads by itself."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.config import OneStepConfig, Recipe
from jepa_fast.engine.stages import StageClock


def schedule_table(steps: int, recipe: Recipe, clock: StageClock | None = None) -> Tensor:
    """What each step takes, float32 [steps, .]: the learning rate, then what `energy_weights` gives.

    The rate is a cosine from its base at step 0, or where a stage restarts it, towards zero at the next restart or the
    end. Stages begin where `clock` says; without one, where it is planned.
    Source: Loshchilov, Hutter, SGDR, arXiv:1608.03983.
    """
    clock, numbers = clock or StageClock(recipe, steps), np.arange(steps)
    done, length = clock.courses(numbers)
    rate = 0.5 * recipe.optimizer.learning_rate * (1.0 + np.cos(np.pi * done / length))
    table = np.column_stack([rate, energy_weights(recipe, clock.numbers(numbers), done / length)])
    return torch.from_numpy(table).to(torch.float32)


def energy_weights(recipe: Recipe, stages: NDArray[np.int64], progress: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the objective takes in each step, [steps, .]: weights of the three terms; or of the surprise, its width, and
    the weights of variance and covariance.

    Where a stage has targets without gradient, a fourth column is the share of their gradient that encodings get, 0 or
    1. `stages` are the steps' stages, `progress` how far each is between restarts; the width, in pixels, falls
    geometrically with it.
    """
    weights = np.array([(stage.invariance, stage.variance, stage.covariance) for stage in recipe.stages])[stages]
    if isinstance(recipe.energy, OneStepConfig):
        first, last = recipe.energy.first_width, recipe.energy.last_width
        return np.column_stack([weights[:, 0], first * (last / first) ** progress, weights[:, 1:]])
    stopped = np.array([stage.stop_gradient for stage in recipe.stages])
    return np.column_stack([weights, ~stopped[stages]]) if stopped.any() else weights
