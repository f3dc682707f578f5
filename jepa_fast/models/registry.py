"""The one place that names models and objectives: what a kind of configuration builds, imported when it is used."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jepa_fast.config import Kernels, ModelConfig, ObjectiveConfig, VICRegConfig
from jepa_fast.errors import InputError

if TYPE_CHECKING:
    from jepa_fast.models.model import Model
    from jepa_fast.objectives.objective import Objective

# Kind -> module and name of what takes (configuration, objective, kernels).
MODELS = {
    "jepa": ("jepa_fast.models.jepa", "build_jepa"),
    "gated_convnext": ("jepa_fast.models.gated_convnext", "GatedConvNeXt"),
    "gated_features": ("jepa_fast.models.gated_features", "GatedFeatures"),
    "gated_pixels": ("jepa_fast.models.gated_pixels", "GatedPixels"),
    "glimpse": ("jepa_fast.models.glimpse", "GlimpseJEPA"),
}
# Kind -> module and name of what takes (configuration).
OBJECTIVES = {
    "vicreg": ("jepa_fast.objectives.vicreg", "VICReg"),
    "infonce": ("jepa_fast.objectives.infonce", "InfoNCE"),
    "mixture": ("jepa_fast.objectives.mixture", "MixtureLikelihood"),
    "dynamics": ("jepa_fast.objectives.dynamics", "Dynamics"),
}


def build_model(
    config: ModelConfig, objective: "ObjectiveConfig | None" = None, kernels: Kernels = "reference"
) -> "Model":
    """A model with fresh weights, drawn from torch's global generator; by default with its own kind's objective.

    Raises:
        InputError: a model that was made in Python, which no configuration describes.
    """
    if not is_built_here(config):
        raise InputError(f"model.kind: got {config.kind!r}, which only the code that made the model can build")
    built = None if objective is None else build_objective(objective)
    model: Model = _found(MODELS[config.kind])(config, built, kernels)
    return model


def is_built_here(config: ModelConfig) -> bool:
    """Whether `build_model` can build it."""
    return config.kind in MODELS


def build_objective(config: ObjectiveConfig | None = None) -> "Objective":
    """The objective that a configuration describes."""
    config = config or VICRegConfig()
    objective: Objective = _found(OBJECTIVES[config.kind])(config)
    return objective


def _found(place: tuple[str, str]) -> Callable[..., Any]:
    module, name = place
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
