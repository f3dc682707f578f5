"""Options of the objectives: weights of their terms by name, and what else they can be told; no torch import."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jepa_fast.errors import require
from jepa_fast.model_config import ModelTraits, check_kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ObjectiveTraits:
    """What every objective's configuration can say."""

    kind: str
    # Names of the terms that are weighed: fields of the configuration, which a stage may override by name.
    weighted: ClassVar[tuple[str, ...]]

    @property
    def hinge(self) -> float | None:
        """Standard deviation of every dimension below which a variance term pulls; None where there is no such term."""
        return None

    @property
    def title(self) -> str:
        """What it is called and how it is set, for people."""
        return self.kind

    def weights(self, overrides: Mapping[str, float]) -> dict[str, float]:
        """The weights of the terms by name, some of them overridden."""
        return {name: overrides.get(name, getattr(self, name)) for name in self.weighted}

    def terms(self, model: ModelTraits) -> tuple[str, ...]:
        """Names of what is logged of a step beside its total, for a kind of model."""
        return self.weighted

    def schedule(self, progress: "NDArray[np.float64]") -> "dict[str, NDArray[np.float64]]":
        """What else changes from step to step, by name: functions of the progress in [0, 1] between restarts."""
        return {}


@dataclass(frozen=True)
class VICRegConfig(ObjectiveTraits):
    """Options of VICReg.

    Attributes:
        kind: tells it from other objectives where it is stored.
        invariance, variance, covariance: weights of the terms.
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

    weighted: ClassVar[tuple[str, ...]] = ("invariance", "variance", "covariance")

    kind: Literal["vicreg"] = "vicreg"
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    sides: Literal["predicted", "both"] = "predicted"
    steps: Literal["all", "each", "first"] = "all"
    covariance_divisor: Literal["dim", "pairs"] = "dim"
    gamma: float = 1.0
    eps: float = 1e-4
    targets: Literal["shared", "stop_gradient", "ema"] = "shared"
    ema_decay: float = 0.996
    horizon: int | None = None

    def __post_init__(self) -> None:
        check_kind(self, "vicreg", "objective")
        require(self.gamma > 0, "objective.gamma", self.gamma, "a positive number")
        require(self.eps > 0, "objective.eps", self.eps, "a positive number")
        require(0 <= self.ema_decay < 1, "objective.ema_decay", self.ema_decay, "a decay in [0, 1)")
        is_read = self.targets == "ema" or self.ema_decay == VICRegConfig.ema_decay
        require(is_read, "objective.ema_decay", self.ema_decay, "to be left alone, unless objective.targets is ema")
        expected = "at least 1 step, or None"
        require(self.horizon is None or self.horizon >= 1, "objective.horizon", self.horizon, expected)

    @property
    def title(self) -> str:
        """VICReg."""
        return "VICReg"

    @property
    def hinge(self) -> float | None:
        """Gamma."""
        return self.gamma


@dataclass(frozen=True)
class InfoNCEConfig(ObjectiveTraits):
    """Options of InfoNCE.

    Attributes:
        kind: tells it from other objectives where it is stored.
        contrast: weight of its one term.
        temperature: mean squared difference per dimension by which the own encoding has to be closer than another.
    """

    weighted: ClassVar[tuple[str, ...]] = ("contrast",)

    kind: Literal["infonce"] = "infonce"
    contrast: float = 1.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_kind(self, "infonce", "objective")
        require(self.temperature > 0, "objective.temperature", self.temperature, "a positive number")

    @property
    def title(self) -> str:
        """InfoNCE and its temperature."""
        return f"InfoNCE at temperature {self.temperature:g}"

    def terms(self, model: ModelTraits) -> tuple[str, ...]:
        """The contrast, and what is watched beside it."""
        return ("contrast", "invariance", "top1")


@dataclass(frozen=True)
class MixtureConfig(ObjectiveTraits):
    """Options of the likelihood of the blocked/free mixture: each transition from the encoding of the frame before.

    Attributes:
        kind: tells it from other objectives where it is stored.
        nll: weight of the negative logarithm of the likelihood.
        variance, covariance: weights of VICReg's terms on the positions that latents stand for.
        first_sigma: standard deviation of both outcomes at the beginning of the run, in pixels.
        last_sigma: at its end; geometric in between.
    """

    weighted: ClassVar[tuple[str, ...]] = ("nll", "variance", "covariance")

    kind: Literal["mixture"] = "mixture"
    nll: float = 1.0
    variance: float = 0.0
    covariance: float = 0.0
    first_sigma: float = 0.15
    last_sigma: float = 0.05

    def __post_init__(self) -> None:
        check_kind(self, "mixture", "objective")
        require(self.first_sigma > 0, "objective.first_sigma", self.first_sigma, "a positive number")
        require(self.last_sigma > 0, "objective.last_sigma", self.last_sigma, "a positive number")

    @property
    def title(self) -> str:
        """The likelihood and its sigma."""
        return f"the likelihood of the blocked/free mixture, sigma {self.first_sigma:g} px to {self.last_sigma:g} px"

    def terms(self, model: ModelTraits) -> tuple[str, ...]:
        """The likelihood's, and those on positions where they can collapse."""
        likelihood = ("nll", "invariance", "move_probability")
        return (*likelihood, "variance", "covariance") if model.can_collapse else likelihood

    def schedule(self, progress: "NDArray[np.float64]") -> "dict[str, NDArray[np.float64]]":
        """Sigma in pixels."""
        return {"sigma": self.first_sigma * (self.last_sigma / self.first_sigma) ** progress}


