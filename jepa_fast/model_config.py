"""Shapes of the world models, validated on construction; no torch import."""

from dataclasses import dataclass
from typing import Any, Literal

from jepa_fast.errors import require


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the world model. The defaults give 293,344 parameters.

    Attributes:
        channels: C, width of the ConvNeXt blocks.
        blocks: L, ConvNeXt blocks per branch.
        dim: D, size of a state.
        dropout: rate in the encoder heads and in the predictor.
        residual: what the predictor's MLP is added to: "sum" = LN(s) + LN(Wa a + ba), "state" = LN(s).
        activation: where the predictor's GELU stands: "after_norm" = gelu(LN(h)), "before_norm" = LN(gelu(h)).
        bias: whether layers have one, LayerNorms included; without, no input gives the state zero.
        head: what a branch reads off its last activations: means over 6 x 6 cells ("pool"), or for each channel the
            coordinates expected under a softmax over all pixels ("softargmax").
        fusion: whether a third branch reads both channels, its state added to the others'.
        norm_before_add: whether a branch's state is normalised before branches are added.
        norm_after_add: whether their sum is normalised.
        history: k, how many states before the present one the predictor reads beside it.
        history_decay: what a past state is multiplied by for every step of its age.
    """

    channels: int = 16
    blocks: int = 2
    dim: int = 128
    dropout: float = 0.1
    residual: Literal["sum", "state"] = "sum"
    activation: Literal["after_norm", "before_norm"] = "after_norm"
    bias: bool = True
    head: Literal["pool", "softargmax"] = "pool"
    fusion: bool = False
    norm_before_add: bool = True
    norm_after_add: bool = False
    history: int = 0
    history_decay: float = 0.5

    def __post_init__(self) -> None:
        _check_counts(self, "channels", "blocks", "dim")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "a rate in [0, 1)")
        require(self.residual in ("sum", "state"), "model.residual", self.residual, "'sum' or 'state'")
        places = ("after_norm", "before_norm")
        require(self.activation in places, "model.activation", self.activation, "'after_norm' or 'before_norm'")
        require(self.head in ("pool", "softargmax"), "model.head", self.head, "'pool' or 'softargmax'")
        require(self.history >= 0, "model.history", self.history, "zero or more")
        require(0 < self.history_decay <= 1, "model.history_decay", self.history_decay, "a factor in (0, 1]")


@dataclass(frozen=True)
class FeatureModelConfig:
    """Shape of the world model on features read from pixels. The defaults give 5,056 parameters.

    Attributes:
        kind: tells it from ModelConfig where it is stored.
        dim: D, size of a state.
        frame: side of the square frames in pixels.
        spread: length of a state that stands for a point half a frame from the centre.
        border_hidden: width of the gate that all borders share.
        wall_hidden: width of both hidden layers of the gate of the wall's pieces.
        reach: distance, in steps of the size just taken, beyond which the gates do not tell distances apart.
    """

    kind: Literal["features"] = "features"
    dim: int = 128
    frame: int = 65
    spread: float = 20.0
    border_hidden: int = 16
    wall_hidden: int = 64
    reach: float = 3.0

    def __post_init__(self) -> None:
        require(self.kind == "features", "model.kind", self.kind, "'features'")
        _check_lift(self.dim, self.frame, self.spread)
        _check_counts(self, "border_hidden", "wall_hidden")
        require(self.reach > 0, "model.reach", self.reach, "a positive number")


@dataclass(frozen=True)
class PixelModelConfig:
    """Shape of the world model that learns from pixels and predicts one step. The defaults give 24,082 parameters.

    Attributes:
        kind: tells it from ModelConfig where it is stored.
        dim: D, size of a state.
        frame: side of the square frames in pixels.
        white: value of the brightest pixels, which the model sees as 1.
        spread: length of a state that stands for a point half a frame from the centre.
        channels: between the encoder's two convolutions.
        kernel: side of both in pixels.
        lattice: side of each of the two lattices of points through which the gate looks at the wall, in pixels.
        hidden: width of the gate's both hidden layers.
    """

    kind: Literal["pixels"] = "pixels"
    dim: int = 128
    frame: int = 65
    white: float = 0.0942
    spread: float = 20.0
    channels: int = 8
    kernel: int = 3
    lattice: int = 5
    hidden: int = 128

    def __post_init__(self) -> None:
        require(self.kind == "pixels", "model.kind", self.kind, "'pixels'")
        _check_lift(self.dim, self.frame, self.spread)
        require(self.white > 0, "model.white", self.white, "a positive number")
        _check_counts(self, "channels", "kernel", "lattice", "hidden")


@dataclass(frozen=True)
class ApartModelConfig:
    """Shape of the world model whose states leave the wall out. The defaults give 258,017 parameters.

    Attributes:
        kind: tells it from ModelConfig where it is stored.
        channels: C, width of the ConvNeXt blocks.
        blocks: L, ConvNeXt blocks per branch.
        dim: D, size of a state, and of what is carried of a wall.
        frame: side of the square frames in pixels.
        spread: length of what half a frame is in states.
        hidden: how many lines the gate goes by, and width of its both hidden layers.
    """

    kind: Literal["apart"] = "apart"
    channels: int = 16
    blocks: int = 2
    dim: int = 128
    frame: int = 65
    spread: float = 20.0
    hidden: int = 160

    def __post_init__(self) -> None:
        require(self.kind == "apart", "model.kind", self.kind, "'apart'")
        _check_lift(self.dim, self.frame, self.spread)
        _check_counts(self, "channels", "blocks", "hidden")


def _check_counts(config: object, *names: str) -> None:
    """Raise InputError unless these fields of a model's configuration are at least 1."""
    for name in names:
        count = getattr(config, name)
        require(count >= 1, f"model.{name}", count, "at least 1")


def _check_lift(dim: int, frame: int, spread: float) -> None:
    """Raise InputError unless positions in a square frame can be lifted to states of `dim` numbers."""
    require(dim >= 2, "model.dim", dim, "at least 2")
    require(frame >= 2, "model.frame", frame, "at least 2 pixels")
    require(spread > 0, "model.spread", spread, "a positive number")


AnyModelConfig = ModelConfig | FeatureModelConfig | PixelModelConfig | ApartModelConfig


def read_model_config(fields: dict[str, Any]) -> AnyModelConfig:
    """The model's configuration from its JSON; one without a kind is of the ConvNeXt model.

    Raises:
        TypeError: unknown fields.
    """
    kinds: dict[str | None, type[AnyModelConfig]]
    kinds = {"features": FeatureModelConfig, "pixels": PixelModelConfig, "apart": ApartModelConfig}
    if fields.get("wall") == "added":  # there was a choice once, and this was the default
        fields = {name: value for name, value in fields.items() if name != "wall"}
    return kinds.get(fields.get("kind"), ModelConfig)(**fields)
