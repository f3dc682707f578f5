"""The manifest of a split: what its shards hold, as frozen dataclasses and as JSON (schema versions 2 and 3).

`manifest.json` is the only entry point of a split and is written last, so a folder without one holds nothing to read.
Version 3 is what trajectories of different lengths are written in, end to end; all others are written in version 2.
Splits of version 1 are read as well (`jepa_fast.data.two_rooms.version1`).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from jepa_fast.data.frame_spec import Base as Base
from jepa_fast.data.frame_spec import ChannelGroup as ChannelGroup
from jepa_fast.data.frame_spec import Codec as Codec
from jepa_fast.data.frame_spec import Field as Field
from jepa_fast.data.frame_spec import FrameSpec as FrameSpec
from jepa_fast.data.frame_spec import Unit as Unit
from jepa_fast.data.two_rooms import version1
from jepa_fast.errors import InputError, shown
from jepa_fast.reading import parse_json

SCHEMA = "jepa_fast.trajectories"
EQUAL_LENGTHS, END_TO_END = 2, 3  # versions
MANIFEST_NAME = "manifest.json"

# The strongest codec that a packer may use.
Encoding = Literal["window", "static", "dense"]
Value = TypeVar("Value")

MOST_CHANNELS = 16
# More trajectories, pixels or bytes than any file system holds.
MOST_COUNTED = 2**53
# Names that would make fields of a group look like others.
RESERVED = ("actions", "target", "length")


@dataclass(frozen=True)
class FileRecord:
    """One .npy file: plain name inside the split's folder, rows, size in bytes and sha256 of the whole file."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """Trajectories `first` to `first + rows - 1` of the split: one file per field."""

    first: int
    rows: int
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Manifest:
    """Everything known about one split.

    Attributes:
        source: where the trajectories come from (generator, seed and split, or the converted files); any JSON object.
        encoding: what the packer was asked for; `spec` says what the data allowed.
        trajectories: N.
        spec: geometry and stored fields.
        shards: in order of trajectories.
        version: 1 where that is what it was read in; by default that of what it holds.
    """

    source: dict[str, Any]
    encoding: Encoding
    trajectories: int
    spec: FrameSpec
    shards: tuple[Shard, ...]
    version: int = 0

    def __post_init__(self) -> None:
        if self.version != 1:
            object.__setattr__(self, "version", EQUAL_LENGTHS if self.spec.shortest is None else END_TO_END)

    def header(self) -> "Manifest":
        """The same without shards: equal headers mean interchangeable shards."""
        return replace(self, shards=())

    def description(self) -> dict[str, Any]:
        """What does not depend on how groups are stored, as JSON: whether a split holds what a source gives."""
        record = self._record()
        record["groups"] = {group.name: group.channels for group in self.spec.groups}
        return {name: value for name, value in record.items() if name not in ("version", "fields", "shards")}

    def to_json(self) -> str:
        """The manifest as JSON text of version 2 or 3; the same manifest always gives the same bytes."""
        return json.dumps(self._record(), indent=1) + "\n"

    def _record(self) -> dict[str, Any]:
        spec = self.spec
        record = {
            "schema": SCHEMA,
            "version": EQUAL_LENGTHS if spec.shortest is None else END_TO_END,
            "source": self.source,
            "encoding": self.encoding,
            "trajectories": self.trajectories,
            "frames": spec.frames,
            **({} if spec.shortest is None else {"shortest": spec.shortest}),
            "height": spec.height,
            "width": spec.width,
            "scale": spec.scale,
            "offset": spec.offset,
            "groups": [vars(group) for group in spec.groups],
            "action_size": spec.action_size,
            "targets": [{"name": name, "size": size} for name, size in spec.targets],
            "fields": {
                name: {"dtype": field.dtype, "shape": list(field.shape)} for name, field in spec.fields().items()
            },
            "shards": [
                {
                    "first": shard.first,
                    "rows": shard.rows,
                    "files": {name: vars(file) for name, file in shard.files.items()},
                }
                for shard in self.shards
            ],
        }
        # As it reads back: tuples are lists.
        decoded: dict[str, Any] = json.loads(json.dumps(record))
        return decoded

    def stored_field(self, name: str) -> Field:
        """How the files of this split hold the field `name`."""
        field = self.spec.fields()[name]
        return version1.stored_field(name, field) if self.version == 1 else field

    @staticmethod
    def parse(text: bytes, path: Path) -> "Manifest":
        """The manifest in `text`, which was read from `path`.

        Raises:
            InputError: not JSON, another schema or version, a missing or mistyped key, or parts that disagree.
        """
        try:
            record = parse_json(text)
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}), expected a {SCHEMA} manifest") from None
        return _Parser(path).manifest(record)


