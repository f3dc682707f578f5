"""Every setting of a run as frozen dataclasses: validated on construction, stored as JSON, no torch import."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jepa_fast import migrations
from jepa_fast.errors import InputError
from jepa_fast.errors import require as require
from jepa_fast.model_config import Amp as Amp
from jepa_fast.model_config import CustomConfig as CustomConfig
from jepa_fast.model_config import GatedConvNeXtConfig as GatedConvNeXtConfig
from jepa_fast.model_config import GatedFeaturesConfig as GatedFeaturesConfig
from jepa_fast.model_config import GatedPixelsConfig as GatedPixelsConfig
from jepa_fast.model_config import GlimpseConfig as GlimpseConfig
from jepa_fast.model_config import Group as Group
from jepa_fast.model_config import JEPAConfig as JEPAConfig
from jepa_fast.model_config import ModelConfig as ModelConfig
from jepa_fast.objective_config import DynamicsConfig as DynamicsConfig
from jepa_fast.objective_config import InfoNCEConfig as InfoNCEConfig
from jepa_fast.objective_config import MixtureConfig as MixtureConfig
from jepa_fast.objective_config import ObjectiveConfig as ObjectiveConfig
from jepa_fast.objective_config import VICRegConfig as VICRegConfig
from jepa_fast.reading import MALFORMED, decode, described, read_json, require_finite
from jepa_fast.stages import Stage as Stage

Kernels = Literal["triton", "fused", "reference"]
# Names of checkpoints have so many digits.
MOST_STEPS = 10**9 - 1


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with L2 weight decay, cosine to zero per step over the whole run or to a restart, gradient norm clipped."""

    learning_rate: float = 5e-4
    weight_decay: float = 3e-4
    clip_norm: float = 0.5

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "a positive number")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "zero or more")
        require(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "a positive number")


