"""The manifest of a split: what its shards hold, as frozen dataclasses and as JSON (schema version 1).

`manifest.json` is the only entry point of a split and is written last, so a folder without one holds nothing to read.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from jepa_fast.errors import InputError

SCHEMA = "jepa_fast.trajectories"
VERSION = 1
MANIFEST_NAME = "manifest.json"

Encoding = Literal["window", "wall_once", "full"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class FrameSpec:
    """What the frames of one split look like: everything a Batch does not carry itself.

    Attributes:
        frames: T, frames per trajectory.
        height: H, in pixels.
        width: W, in pixels.
        scale: value of one uint8 step; image = uint8 * scale.
        window: side k of the square dot window in pixels, or None where dots are stored as full frames.
        wall_window: side of the square window in which a wall may differ from its base image, or None without groups.
    """

    frames: int
    height: int
    width: int
    scale: float
    window: int | None
    wall_window: int | None


@dataclass(frozen=True)
class Field:
    """One stored array: its NumPy type string and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Which fields the shards of a split hold.

    Attributes:
        spec: geometry and windows.
        wall_per_frame: walls are stored for every frame instead of once per trajectory.
        locations: the true locations are stored.
    """

    spec: FrameSpec
    wall_per_frame: bool
    locations: bool

    def fields(self) -> dict[str, Field]:
        """Every field by name. One row is one trajectory, except in `base`: one wall base image per row."""
        spec = self.spec
        image = (spec.height, spec.width)
        fields = {}
        if spec.window is None:
            fields["dot"] = Field("|u1", (spec.frames, *image))
        else:
            fields["window"] = Field("|u1", (spec.frames, spec.window, spec.window))
            fields["corner"] = Field("|u1", (spec.frames, 2))
        fields["wall"] = Field("|u1", (spec.frames, *image) if self.wall_per_frame else image)
        fields["actions"] = Field("<f4", (spec.frames - 1, 2))
        if self.locations:
            fields["locations"] = Field("<f4", (spec.frames, 2))
        if spec.wall_window is not None:
            fields["group"] = Field("<i4", ())
            fields["group_corner"] = Field("|u1", (2,))
            fields["base"] = Field("|u1", image)
        return fields


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
        encoding: what the packer was asked for; `layout` says what the data allowed.
        trajectories: N.
        layout: the stored fields.
        shards: in order of trajectories.
    """

    source: dict[str, Any]
    encoding: str
    trajectories: int
    layout: Layout
    shards: tuple[Shard, ...]

    def header(self) -> "Manifest":
        """The same without shards: equal headers mean interchangeable shards."""
        return replace(self, shards=())

    def to_json(self) -> str:
        """The manifest as JSON text; the same manifest always gives the same bytes."""
        spec = self.layout.spec
        record = {
            "schema": SCHEMA,
            "version": VERSION,
            "source": self.source,
            "encoding": self.encoding,
            "trajectories": self.trajectories,
            "frames": spec.frames,
            "height": spec.height,
            "width": spec.width,
            "scale": spec.scale,
            "window": spec.window,
            "wall_window": spec.wall_window,
            "fields": {
                name: {"dtype": field.dtype, "shape": list(field.shape)} for name, field in self.layout.fields().items()
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
        return json.dumps(record, indent=1) + "\n"

    def difference(self, expected: "Manifest") -> str | None:
        """The first key in which the JSON of two manifests differs, with both values; None where they are equal."""
        return _difference(json.loads(self.to_json()), json.loads(expected.to_json()))

    @staticmethod
    def parse(text: bytes, path: Path) -> "Manifest":
        """The manifest in `text`, which was read from `path`.

        Raises:
            InputError: not JSON, another schema or version, a missing or mistyped key, or parts that disagree.
        """
        try:
            record = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}), expected a {SCHEMA} manifest") from None
        return _Parser(path).manifest(record)


def _difference(found: dict[str, Any], expected: dict[str, Any], at: str = "") -> str | None:
    """The first key in which two nested dictionaries differ, with both values."""
    for key in [*expected, *(key for key in found if key not in expected)]:
        there, wanted = found.get(key), expected.get(key)
        if isinstance(there, dict) and isinstance(wanted, dict):
            inside = _difference(there, wanted, f"{at}{key}.")
            if inside is not None:
                return inside
        elif there != wanted:
            return f"{at}{key}: found {there!r}, expected {wanted!r}"
    return None