def first_difference(found: dict[str, Any], expected: dict[str, Any], at: str = "") -> str | None:
    """The first key in which two nested dictionaries differ, with both values; None where they are equal."""
    for key in [*expected, *(key for key in found if key not in expected)]:
        there, wanted = found.get(key), expected.get(key)
        if isinstance(there, dict) and isinstance(wanted, dict):
            inside = first_difference(there, wanted, f"{at}{key}.")
            if inside is not None:
                return inside
        elif there != wanted:
            return f"{at}{key}: found {there!r}, expected {wanted!r}"
    return None


def check_name(name: str, what: str) -> str:
    """`name` of a group of channels or a target, if it can be one.

    Raises:
        InputError: it is no identifier, or taken.
    """
    if not name.isidentifier() or name in RESERVED:
        expected = f"a Python identifier other than {' and '.join(RESERVED)}"
        raise InputError(f"{what}: got the name {name!r}, expected {expected}")
    return name


class _Parser:
    """Typed reading of a decoded manifest; every error starts with the manifest's path."""

    def __init__(self, path: Path):
        self.path = path

    def require(self, condition: bool, what: str, found: object, expected: str) -> None:
        if not condition:
            raise InputError(f"{self.path}: {what}: found {shown(found)}, expected {expected}")

    def get(self, record: object, key: str, kind: type[Value], at: str = "") -> Value:
        self.require(isinstance(record, dict), at.rstrip(".") or "content", record, "a JSON object")
        value = record.get(key) if isinstance(record, dict) else None
        right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        self.require(right, at + key, value, f"a value of type {kind.__name__}")
        return value  # type: ignore[return-value]

    def count(self, record: object, key: str, least: int, at: str = "") -> int:
        value = self.get(record, key, int, at)
        expected = f"at least {least}" if value < least else f"at most {MOST_COUNTED}"
        self.require(least <= value <= MOST_COUNTED, at + key, value, expected)
        return value

    def choice(self, record: object, key: str, choices: tuple[Any, ...], at: str = "") -> Any:
        value = record.get(key) if isinstance(record, dict) else None
        self.require(value in choices, at + key, value, f"one of {', '.join(map(repr, choices))}")
        return value

    def manifest(self, record: Any) -> Manifest:
        self.require(self.get(record, "schema", str) == SCHEMA, "schema", self.get(record, "schema", str), SCHEMA)
        version = self.get(record, "version", int)
        self.require(version in (1, 2, 3), "version", version, "1, 2 or 3 (written by another release?)")
        if version == 1:
            try:
                record = version1.upgraded(record)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise InputError(f"{self.path}: not a whole manifest of version 1 ({error!r})") from None
        count = self.count(record, "trajectories", 1)
        encoding: Encoding = self.choice(record, "encoding", get_args(Encoding))
        spec = self.spec(record, ragged=version == END_TO_END)
        manifest = Manifest(self.get(record, "source", dict), encoding, count, spec, (), version)
        self.fields(record, manifest)
        shards: list[Shard] = []
        for index, entry in enumerate(self.get(record, "shards", list)):
            reached = sum(shard.rows for shard in shards)
            shards.append(self.shard(entry, f"shards[{index}].", manifest))
            self.require(
                shards[-1].first == reached or index == 0, f"shards[{index}].first", shards[-1].first, str(reached)
            )
        return replace(manifest, shards=tuple(shards))

    def spec(self, record: object, ragged: bool) -> FrameSpec:
        height, width = self.count(record, "height", 1), self.count(record, "width", 1)
        groups = [
            self.group(entry, f"groups[{index}].", (height, width))
            for index, entry in enumerate(self.get(record, "groups", list))
        ]
        names = [group.name for group in groups]
        self.require(
            len(groups) > 0 and len(set(names)) == len(names), "groups", names, "names that differ, at least one"
        )
        targets = []
        for index, entry in enumerate(self.get(record, "targets", list)):
            at = f"targets[{index}]."
            targets.append((self.name(entry, at), self.count(entry, "size", 1, at)))
        self.require(len(dict(targets)) == len(targets), "targets", targets, "names that differ")
        scale = self.get(record, "scale", float)
        self.require(scale > 0, "scale", scale, "a positive number")
        frames, shortest = self.count(record, "frames", 2), None
        if ragged:
            shortest = self.count(record, "shortest", 2)
            self.require(shortest < frames, "shortest", shortest, f"less than {frames}, the longest")
        return FrameSpec(
            frames=frames,
            shortest=shortest,
            height=height,
            width=width,
            scale=scale,
            groups=tuple(groups),
            action_size=self.count(record, "action_size", 1),
            targets=tuple(targets),
            offset=self.get(record, "offset", float),
        )

    def name(self, record: object, at: str) -> str:
        name = self.get(record, "name", str, at)
        self.require(name.isidentifier() and name not in RESERVED, at + "name", name, "an identifier that is not taken")
        return name

    def group(self, record: object, at: str, image: tuple[int, int]) -> ChannelGroup:
        codec: Codec = self.choice(record, "codec", get_args(Codec), at)
        base: Base | None = self.choice(record, "base", (None, *get_args(Base)), at)
        group = ChannelGroup(
            self.name(record, at), self.count(record, "channels", 1, at), codec, self.window(record, image, at), base
        )
        allowed: dict[Codec, tuple[Base | None, ...]]
        allowed = {"dense": (None,), "static": (None, "images"), "window": get_args(Base)}
        self.require(base in allowed[codec], at + "base", base, f"one of {allowed[codec]} with codec {codec!r}")
        self.require((base is None) == (group.window is None), at + "window", group.window, "one with a base alone")
        return group

    def window(self, record: object, image: tuple[int, int], at: str) -> tuple[int, int] | None:
        if isinstance(record, dict) and "window" in record and record["window"] is None:
            return None
        window = self.get(record, "window", list, at)
        right = len(window) == 2 and all(type(side) is int and side >= 1 for side in window)
        right = right and window[0] <= image[0] and window[1] <= image[1]
        self.require(right, at + "window", window, f"[h, w] of at most {list(image)}")
        return window[0], window[1]

    def fields(self, record: object, manifest: Manifest) -> None:
        fields, expected = self.get(record, "fields", dict), manifest.spec.fields()
        self.require(sorted(fields) == sorted(expected), "fields", sorted(fields), str(sorted(expected)))
        for name in expected:
            field = manifest.stored_field(name)
            wanted = {"dtype": field.dtype, "shape": list(field.shape)}
            self.require(fields[name] == wanted, f"fields.{name}", fields[name], str(wanted))

    def shard(self, record: object, at: str, manifest: Manifest) -> Shard:
        first, rows = self.count(record, "first", 0, at), self.count(record, "rows", 1, at)
        entries = self.get(record, "files", dict, at)
        wanted = sorted(manifest.spec.fields())
        self.require(sorted(entries) == wanted, at + "files", sorted(entries), str(wanted))
        files = {}
        for field, entry in entries.items():
            inside = f"{at}files.{field}."
            name = self.get(entry, "name", str, inside)
            self.require(Path(name).name == name, inside + "name", name, "a file name without folders")
            file_rows = self.count(entry, "rows", 1, inside)
            size, digest = self.count(entry, "bytes", 1, inside), self.get(entry, "sha256", str, inside)
            files[field] = FileRecord(name, file_rows, size, digest)
        rows_of: dict[Unit, int] = {"trajectory": rows, "frame": rows, "action": rows}
        if manifest.spec.shortest is not None:
            rows_of |= {"action": files["actions"].rows, "frame": files["actions"].rows + rows}
        for field, file in files.items():
            expected = rows_of.get(manifest.spec.unit(field), file.rows)
            self.require(file.rows == expected, f"{at}files.{field}.rows", file.rows, str(expected))
        return Shard(first, rows, files)
