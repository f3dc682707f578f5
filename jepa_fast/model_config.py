"""Shapes of the models, validated on construction; no torch import.

Besides its fields every configuration says what the rest of the package has to know before a model is built: which
objectives train it, which `--amp` it honours, whether its latents can collapse, and when they have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from jepa_fast.errors import require

if TYPE_CHECKING:
    from jepa_fast.data.manifest import FrameSpec

Amp = Literal["off", "bf16"]

# Collapsed: the mean standard deviation is below this share of the latents' size, or RankMe below 2 or this share of D.
LEAST_SPREAD, LEAST_RANKME = 0.05, 1 / 32


# Beyond these no memory holds a model, and products of sizes overflow.
MOST_COUNTED, MOST_BLOCKS = 2**20, 1000


class ModelTraits:
    """What holds of a kind of model, unless it says otherwise."""

    kind: str
    # Kinds of objectives that it can be trained with.
    objectives: ClassVar[tuple[str, ...]] = ("vicreg", "infonce", "dynamics")
    # Values of --amp that change what it computes as they say.
    amps: ClassVar[tuple[Amp, ...]] = ("off", "bf16")
    # Whether its encoder could give all frames the same latent.
    can_collapse: ClassVar[bool] = True

    def is_collapsed(self, std: Sequence[float], size: float, rankme: float) -> bool:
        """Whether latents with these standard deviations, root mean square and RankMe have collapsed."""
        return sum(std) / len(std) < LEAST_SPREAD * size or rankme < max(2.0, LEAST_RANKME * len(std))

    def for_data(self, spec: "FrameSpec") -> "ModelConfig":
        """The configuration for frames and actions like these."""
        return cast("ModelConfig", self)


@dataclass(frozen=True)
class Group:
    """Channels of a frame that a branch of the encoder is for.

    Attributes:
        name: of the branch, a Python identifier.
        channels: how many, in the order of the frame's channels.
    """

    name: str
    channels: int = 1

    def __post_init__(self) -> None:
        require(self.name.isidentifier(), "model.groups.name", self.name, "an identifier")
        require(self.channels >= 1, "model.groups.channels", self.channels, "at least 1")


TWO_ROOMS = (Group("agent"), Group("wall"))
TWO_ROOMS_ACTION = 2

# Cells of the encoder along the shorter side of a frame, where its stride goes by the frame: so many up to twice that.
LEAST_CELLS = 16
# The stride where neither a number nor frames are given.
USUAL_STRIDE = 4
# Cells of a spatial latent, 6 x 6.
SPATIAL_CELLS = 36


@dataclass(frozen=True)
class JEPAConfig(ModelTraits):
    """ConvNeXt branches and an MLP that is rolled out. The defaults give 293,344 parameters.

    Attributes:
        kind: tells it from other models where it is stored.
        channels: C, width of the ConvNeXt blocks.
        blocks: L, ConvNeXt blocks per branch.
        dim: D, size of a latent.
        dropout: rate in the encoder heads and in the predictor.
        residual: what the predictor's MLP is added to: "sum" = LN(s) + LN(Wa a + ba), "state" = LN(s).
        activation: where the predictor's GELU stands: "after_norm" = gelu(LN(h)), "before_norm" = LN(gelu(h)).
        bias: whether layers have one, LayerNorms included; without, no input gives the latent zero.
        head: what a branch reads off its last activations: means over 6 x 6 cells as one vector ("pool") or as a map
            [D / 36, 6, 6] ("spatial"), or for each channel the coordinates expected under a softmax over all pixels
            ("softargmax").
        predictor: "mlp", or "conv": one 3 x 3 convolution in place of the MLP's first layer, with head "spatial".
        fusion: whether one more branch reads all channels, its latent added to the others'.
        norm_before_add: whether a branch's latent is normalised before branches are added.
        norm_after_add: whether their sum is normalised.
        history: k, how many latents before the present one the predictor reads beside it.
        history_decay: what a past latent is multiplied by for every step of its age.
        groups: the frame's channels; each group has a branch of its name.
        action_size: A, numbers of an action.
        stride: pixels from one cell of the stem to the next, along either axis. None: a power of two by the frame's
            size, so that its shorter side has 16 to 31 cells, or a cell for each pixel where it is smaller.
        stem: side of the stem's filters in pixels. None: the stride, patches side by side.
        white: value of pixels that the encoder sees as 1. None: the data's largest.
        batch_norm: whether what a branch's head reads is standardised over the batch, in evaluation by averages of
            training: for frames of which little changes, whose latents else differ by little.
    """

    kind: Literal["jepa"] = "jepa"
    channels: int = 16
    blocks: int = 2
    dim: int = 128
    dropout: float = 0.1
    residual: Literal["sum", "state"] = "sum"
    activation: Literal["after_norm", "before_norm"] = "after_norm"
    bias: bool = True
    head: Literal["pool", "softargmax", "spatial"] = "pool"
    predictor: Literal["mlp", "conv"] = "mlp"
    fusion: bool = False
    norm_before_add: bool = True
    norm_after_add: bool = False
    history: int = 0
    history_decay: float = 0.5
    groups: tuple[Group, ...] = TWO_ROOMS
    action_size: int = TWO_ROOMS_ACTION
    stride: int | None = 1
    stem: int | None = None
    white: float | None = 1.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_kind(self, "jepa")
        _check_counts(self, "channels", "blocks", "dim", "action_size")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "a rate in [0, 1)")
        require(self.residual in ("sum", "state"), "model.residual", self.residual, "'sum' or 'state'")
        places = ("after_norm", "before_norm")
        require(self.activation in places, "model.activation", self.activation, "'after_norm' or 'before_norm'")
        heads = ("pool", "softargmax", "spatial")
        require(self.head in heads, "model.head", self.head, "'pool', 'softargmax' or 'spatial'")
        is_map = self.head == "spatial"
        require(not is_map or self.dim % SPATIAL_CELLS == 0, "model.dim", self.dim, "a multiple of 36, for 6 x 6 cells")
        require(self.predictor in ("mlp", "conv"), "model.predictor", self.predictor, "'mlp' or 'conv'")
        require(self.predictor == "mlp" or is_map, "model.predictor", self.predictor, "'mlp': 'conv' predicts maps")
        known = self.predictor == "mlp" or (self.history == 0 and self.activation == "after_norm" and self.bias)
        expected = "'mlp' with history, a changed activation or no bias, which 'conv' does not have"
        require(known, "model.predictor", self.predictor, expected)
        stride, side = self.stride, self.stem
        require(stride is None or stride >= 1, "model.stride", stride, "at least 1, or None")
        expected = f"at least the stride, {stride or 'which is chosen'}, so that every pixel is seen, or None"
        require(side is None or side >= (stride or 1), "model.stem", side, expected)
        require(side is None or stride is not None, "model.stem", side, "None where the stride is None")
        require(self.white is None or self.white > 0, "model.white", self.white, "a positive number, or None")
        require(0 <= self.history <= MOST_COUNTED, "model.history", self.history, f"from 0 to {MOST_COUNTED:,}")
        require(0 < self.history_decay <= 1, "model.history_decay", self.history_decay, "a factor in (0, 1]")
        names = [group.name for group in self.groups]
        require(len(names) == len(set(names)) > 0, "model.groups", names, "at least one group, each name once")

    def for_data(self, spec: "FrameSpec") -> "JEPAConfig":
        """Groups and action size of the data where there are the defaults, two rooms'; others are taken to be meant.

        And what was left to the data: the stride and the value of white.
        """
        found = tuple(Group(group.name, group.channels) for group in spec.groups)
        side, white = min(spec.height, spec.width), max(abs(spec.offset), abs(255 * spec.scale + spec.offset))
        return replace(
            self,
            groups=found if self.groups == TWO_ROOMS else self.groups,
            action_size=spec.action_size if self.action_size == TWO_ROOMS_ACTION else self.action_size,
            stride=2 ** max(0, int(math.log2(side / LEAST_CELLS))) if self.stride is None else self.stride,
            white=white if self.white is None else self.white,
        )


class GatedTraits(ModelTraits):
    """What the models have in common whose agent is blocked or free: float32 under autocast too."""

    objectives: ClassVar[tuple[str, ...]] = ("mixture",)
    amps: ClassVar[tuple[Amp, ...]] = ("off",)
    spread: float

    def is_collapsed(self, std: Sequence[float], size: float, rankme: float) -> bool:
        """Whether positions have come close to one point, at any distance: their rank is 2 whatever happens."""
        return self.can_collapse and math.hypot(*std) < LEAST_SPREAD * self.spread


@dataclass(frozen=True)
class GatedFeaturesConfig(GatedTraits):
    """Shape of the model on features read from pixels. The defaults give 5,056 parameters.

    Attributes:
        kind: tells it from other models where it is stored.
        dim: D, size of a latent.
        frame: side of the square frames in pixels.
        spread: length of a latent that stands for a point half a frame from the centre.
        border_hidden: width of the gate that all borders share.
        wall_hidden: width of both hidden layers of the gate of the wall's pieces.
        reach: distance, in steps of the size just taken, beyond which the gates do not tell distances apart.
    """

    # A linear encoder of two coordinates with columns of fixed length has nowhere to collapse to.
    can_collapse: ClassVar[bool] = False

    kind: Literal["gated_features"] = "gated_features"
    dim: int = 128
    frame: int = 65
    spread: float = 20.0
    border_hidden: int = 16
    wall_hidden: int = 64
    reach: float = 3.0

    def __post_init__(self) -> None:
        check_kind(self, "gated_features")
        _check_lift(self.dim, self.frame, self.spread)
        _check_counts(self, "border_hidden", "wall_hidden")
        require(self.reach > 0, "model.reach", self.reach, "a positive number")


@dataclass(frozen=True)
class GatedPixelsConfig(GatedTraits):
    """Shape of the model that learns from pixels and predicts one step. The defaults give 24,082 parameters.

    Attributes:
        kind: tells it from other models where it is stored.
        dim: D, size of a latent.
        frame: side of the square frames in pixels.
        white: value of the brightest pixels, which the model sees as 1.
        spread: length of a latent that stands for a point half a frame from the centre.
        channels: between the encoder's two convolutions.
        kernel: side of both in pixels.
        lattice: side of each of the two lattices of points through which the gate looks at the wall, in pixels.
        hidden: width of the gate's both hidden layers.
    """

    kind: Literal["gated_pixels"] = "gated_pixels"
    dim: int = 128
    frame: int = 65
    white: float = 0.0942
    spread: float = 20.0
    channels: int = 8
    kernel: int = 3
    lattice: int = 5
    hidden: int = 128

    def __post_init__(self) -> None:
        check_kind(self, "gated_pixels")
        _check_lift(self.dim, self.frame, self.spread)
        require(self.white > 0, "model.white", self.white, "a positive number")
        _check_counts(self, "channels", "kernel", "lattice", "hidden")


@dataclass(frozen=True)
class GatedConvNeXtConfig(GatedTraits):
    """Shape of the model whose latents leave the wall out. The defaults give 258,017 parameters.

    Attributes:
        kind: tells it from other models where it is stored.
        channels: C, width of the ConvNeXt blocks.
        blocks: L, ConvNeXt blocks per branch.
        dim: D, size of a latent, and of what is carried of a wall.
        frame: side of the square frames in pixels.
        spread: length of what half a frame is in latents.
        hidden: how many lines the gate goes by, and width of its both hidden layers.
    """

    kind: Literal["gated_convnext"] = "gated_convnext"
    channels: int = 16
    blocks: int = 2
    dim: int = 128
    frame: int = 65
    spread: float = 20.0
    hidden: int = 160

    def __post_init__(self) -> None:
        check_kind(self, "gated_convnext")
        _check_lift(self.dim, self.frame, self.spread)
        _check_counts(self, "channels", "blocks", "hidden")


@dataclass(frozen=True)
class GlimpseConfig(ModelTraits):
    """Shape of the model whose predictor looks at the first frame where the latent says. By default 67,238 parameters.

    Attributes:
        kind: tells it from other models where it is stored.
        channels: C, width of the encoder's ConvNeXt blocks.
        blocks: L, ConvNeXt blocks per branch.
        dim: D, size of a latent.
        hidden: width of the predictor's hidden layers.
        heads: glimpses of a step, each around a place of its own.
        lattice: side of the lattice of points that a glimpse begins as.
        levels: how many images the first frame is looked at in, each blurred twice as wide as the one before.
        white: value of the brightest pixels, which the predictor sees as 1.
        groups: the frame's channels.
        context: the group that is looked at and not encoded; none: all are both looked at and encoded.
        action_size: A, numbers of an action.
    """

    objectives: ClassVar[tuple[str, ...]] = ("dynamics",)
    amps: ClassVar[tuple[Amp, ...]] = ("off",)

    kind: Literal["glimpse"] = "glimpse"
    channels: int = 16
    blocks: int = 2
    dim: int = 32
    hidden: int = 128
    heads: int = 2
    lattice: int = 3
    levels: int = 4
    white: float = 0.0942
    groups: tuple[Group, ...] = TWO_ROOMS
    context: str | None = "wall"
    action_size: int = TWO_ROOMS_ACTION

    def __post_init__(self) -> None:
        check_kind(self, "glimpse")
        _check_counts(self, "channels", "blocks", "dim", "hidden", "heads", "lattice", "levels", "action_size")
        require(self.white > 0, "model.white", self.white, "a positive number")
        names = [group.name for group in self.groups]
        require(len(names) == len(set(names)) > 0, "model.groups", names, "at least one group, each name once")
        known = self.context is None or (self.context in names and len(names) > 1)
        require(known, "model.context", self.context, f"None, or one of several groups: {', '.join(names)}")

    def is_collapsed(self, std: Sequence[float], size: float, rankme: float) -> bool:
        """Whether latents have come close to one point; few dimensions are enough for them."""
        return sum(std) / len(std) < LEAST_SPREAD * size

    def for_data(self, spec: "FrameSpec") -> "GlimpseConfig":
        """The data's groups, action size and white where there are two rooms'; others are taken to be meant.

        What is looked at is then the first group that does not change in a trajectory, or the whole frame.
        """
        found = tuple(Group(group.name, group.channels) for group in spec.groups)
        if self.groups != TWO_ROOMS or found == TWO_ROOMS:
            return self
        still = [group.name for group in spec.groups if group.codec == "static"]
        return replace(
            self,
            groups=found,
            context=still[0] if still and len(found) > 1 else None,
            action_size=spec.action_size if self.action_size == TWO_ROOMS_ACTION else self.action_size,
            white=max(abs(spec.offset), abs(255 * spec.scale + spec.offset)),
        )


@dataclass(frozen=True)
class CustomConfig(ModelTraits):
    """A model that was made in Python and handed to the trainer: its name is known, how to build it is not.

    Attributes:
        kind: tells it from other models where it is stored.
        encoder, predictor: names of the modules' classes, for people.
    """

    # Seen when the first frame is encoded.
    dim: ClassVar[None] = None

    kind: Literal["custom"] = "custom"
    encoder: str = ""
    predictor: str = ""

    def __post_init__(self) -> None:
        check_kind(self, "custom")


ModelConfig = JEPAConfig | GatedConvNeXtConfig | GatedFeaturesConfig | GatedPixelsConfig | GlimpseConfig | CustomConfig


def check_kind(config: object, kind: str, room: str = "model") -> None:
    """Raise InputError unless the configuration's kind is its own."""
    found = getattr(config, "kind", None)
    require(found == kind, f"{room}.kind", found, repr(kind))


def _check_counts(config: object, *names: str) -> None:
    """Raise InputError unless these fields of a model's configuration are at least 1."""
    for name in names:
        count, most = getattr(config, name), MOST_BLOCKS if name == "blocks" else MOST_COUNTED
        require(1 <= count <= most, f"model.{name}", count, "at least 1" if count < 1 else f"at most {most:,}")


def _check_lift(dim: int, frame: int, spread: float) -> None:
    """Raise InputError unless positions in a square frame can be embedded in latents of `dim` numbers."""
    require(2 <= dim <= MOST_COUNTED, "model.dim", dim, f"from 2 to {MOST_COUNTED:,}")
    require(2 <= frame <= MOST_COUNTED, "model.frame", frame, f"from 2 to {MOST_COUNTED:,} pixels")
    require(spread > 0, "model.spread", spread, "a positive number")
