"""Every setting of a run as frozen dataclasses: validated on construction, stored as JSON, no torch import."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jepa_fast.errors import InputError
from jepa_fast.errors import require as require
from jepa_fast.model_config import AnyModelConfig as AnyModelConfig
from jepa_fast.model_config import ApartModelConfig as ApartModelConfig
from jepa_fast.model_config import FeatureModelConfig as FeatureModelConfig
from jepa_fast.model_config import ModelConfig as ModelConfig
from jepa_fast.model_config import PixelModelConfig as PixelModelConfig
from jepa_fast.model_config import read_model_config as read_model_config
from jepa_fast.stages import Plateau, read_stage
from jepa_fast.stages import Stage as Stage

Kernels = Literal["triton", "fused", "reference"]


@dataclass(frozen=True)
class EnergyConfig:
    """Options of the VICReg energy.

    Attributes:
        sides: regularise the predictions alone, or predictions and encodings (the mean of both sides' terms).
        steps: statistics over [B*(T-1), D] ("all"), per time step and averaged ("each"), or the first step's ("first").
        covariance_divisor: divide the squared off-diagonal covariances by D ("dim") or by D(D-1) ("pairs").
        gamma: standard deviation below which the variance hinge pulls.
        eps: added to the variance under the square root.
        targets: encodings predicted against: with gradient, without, or from an exponential moving average encoder.
        ema_decay: decay per step of that average; used with targets = "ema" only.
        horizon: steps that the predictor is fed its own output for, before it starts from an encoding again; a divisor
            of T-1. None: T-1, one rollout from frame 0.
    """

    sides: Literal["predicted", "both"] = "predicted"
    steps: Literal["all", "each", "first"] = "all"
    covariance_divisor: Literal["dim", "pairs"] = "dim"
    gamma: float = 1.0
    eps: float = 1e-4
    targets: Literal["shared", "stop_gradient", "ema"] = "shared"
    ema_decay: float = 0.996
    horizon: int | None = None

    def __post_init__(self) -> None:
        require(self.gamma > 0, "energy.gamma", self.gamma, "a positive number")
        require(self.eps > 0, "energy.eps", self.eps, "a positive number")
        require(0 <= self.ema_decay < 1, "energy.ema_decay", self.ema_decay, "a decay in [0, 1)")
        require(self.horizon is None or self.horizon >= 1, "energy.horizon", self.horizon, "at least 1 step, or None")


@dataclass(frozen=True)
class OneStepConfig:
    """Options of the one-step likelihood: each transition by itself, from the encoding of the frame before.

    Attributes:
        kind: tells it from EnergyConfig where it is stored.
        first_width: s at the beginning of the run, in pixels.
        last_width: s at its end; geometric in between.
    """

    kind: Literal["one_step"] = "one_step"
    first_width: float = 0.15
    last_width: float = 0.05

    def __post_init__(self) -> None:
        require(self.kind == "one_step", "energy.kind", self.kind, "'one_step'")
        require(self.first_width > 0, "energy.first_width", self.first_width, "a positive number")
        require(self.last_width > 0, "energy.last_width", self.last_width, "a positive number")


@dataclass(frozen=True)
class ContrastConfig:
    """Options of the contrastive energy, InfoNCE.

    Attributes:
        kind: tells it from EnergyConfig where it is stored.
        temperature: mean squared difference per dimension by which the own encoding has to be closer than another.
    """

    kind: Literal["infonce"] = "infonce"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        require(self.kind == "infonce", "energy.kind", self.kind, "'infonce'")
        require(self.temperature > 0, "energy.temperature", self.temperature, "a positive number")


AnyEnergyConfig = EnergyConfig | OneStepConfig | ContrastConfig


def read_energy_config(fields: dict[str, Any]) -> AnyEnergyConfig:
    """What is minimised, from its JSON; one without a kind is the VICReg energy.

    Raises:
        TypeError: unknown fields.
    """
    kinds: dict[str, type[OneStepConfig] | type[ContrastConfig]]
    kinds = {"one_step": OneStepConfig, "infonce": ContrastConfig}
    return kinds[fields["kind"]](**fields) if "kind" in fields else EnergyConfig(**fields)


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

    `batch_size` is in trajectories per step; the stages' epochs add up to the run. The one-step likelihood is of the
    models whose dot stays or moves; on features nothing can collapse, and a stage has no regularisers to weigh. With
    `flips` each trajectory is mirrored at random along either axis, which is for worlds that are their own mirror
    images.
    """

    model: AnyModelConfig = field(default_factory=ModelConfig)
    energy: AnyEnergyConfig = field(default_factory=EnergyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 128
    flips: bool = False
    stages: tuple[Stage, ...] = (Stage(50, 25.0, 25.0, 1.0), Stage(50, 30.0, 25.0, 1.0))

    def __post_init__(self) -> None:
        if isinstance(self.model, ModelConfig) == isinstance(self.energy, OneStepConfig):
            raise InputError("recipe: a features, a pixels or an apart model and the one_step energy go together")
        if isinstance(self.energy, ContrastConfig) or isinstance(self.model, FeatureModelConfig):
            alone = all(stage.variance == stage.covariance == 0 for stage in self.stages)
            what = f"the {self.energy.kind} energy" if isinstance(self.energy, ContrastConfig) else "a features model"
            require(alone, "recipe.stages", self.stages, f"no variance, no covariance with {what}")
        for stage in self.stages:
            if isinstance(stage.until, Plateau):
                known = ("total", *self.terms)
                require(stage.until.term in known, "stage.until.term", stage.until.term, f"one of {', '.join(known)}")
        if any(stage.stop_gradient for stage in self.stages):
            is_shared = isinstance(self.energy, EnergyConfig) and self.energy.targets == "shared"
            require(is_shared, "stage.stop_gradient", True, "False unless the energy is VICReg's with shared targets")

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what is logged of a step beside its total."""
        if isinstance(self.model, FeatureModelConfig):
            return ("surprise", "invariance", "moving")
        if isinstance(self.energy, ContrastConfig):
            return ("contrast", "invariance", "found")
        if isinstance(self.energy, OneStepConfig):
            return ("surprise", "invariance", "moving", "variance", "covariance")
        return ("invariance", "variance", "covariance")

    @property
    def epochs(self) -> float:
        """Epochs over all stages."""
        return sum(stage.epochs for stage in self.stages)


def read_recipe(fields: dict[str, Any]) -> Recipe:
    """A recipe from its JSON.

    Raises:
        KeyError, TypeError: fields that are missing or unknown.
    """
    return Recipe(
        **fields
        | {
            "model": read_model_config(fields["model"]),
            "energy": read_energy_config(fields["energy"]),
            "optimizer": OptimizerConfig(**fields["optimizer"]),
            "stages": tuple(read_stage(stage) for stage in fields["stages"]),
        }
    )


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
        amp: "bf16" runs encoder and predictor under autocast; energy and optimiser stay float32.
        compile: whether the step's parts go through torch.compile.
        device: "cpu" or "cuda".
        data: folder of packed splits.
        loader: which loader feeds the step; "auto" decides on the machine that runs.
        kernels: "reference" is plain PyTorch, "fused" takes the ops of the compiled extension, "triton" also the Triton
            kernels of encoder and predictor.
        exact_shortcuts: whether the encoder skips what cannot differ (same function, same gradients).
        capture: whether the step is one CUDA graph.
    """

    preset: str
    recipe: Recipe
    seed: int
    steps: int
    batch_size: int
    amp: Literal["off", "bf16"]
    compile: bool
    device: Literal["cpu", "cuda"]
    data: str
    loader: Literal["auto", "resident", "dali", "host"]
    kernels: Kernels
    exact_shortcuts: bool
    capture: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= 1, "--steps", self.steps, "at least 1")
        require(self.batch_size >= 2, "--data.batch-size", self.batch_size, "at least 2")
        require(0 <= self.seed < 2**63, "--seed", self.seed, "an integer in [0, 2^63)")

    def save(self, path: Path) -> None:
        """Write the configuration to `path` as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> "RunConfig":
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a run configuration.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a run folder with config.json")
        try:
            fields = json.loads(path.read_text())
            return RunConfig(**fields | {"recipe": read_recipe(fields["recipe"])})
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a run configuration ({error})") from error
