"""What the frames of a split look like, and which fields they are stored in."""

from dataclasses import dataclass, replace
from typing import Literal

from jepa_fast.config import InputSpec

Codec = Literal["static", "window", "dense"]
Base = Literal["black", "images", "own"]
# What a stored field has a row for. Where trajectories are of one length, the rows of its frames or of its actions are
# one row of a trajectory.
Unit = Literal["trajectory", "frame", "action", "base"]

# Corners up to here are stored as bytes.
BYTE_CORNERS = 256


@dataclass(frozen=True)
class Field:
    """One stored array: its NumPy type string and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of a frame that lie side by side and are stored, and encoded, in one way.

    Attributes:
        name: a Python identifier, such as "rgb".
        channels: c.
        codec: "static": one image per trajectory; "window": one window per frame over a base; "dense": every frame.
        window: (h, w) of the windows; of a static image, of the window in which it differs from its base; else None.
        base: what windows lie on: "black", bytes of 0; "images", one of the data set's base images; "own", the
            trajectory's own background; None without windows.
    """

    name: str
    channels: int
    codec: Codec
    window: tuple[int, int] | None = None
    base: Base | None = None


@dataclass(frozen=True)
class FrameSpec:
    """What the frames of one split look like: everything a Batch does not carry itself.

    Attributes:
        frames: T, frames per trajectory; of trajectories of different lengths, the longest one's.
        height: H, in pixels.
        width: W, in pixels.
        scale: value of one uint8 step; image = uint8 * scale + offset.
        groups: the channels [C, H, W] of a frame, in order.
        action_size: A.
        targets: name and size of the arrays float32 [N, T, size] that probes may be fitted to.
        offset: value of byte 0.
        shortest: frames of the shortest trajectory where lengths differ: they are stored end to end then.
    """

    frames: int
    height: int
    width: int
    scale: float
    groups: tuple[ChannelGroup, ...]
    action_size: int
    targets: tuple[tuple[str, int], ...] = ()
    offset: float = 0.0
    shortest: int | None = None

    @property
    def channels(self) -> int:
        """C, over all groups."""
        return sum(group.channels for group in self.groups)

    def inputs(self) -> InputSpec:
        """What a model that is trained on such frames is told of them."""
        return InputSpec(self.channels, self.height, self.width, self.action_size, self.scale, self.offset)

    def index(self, name: str) -> int:
        """The number of the group `name`. Raises LookupError where there is none."""
        return {group.name: number for number, group in enumerate(self.groups)}[name]

    def fields(self) -> dict[str, Field]:
        """Every stored field by name.

        A row is a trajectory, except in `<group>.base`: one base image per row. Where trajectories are stored end to
        end, what there is of every frame or action has a row for each of them.
        """
        stored, is_equal = {}, self.shortest is None
        for name, (unit, field) in self._units().items():
            many = {"frame": self.frames, "action": self.frames - 1}.get(unit)
            stored[name] = field if many is None or not is_equal else replace(field, shape=(many, *field.shape))
        return stored

    def unit(self, name: str) -> Unit:
        """What the stored field `name` has a row for."""
        return self._units()[name][0]

    def _units(self) -> dict[str, tuple[Unit, Field]]:
        """Per stored field what there is one of, and the type and shape of that."""
        corner = "|u1" if max(self.height, self.width) <= BYTE_CORNERS else "<i2"
        fields: dict[str, tuple[Unit, Field]] = {}
        for group in self.groups:
            name, image = group.name, (group.channels, self.height, self.width)
            pixels = (group.channels, *group.window) if group.codec == "window" and group.window else image
            each: Unit = "trajectory" if group.codec == "static" else "frame"
            fields[f"{name}.pixels"] = each, Field("|u1", pixels)
            if group.window is not None:
                fields[f"{name}.corner"] = each, Field(corner, (2,))
            if group.base == "images":
                fields[f"{name}.base_index"] = "trajectory", Field("<i4", ())
                fields[f"{name}.base"] = "base", Field("|u1", image)
            if group.base == "own":
                fields[f"{name}.background"] = "trajectory", Field("|u1", image)
        fields["actions"] = "action", Field("<f4", (self.action_size,))
        for name, size in self.targets:
            fields[f"target.{name}"] = "frame", Field("<f4", (size,))
        if self.shortest is not None:
            fields["length"] = "trajectory", Field("<i8", ())
        return fields
