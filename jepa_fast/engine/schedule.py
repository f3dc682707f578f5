"""Learning rate and energy weights as pure functions of the step: a table that a device reads by itself."""

import numpy as np
import torch
from torch import Tensor

from jepa_fast.config import OneStepConfig, Recipe


def schedule_table(steps: int, recipe: Recipe) -> Tensor:
    """What each step takes, float32 [steps, .]: the learning rate, then what `energy_weights` gives.

    The rate is a cosine from its base at step 0 towards zero at step `steps`.
    Source: Loshchilov, Hutter, SGDR, arXiv:1608.03983.
    """
    rate = 0.5 * recipe.optimizer.learning_rate * (1.0 + np.cos(np.pi * np.arange(steps) / steps))
    table = np.column_stack([rate, energy_weights(steps, recipe)])
    return torch.from_numpy(table).to(torch.float32)


def energy_weights(steps: int, recipe: Recipe) -> np.ndarray:
    """What the objective takes in each step, [steps, .]: weights of the three terms; or of the surprise, its width, and
    the weights of variance and covariance.

    Stages share the steps in proportion to their epochs; the width, in pixels, falls geometrically over the run.
    """
    number = np.arange(steps)
    ends = np.cumsum([stage.epochs for stage in recipe.stages])
    stages = np.searchsorted(ends * steps, number * recipe.epochs, side="right")
    weights = np.array([(stage.invariance, stage.variance, stage.covariance) for stage in recipe.stages])[stages]
    if isinstance(recipe.energy, OneStepConfig):
        first, last = recipe.energy.first_width, recipe.energy.last_width
        return np.column_stack([weights[:, 0], first * (last / first) ** (number / steps), weights[:, 1:]])
    return weights
