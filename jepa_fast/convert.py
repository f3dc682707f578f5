"""Command: pack episodes in a file, or in .npy files, as shards.

    python -m jepa_fast.convert mine.h5 --frames pixels --actions action --targets agent=proprio --out data/mine \\
        --validation 0.1
    python -m jepa_fast.convert --states states.npy --actions actions.npy --out data/mine/train

Run again after an interruption, it keeps what is finished. Everything is compared: windows with the frames they are of,
files with what was to be written, and what lay there before with the source.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.data.columns import ChannelOrder, Selection
from jepa_fast.data.conversion import convert_columns
from jepa_fast.data.manifest import Encoding, Manifest, check_name
from jepa_fast.data.readers import Reader, open_reader
from jepa_fast.data.readers.arrays import ArrayFiles, ZippedArrays
from jepa_fast.data.sources import SourceGroup
from jepa_fast.errors import InputError
from jepa_fast.platforms import available_cores

# What columns are called where nobody says.
FRAMES = ("pixels", "frames", "states", "observations", "observations/pixels", "observation.image")
ACTIONS = ("action", "actions")


@dataclass(frozen=True)
class ConvertArguments:
    """Pack the episodes of a file, by its columns' names, or of .npy files.

    Attributes:
        source: .h5 or .hdf5 as stable-worldmodel writes it, .npz, a LeRobot or a Minari folder. Without one, --states,
            --actions and --targets are .npy files [N, T, ...].
        out: folder of the split, such as DIR/train; with --validation, of both.
        frames: column of frames [C, H, W], [H, W, C] or [H, W], 1 to 16 channels; float, uint8 or bool. By default
            pixels, frames or the only one that holds images.
        states: frames as a .npy file [N, T, C, H, W] or [N, T, H, W, C].
        actions: column or file of numbers [A], one per frame or one fewer; a last one too many is left out. Integers
            with --action-classes.
        locations: .npy file [N, T, 2], the target called "locations"; the two-room probes need it, training does not.
        targets: what probes may be fitted to, one row per frame, as NAME=COLUMN or NAME=FILE.
        groups: channels that are stored and encoded in one way, side by side, as NAME:CHANNELS; for two rooms
            agent:1 wall:1. By default all are one group, "frames".
        channels: whether channels stand first, [C, H, W], or last; by default found from the shape.
        action_classes: number of classes of integer actions, which become one-hot.
        scale: value of one uint8 step; by default 1/255 for bytes, and for floats the 255th part of their range.
        validation: share of the episodes that becomes OUT/val, beside OUT/train; by default all are one split.
        encoding: the strongest codec: windows, or whole frames with what is static once, or every frame in full.
        workers: processes; by default one for each core.
    """

    out: Path
    source: tyro.conf.Positional[Path | None] = None
    frames: cli.Chosen[str] = None
    states: cli.Chosen[Path] = None
    actions: cli.Chosen[str] = None
    locations: cli.Chosen[Path] = None
    targets: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    channels: cli.Chosen[ChannelOrder] = None
    action_classes: cli.Chosen[int] = None
    scale: cli.Chosen[float] = None
    validation: cli.Chosen[float] = None
    encoding: Encoding = "window"
    workers: cli.Chosen[int] = None


def convert(
    states: Path | None = None,
    actions: str | Path | None = None,
    out: Path | None = None,
    locations: Path | None = None,
    targets: tuple[str, ...] = (),
    groups: tuple[str, ...] = (),
    channels: ChannelOrder | None = None,
    action_classes: int | None = None,
    scale: float | None = None,
    encoding: Encoding = "window",
    workers: int | None = None,
    source: Path | None = None,
    frames: str | None = None,
    validation: float | None = None,
) -> Manifest:
    """Pack the episodes as the split `out`, every value compared; arguments as in `ConvertArguments`.

    Raises:
        InputError: a file is not of the layout, a value is not finite or beyond the scale, or the disk lacks space.
        OSError: a file cannot be read or written.
    """
    require(out is not None, "--out", out, "a folder")
    assert out is not None
    require(workers is None or workers >= 1, "workers", workers, "at least 1")
    require(scale is None or 0 < scale < float("inf"), "--scale", scale, "a positive number")
    require(action_classes is None or action_classes >= 2, "--action-classes", action_classes, "at least 2")
    require(validation is None or 0 < validation < 1, "--validation", validation, "a share between 0 and 1")
    named = [("locations", str(locations))] if locations is not None else []
    for target in targets:
        name, equals, column = target.partition("=")
        require(bool(equals), "--targets", target, "NAME=FILE, or NAME=COLUMN of a source")
        named.append((name, column))
    require(len(dict(named)) == len(named), "--targets", [name for name, _ in named], "names that differ")
    with ExitStack() as stack:
        reader: Reader
        if source is None:
            states = Path(frames) if states is None and frames is not None else states
            expected = "a file or folder of episodes, or frames as a .npy file"
            require(states is not None, "SOURCE, --states", None, expected)
            require(actions is not None, "--actions", None, "a .npy file")
            files = {f"target.{name}": Path(path) for name, path in named}
            reader = ArrayFiles({"states": Path(str(states)), "actions": Path(str(actions))} | files)
            frames, actions, named = "states", "actions", [(name, f"target.{name}") for name, _ in named]
        else:
            for flag, given in (("--states", states), ("--locations", locations)):
                require(given is None, flag, given, f"a column of {source}: --frames or --targets")
            reader = _open(source, out, stack)
            frames, actions = frames or _frames(reader, source), str(actions or _actions(reader, source))
        selection = Selection(frames, actions, tuple(named), parse_groups(groups), channels, action_classes)
        return convert_columns(reader, selection, out, scale, encoding, workers or available_cores(), validation)


def _open(source: Path, out: Path, stack: ExitStack) -> Reader:
    """The reader of a source; what is compressed as a whole lies unpacked beside `out` until the stack is left."""
    reader = open_reader(source)
    if isinstance(reader, ZippedArrays) and reader.is_compressed:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = stack.enter_context(TemporaryDirectory(prefix=f".{out.name}-unpacked-", dir=out.parent))
        return reader.unpacked(Path(folder))
    return reader


def _frames(reader: Reader, source: Path) -> str:
    """The column that is likely to hold the frames."""
    likely = [name for name in FRAMES if name in reader.columns]
    images = [name for name, column in reader.columns.items() if column.dtype == "uint8" and len(column.shape) == 3]
    return (likely or (images if len(images) == 1 else []) or [_choose("--frames", reader, source)])[0]


def _actions(reader: Reader, source: Path) -> str:
    """The column that is likely to hold the actions."""
    return next((name for name in ACTIONS if name in reader.columns), None) or _choose("--actions", reader, source)


def _choose(flag: str, reader: Reader, source: Path) -> str:
    held = ", ".join(f"{name} {column.dtype}{list(column.shape)}" for name, column in reader.columns.items())
    raise InputError(f"{flag}: not given, expected a column of {source}: {held}")


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
    cli.run(main, ConvertArguments, "Pack the episodes of a file, or of .npy files, as shards.")
