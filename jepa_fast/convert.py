"""Command: pack trajectories in .npy files as shards.

    python -m jepa_fast.convert --states states.npy --actions actions.npy --locations locations.npy --out DIR/train

Run again after an interruption, it keeps what is finished. Afterwards every frame on disk is compared with its source.
"""

from dataclasses import dataclass
from pathlib import Path

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.data.array_files import ArrayFiles, ChannelOrder, convert_files
from jepa_fast.data.encoding import SourceGroup
from jepa_fast.data.manifest import Encoding, Manifest, check_name
from jepa_fast.errors import InputError
from jepa_fast.platforms import available_cores


@dataclass(frozen=True)
class ConvertArguments:
    """Pack states.npy [N, T, C, H, W] or [N, T, H, W, C] and its companions as one split.

    Attributes:
        states: frames of 1 to 16 channels; any float, or uint8.
        actions: float [N, T - 1, A]; of [N, T, A] the last are left out. Integers [N, T - 1] with --action-classes.
        out: folder of the split, such as DIR/train.
        locations: float [N, T, 2], the target called "locations"; the two-room probes need it, training does not.
        targets: further targets for probes, float [N, T, size], as NAME=FILE.
        groups: channels that are stored and encoded in one way, side by side, as NAME:CHANNELS; for two rooms
            agent:1 wall:1. By default all are one group, "frames".
        channels: whether channels stand first, [C, H, W], or last; by default found from the shape.
        action_classes: number of classes of integer actions, which become one-hot.
        scale: value of one uint8 step; by default 1 for uint8 states, and for floats the 255th part of their range.
        encoding: the strongest codec: windows, or whole frames with what is static once, or every frame in full.
        workers: processes; by default one for each core.
    """

    states: Path
    actions: Path
    out: Path
    locations: Path | None = None
    targets: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    channels: ChannelOrder | None = None
    action_classes: int | None = None
    scale: float | None = None
    encoding: Encoding = "window"
    workers: int | None = None


def convert(
    states: Path,
    actions: Path,
    out: Path,
    locations: Path | None = None,
    targets: tuple[str, ...] = (),
    groups: tuple[str, ...] = (),
    channels: ChannelOrder | None = None,
    action_classes: int | None = None,
    scale: float | None = None,
    encoding: Encoding = "window",
    workers: int | None = None,
) -> Manifest:
    """Pack the files as the split `out`, and compare it with them; arguments as in `ConvertArguments`.

    Raises:
        InputError: a file is not of the layout, a value is not finite or beyond the scale, or the disk lacks space.
        OSError: a file cannot be read or written.
    """
    require(workers is None or workers >= 1, "workers", workers, "at least 1")
    require(scale is None or 0 < scale < float("inf"), "--scale", scale, "a positive number")
    require(action_classes is None or action_classes >= 2, "--action-classes", action_classes, "at least 2")
    named = [("locations", locations)] if locations is not None else []
    for target in targets:
        name, equals, path = target.partition("=")
        require(bool(equals), "--targets", target, "NAME=FILE")
        named.append((name, Path(path)))
    require(len(dict(named)) == len(named), "--targets", [name for name, _ in named], "names that differ")
    files = ArrayFiles(states, actions, tuple(named), parse_groups(groups), channels, action_classes)
    return convert_files(files, out, scale, encoding, workers or available_cores())


def parse_groups(words: tuple[str, ...]) -> tuple[SourceGroup, ...]:
    """Groups of channels from NAME:CHANNELS each.

    Raises:
        InputError: a word is not of that form, or two have one name.
    """
    groups = []
    for word in words:
        name, _, channels = word.partition(":")
        if not channels.isdecimal() or int(channels) < 1:
            raise InputError(f"--groups: got {word!r}, expected NAME:CHANNELS, such as rgb:3")
        groups.append(SourceGroup(check_name(name, "--groups"), int(channels)))
    names = [group.name for group in groups]
    require(len(set(names)) == len(names), "--groups", names, "names that differ")
    return tuple(groups)


def main(arguments: ConvertArguments) -> None:
    """Run the command."""
    convert(**vars(arguments))


if __name__ == "__main__":
    cli.run(main, ConvertArguments, "Pack trajectories in .npy files as shards.")