@dataclass(frozen=True)
class Recipe:
    """What is trained and how, apart from the data and the machine: a preset is a named Recipe.

    `batch_size` is in trajectories per step; the stages' epochs add up to the run. With `flips` each trajectory is
    mirrored at random along either axis, which is for data that are their own mirror images.
    """

    model: ModelConfig = field(default_factory=JEPAConfig)
    objective: ObjectiveConfig = field(default_factory=VICRegConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 128
    flips: bool = False
    stages: tuple[Stage, ...] = (Stage(1),)

    def __post_init__(self) -> None:
        known, kind = self.model.objectives, self.objective.kind
        require(kind in known, "objective.kind", kind, f"{' or '.join(known)}, which train a {self.model.kind} model")
        require(len(self.stages) > 0, "stages", self.stages, "at least one")
        for stage in self.stages:
            names = self.objective.weighted
            for name in stage.weights:
                require(name in names, "stage.weights", name, f"{', '.join(names)}: terms of the {kind} objective")
            for name, weight in self.objective.weights(stage.weights).items():
                usable = weight == 0 or name in self.terms
                require(usable, f"objective.{name}", weight, f"0: no latent of a {self.model.kind} model can collapse")

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what is logged of a step beside its total."""
        return self.objective.terms(self.model)

    @property
    def epochs(self) -> float:
        """Epochs over all stages."""
        return sum(stage.epochs for stage in self.stages)


@dataclass(frozen=True)
class InputSpec:
    """What a model was trained on: sizes of frames and actions, and the values that bytes stand for.

    Attributes:
        channels, height, width: C, H, W of a frame.
        action_size: A, numbers of an action.
        scale, offset: a byte of a frame stands for byte * scale + offset.
    """

    channels: int
    height: int
    width: int
    action_size: int
    scale: float
    offset: float = 0.0

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value that a frame can hold."""
        return self.offset, self.offset + 255 * self.scale


@dataclass(frozen=True)
class LoopOptions:
    """How a run is watched and kept: nothing here changes what it computes, so nothing of it is stored.

    Attributes:
        resume: go on from the newest checkpoint in the run folder.
        checkpoint_minutes: time between checkpoints; 0 saves after every step.
        on_collapse: what follows when the collapse watch strikes.
        profile: what records the steps of the window.
        profile_window: first step recorded and the one after the last, counted from where the command starts.
    """

    resume: bool = False
    checkpoint_minutes: float = 5.0
    on_collapse: Literal["warn", "stop"] = "warn"
    profile: Literal["off", "torch", "nsys"] = "off"
    profile_window: tuple[int, int] = (20, 25)

    def __post_init__(self) -> None:
        minutes, (first, last) = self.checkpoint_minutes, self.profile_window
        require(minutes >= 0, "--checkpoint-minutes", minutes, "zero or more")
        require(0 <= first < last, "--profile-window", self.profile_window, "a first step and a later one")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; stored in the run folder as config.json.

    Attributes:
        preset: name of the recipe, for people.
        recipe: what is trained and how.
        seed: of weights, batch order and dropout masks.
        steps: optimiser steps in all; the recipe's stages share them in proportion to their epochs.
        batch_size: trajectories per step, over all processes.
        amp: "bf16" runs encoder and predictor under autocast; objective and optimiser stay float32.
        compile: whether the step's parts go through torch.compile.
        device: "cpu" or "cuda".
        data: folder of packed splits.
        loader: which loader feeds the step; "auto" decides on the machine that runs.
        kernels: "reference" is plain PyTorch, "fused" takes the ops of the compiled extension, "triton" also the Triton
            kernels of encoder and predictor.
        sparse: whether the encoder skips what cannot differ (same function, same gradients).
        capture: whether the step is one CUDA graph.
        frames: T of the clips that are trained on; None: whole trajectories.
        frame_skip: frames from one frame of a clip to its next.
        inputs: sizes and pixel values of the data; None in runs of earlier versions.
    """

    preset: str
    recipe: Recipe
    seed: int
    steps: int
    batch_size: int
    amp: Amp
    compile: bool
    device: Literal["cpu", "cuda"]
    data: str
    loader: Literal["auto", "resident", "dali", "host"]
    kernels: Kernels
    sparse: bool
    capture: bool = False
    frames: int | None = None
    frame_skip: int = 1
    inputs: InputSpec | None = None

    def __post_init__(self) -> None:
        require_finite(self.recipe, "recipe")
        require_finite(self.inputs, "inputs")
        require(1 <= self.steps <= MOST_STEPS, "--steps", self.steps, f"from 1 to {MOST_STEPS:,}")
        require(self.batch_size >= 2, "--data.batch-size", self.batch_size, "at least 2")
        require(0 <= self.seed < 2**63, "--seed", self.seed, "an integer in [0, 2^63)")
        require("\0" not in self.data, "data", self.data, "the path of a folder")
        known = self.recipe.model.amps
        expected = f"{' or '.join(known)}: a {self.recipe.model.kind} model computes in float32 throughout"
        require(self.amp in known, "--amp", self.amp, expected)

    def save(self, path: Path) -> None:
        """Write the configuration to `path` as JSON, whole or not at all."""
        from jepa_fast.data.writing import write_text

        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> "RunConfig":
        """Read what `save` wrote, now or in an earlier version.

        Raises:
            InputError: no such file, or not a run configuration.
        """
        fields = read_json(path, "a run configuration", "a run folder with config.json")
        try:
            return decode(RunConfig, migrations.run_config(fields), "config")
        except MALFORMED as error:
            raise InputError(f"{path}: not a run configuration ({described(error)})") from error


def read_recipe(fields: dict[str, Any]) -> Recipe:
    """A recipe from its JSON, of this version or an earlier one.

    Raises:
        InputError, KeyError, TypeError: fields that are missing or unknown, or values that are out of range.
    """
    return decode(Recipe, migrations.recipe(fields), "recipe")


def read_model_config(fields: dict[str, Any]) -> ModelConfig:
    """A model's configuration from its JSON, of this version or an earlier one.

    Raises:
        InputError, KeyError, TypeError: fields that are missing or unknown, or values that are out of range.
    """
    config: ModelConfig = decode(ModelConfig, migrations.model(fields), "model")  # type: ignore[arg-type]
    return config