@dataclass(frozen=True)
class DynamicsConfig(ObjectiveTraits):
    """Options of the sum of terms that make latents follow actions; of rollouts, encodings and both.

    Attributes:
        kind: tells it from other objectives where it is stored.
        invariance: weight of the squared difference between predictions and encodings.
        variance, covariance: weights of VICReg's terms, taken of encodings.
        sigreg: weight of the distance of encodings from an isotropic Gaussian.
        inverse: weight of the error of the action that a network reads off two encodings in turn.
        similarity: weight of the squared difference between encodings in turn.
        horizon: steps that the predictor is fed its own output for; a divisor of T-1. None: T-1.
        targets: encodings predicted against: with gradient or without.
        gamma: standard deviation below which the variance hinge pulls.
        inverse_hidden: width of the network that reads actions.
        projections: directions that `sigreg` draws in every step; none without it.
    """

    weighted: ClassVar[tuple[str, ...]] = (
        "invariance", "variance", "covariance", "sigreg", "inverse", "similarity",
    )  # fmt: skip

    kind: Literal["dynamics"] = "dynamics"
    invariance: float = 32.0
    variance: float = 1.0
    covariance: float = 0.002
    sigreg: float = 0.0
    inverse: float = 1.0
    similarity: float = 0.0
    horizon: int | None = 4
    targets: Literal["shared", "stop_gradient"] = "shared"
    gamma: float = 1.0
    inverse_hidden: int = 128
    projections: int = 0

    def __post_init__(self) -> None:
        check_kind(self, "dynamics", "objective")
        require(self.gamma > 0, "objective.gamma", self.gamma, "a positive number")
        expected = "at least 1 step, or None"
        require(self.horizon is None or self.horizon >= 1, "objective.horizon", self.horizon, expected)
        require(self.inverse_hidden >= 1, "objective.inverse_hidden", self.inverse_hidden, "at least 1")
        require(self.projections >= 0, "objective.projections", self.projections, "zero or more")
        usable = self.sigreg == 0 or self.projections > 0
        require(usable, "objective.sigreg", self.sigreg, "0 without objective.projections")

    @property
    def title(self) -> str:
        """The terms that are weighed."""
        return "prediction with " + ", ".join(name for name in self.weighted[1:] if getattr(self, name) > 0)

    @property
    def hinge(self) -> float | None:
        """Gamma."""
        return self.gamma

    def terms(self, model: ModelTraits) -> tuple[str, ...]:
        """All that are weighed; SIGReg only where it has directions."""
        return tuple(name for name in self.weighted if name != "sigreg" or self.projections > 0)


ObjectiveConfig = VICRegConfig | InfoNCEConfig | MixtureConfig | DynamicsConfig
