"""Learning rate and energy weights as pure functions of the step."""

import math

from jepa_fast.config import OneStepConfig, Recipe, Stage


def learning_rate(step: int, steps: int, base: float) -> float:
    """Cosine from `base` at step 0 towards zero at step `steps`. Source: Loshchilov, Hutter, SGDR, arXiv:1608.03983."""
    return 0.5 * base * (1.0 + math.cos(math.pi * step / steps))


def stage_at(step: int, steps: int, recipe: Recipe) -> Stage:
    """The stage that step `step` of `steps` belongs to; stages share the steps in proportion to their epochs."""
    epochs_before = 0
    for stage in recipe.stages:
        epochs_before += stage.epochs
        if step * recipe.epochs < epochs_before * steps:
            return stage
    raise ValueError(f"step: got {step}, expected less than {steps}")


def energy_weights(step: int, steps: int, recipe: Recipe) -> list[float]:
    """What the terms take in a step: weights of the three terms, or of the surprise and its width in pixels."""
    stage = stage_at(step, steps, recipe)
    if isinstance(recipe.energy, OneStepConfig):
        first, last = recipe.energy.first_width, recipe.energy.last_width
        return [stage.invariance, first * (last / first) ** (step / steps)]
    return [stage.invariance, stage.variance, stage.covariance]