class _Parser:
    """Typed reading of a decoded manifest; every error starts with the manifest's path."""

    def __init__(self, path: Path):
        self.path = path

    def require(self, condition: bool, what: str, found: object, expected: str) -> None:
        if not condition:
            raise InputError(f"{self.path}: {what}: found {found!r}, expected {expected}")

    def get(self, record: object, key: str, kind: type[Value], at: str = "") -> Value:
        self.require(isinstance(record, dict), at.rstrip(".") or "content", record, "a JSON object")
        value = record.get(key) if isinstance(record, dict) else None
        right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        self.require(right, at + key, value, f"a value of type {kind.__name__}")
        return value  # type: ignore[return-value]

    def count(self, record: object, key: str, least: int, at: str = "") -> int:
        value = self.get(record, key, int, at)
        self.require(value >= least, at + key, value, f"at least {least}")
        return value

    def manifest(self, record: object) -> Manifest:
        self.require(self.get(record, "schema", str) == SCHEMA, "schema", self.get(record, "schema", str), SCHEMA)
        version = self.get(record, "version", int)
        self.require(version == VERSION, "version", version, f"{VERSION} (written by another release?)")
        count = self.count(record, "trajectories", 1)
        layout = self.layout(record)
        shards = []
        for index, entry in enumerate(self.get(record, "shards", list)):
            shards.append(self.shard(entry, f"shards[{index}].", layout))
            reached = sum(shard.rows for shard in shards[:-1])
            self.require(
                shards[-1].first == reached or len(shards) == 1,
                f"shards[{index}].first",
                shards[-1].first,
                str(reached),
            )
        return Manifest(
            self.get(record, "source", dict), self.get(record, "encoding", str), count, layout, tuple(shards)
        )

    def layout(self, record: object) -> Layout:
        height, width = self.count(record, "height", 1), self.count(record, "width", 1)
        spec = FrameSpec(
            frames=self.count(record, "frames", 2),
            height=height,
            width=width,
            scale=self.get(record, "scale", float),
            window=self.side(record, "window", min(height, width)),
            wall_window=self.side(record, "wall_window", min(height, width)),
        )
        fields = self.get(record, "fields", dict)
        wall_shape = self.get(self.get(fields, "wall", dict, "fields."), "shape", list, "fields.wall.")
        layout = Layout(spec, wall_per_frame=len(wall_shape) == 3, locations="locations" in fields)
        expected = layout.fields()
        self.require(sorted(fields) == sorted(expected), "fields", sorted(fields), str(sorted(expected)))
        for name, field in expected.items():
            wanted = {"dtype": field.dtype, "shape": list(field.shape)}
            self.require(fields[name] == wanted, f"fields.{name}", fields[name], str(wanted))
        return layout

    def side(self, record: object, key: str, most: int) -> int | None:
        if isinstance(record, dict) and key in record and record[key] is None:
            return None
        side = self.count(record, key, 1)
        self.require(side <= most, key, side, f"at most {most}")
        return side

    def shard(self, record: object, at: str, layout: Layout) -> Shard:
        first, rows = self.count(record, "first", 0, at), self.count(record, "rows", 1, at)
        entries = self.get(record, "files", dict, at)
        wanted = sorted(layout.fields())
        self.require(sorted(entries) == wanted, at + "files", sorted(entries), str(wanted))
        files = {}
        for field, entry in entries.items():
            inside = f"{at}files.{field}."
            name = self.get(entry, "name", str, inside)
            self.require(Path(name).name == name, inside + "name", name, "a file name without folders")
            file_rows = self.count(entry, "rows", 1, inside)
            self.require(field == "base" or file_rows == rows, inside + "rows", file_rows, str(rows))
            size, digest = self.count(entry, "bytes", 1, inside), self.get(entry, "sha256", str, inside)
            files[field] = FileRecord(name, file_rows, size, digest)
        return Shard(first, rows, files)
