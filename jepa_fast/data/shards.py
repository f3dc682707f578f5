"""Reading splits: every file checked against the manifest, memory-mapped, and gathered row by row.

A split is a folder such as DIR/train or DIR/probe_normal/val: a manifest and shards of plain .npy files. NumPy only.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.manifest import MANIFEST_NAME, Field, FileRecord, FrameSpec, Manifest, Shard
from jepa_fast.errors import InputError
from jepa_fast.platforms import open_file_limits, raise_open_file_limit
from jepa_fast.progress import Progress

__all__ = ["FrameSpec", "Manifest", "Split", "open_split"]

# What a process may have open besides the shards: libraries, logs, sockets of a distributed run.
OTHER_FILES = 64


class Piece(NamedTuple):
    """Rows of one shard, and where in a batch they go."""

    shard: int
    target: slice
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """An opened split: N trajectories in memory-mapped shards.

    Attributes:
        folder: where it lies.
        manifest: what it is.
        fingerprint: sha256 of the manifest, which holds the sha256 of every file.
        starts: int64 [S + 1], first trajectory of each shard, then N.
        arrays: per field one array for each shard, bases apart; `base_index` counts in `bases`, not in shards' bases.
        bases: per group of channels the distinct base images of all shards, uint8 [G, c, H, W], or None without any.
    """

    folder: Path
    manifest: Manifest
    fingerprint: str
    starts: NDArray[np.int64]
    arrays: dict[str, tuple[NDArray[Any], ...]]
    bases: tuple[NDArray[np.uint8] | None, ...]

    @property
    def spec(self) -> FrameSpec:
        """Geometry, scale and windows of the frames."""
        return self.manifest.spec

    @property
    def count(self) -> int:
        """N, the number of trajectories."""
        return self.manifest.trajectories

    def require_indices(self, indices: NDArray[np.int64]) -> None:
        """Raise IndexError unless `indices` ascend within [0, N)."""
        if indices.size and (indices[0] < 0 or indices[-1] >= self.count or np.any(indices[1:] < indices[:-1])):
            raise IndexError(f"indices: expected ascending values in [0, {self.count})")

    def pieces(self, indices: NDArray[np.int64]) -> list[Piece]:
        """Where the trajectories `indices` (ascending, each in [0, N)) lie, shard by shard.

        Raises:
            IndexError: indices out of range or not ascending.
        """
        self.require_indices(indices)
        cuts = np.searchsorted(indices, self.starts).tolist()
        return [
            Piece(shard, slice(low, high), indices[low:high] - self.starts[shard])
            for shard, (low, high) in enumerate(pairwise(cuts))
            if low < high
        ]

    def copy(self, field: str, pieces: list[Piece], out: NDArray[Any]) -> None:
        """Copy the rows of a field that `pieces` names into `out`, whose shape and dtype are right."""
        arrays = self.arrays[field]
        for shard, target, rows in pieces:
            # "clip" copies straight into `out`, where "raise" would buffer; the rows are known to be valid.
            arrays[shard].take(rows, axis=0, out=out[target], mode="clip")

    def take(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy rows `indices` of a field (ascending, each in [0, N)) into `out` [len(indices), *row shape].

        Raises:
            IndexError: indices out of range or not ascending.
            ValueError: `out` has another shape or dtype.
        """
        stored = self.manifest.spec.fields()[field]
        pieces = self.pieces(indices)
        if out.shape != (len(indices), *stored.shape) or out.dtype != np.dtype(stored.dtype):
            raise ValueError(
                f"out: found {out.dtype} {out.shape}, expected {np.dtype(stored.dtype)} {(len(indices), *stored.shape)}"
            )
        self.copy(field, pieces, out)

    def targets(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The target `name` float32 [len(indices), T, size], for indices in any order.

        Raises:
            InputError: the split was packed without it.
        """
        field = f"target.{name}"
        if field not in self.arrays:
            held = ", ".join(known for known, _ in self.spec.targets) or "none"
            raise InputError(f"{self.folder}: holds no {name}, which probing needs (targets: {held})")
        order = np.argsort(indices, kind="stable")
        ascending = np.empty((len(indices), *self.arrays[field][0].shape[1:]), np.float32)
        self.take(field, indices[order], ascending)
        values = np.empty_like(ascending)
        values[order] = ascending
        return values


def open_split(folder: Path, verify: bool = False) -> Split:
    """Open the split in `folder`, every file checked: presence, size, dtype, shape, order; `verify` also hashes all.

    Raises:
        InputError: one line naming the file, what was found and what was expected.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: not found; the split is missing, or its packing did not finish") from None
    manifest = Manifest.parse(text, path)
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.trajectories or manifest.shards[0].first != 0:
        raise InputError(f"{path}: shards: found {rows} rows, expected {manifest.trajectories} from trajectory 0 on")
    fields = manifest.spec.fields()
    _allow_open_files(len(manifest.shards) * len(fields))
    arrays = {
        name: tuple(
            _as_field(_map_file(folder, shard.files[name], manifest.stored_field(name)), field)
            for shard in manifest.shards
        )
        for name, field in fields.items()
    }
    if verify:
        with Progress(f"hashing {folder}", rows, "trajectories") as progress:
            for shard in manifest.shards:
                verify_shard(folder, shard)
                progress.update(shard.rows)
    _check_corners(folder, manifest, arrays)
    bases = []
    for group in manifest.spec.groups:
        merged = None
        if group.base == "images":
            merged, arrays[f"{group.name}.base_index"] = _merge_bases(folder, manifest, arrays, group.name)
            del arrays[f"{group.name}.base"]
        bases.append(merged)
    starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)], dtype=np.int64)
    return Split(folder, manifest, hashlib.sha256(text).hexdigest(), starts, arrays, tuple(bases))


def training_split(folder: Path) -> Path:
    """The split that is trained on in a folder of splits, called train; a folder that is itself a split is that one."""
    return folder if (folder / MANIFEST_NAME).is_file() else folder / "train"


def verify_shard(folder: Path, shard: Shard) -> None:
    """Hash every file of a shard and look for values that are not finite.

    Raises:
        InputError: a hash differs, or an action or target is NaN or infinite.
    """
    for field, file in shard.files.items():
        path = folder / file.name
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file.sha256:
            raise InputError(f"{path}: found sha256 {digest}, expected {file.sha256} (the file was changed)")
        if field == "actions" or field.startswith("target."):
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                row, step = bad[0, 0], bad[0, 1]
                found = values[row, step].tolist()
                raise InputError(
                    f"{path}: trajectory {shard.first + row}, step {step}: found {found}, expected finite numbers"
                )


def _allow_open_files(needed: int) -> None:
    """Raise the soft limit on open files where it is below `needed` mapped files (each mapping keeps one open)."""
    soft, hard = open_file_limits()
    wanted = needed + OTHER_FILES
    if soft >= wanted:
        return
    if hard < wanted:
        raise InputError(
            f"open files: {needed} shard files need a limit of {wanted}, found a hard limit of {hard}; "
            "raise it (ulimit -Hn) or pack fewer, larger shards"
        )
    raise_open_file_limit(wanted)


def _map_file(folder: Path, file: FileRecord, field: Field) -> NDArray[Any]:
    """The array in a .npy file, mapped read-only, if its header and size are exactly as recorded."""
    path = folder / file.name
    dtype, shape = np.dtype(field.dtype), (file.rows, *field.shape)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: not found, expected a file of {file.bytes} bytes") from None
    if size != file.bytes:
        what = "truncated" if size < file.bytes else "trailing bytes"
        raise InputError(f"{path}: found {size} bytes, expected {file.bytes} ({what})")
    found_shape, fortran, found_dtype, offset = _read_header(path)
    for what, found, expected in (
        ("dtype", found_dtype, dtype),
        ("shape", found_shape, shape),
        ("order", "Fortran" if fortran else "C", "C"),
        ("size", size, offset + dtype.itemsize * int(np.prod(shape))),
    ):
        if found != expected:
            raise InputError(f"{path}: {what}: found {found}, expected {expected}")
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)


def _read_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, dtype and data offset of a .npy file."""
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                raise InputError(f"{path}: found .npy version {version}, expected (1, 0)")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        except InputError:
            raise
        except (ValueError, SyntaxError, TokenError) as error:
            raise InputError(f"{path}: found no .npy header ({error}), expected one") from None
        return shape, fortran, dtype, stream.tell()


def _as_field(array: NDArray[Any], field: Field) -> NDArray[Any]:
    """The array in the shape and type of its field: version 1 stored no channel axis, and corners always as bytes."""
    return array.reshape(len(array), *field.shape).astype(field.dtype, copy=False)


def _check_corners(folder: Path, manifest: Manifest, arrays: dict[str, tuple[NDArray[Any], ...]]) -> None:
    """Refuse windows that reach outside the image: pasting them would write into other pixels."""
    spec = manifest.spec
    for group in spec.groups:
        if group.window is None:
            continue
        field = f"{group.name}.corner"
        most = np.array([spec.height - group.window[0], spec.width - group.window[1]])
        for shard, array in zip(manifest.shards, arrays[field], strict=True):
            corners = array.reshape(-1, 2)
            for found in (corners.max(axis=0), corners.min(axis=0)):
                if np.any(found > most) or np.any(found < 0):
                    raise InputError(
                        f"{folder / shard.files[field].name}: found a corner at {found.tolist()}, "
                        f"expected at most {most.tolist()}"
                    )


def _merge_bases(
    folder: Path, manifest: Manifest, arrays: dict[str, tuple[NDArray[Any], ...]], group: str
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.int32], ...]]:
    """Distinct base images of a group in all shards [G, c, H, W], and per shard which of them each trajectory has."""
    positions: dict[bytes, int] = {}
    images: list[NDArray[np.uint8]] = []
    merged_indices = []
    field = f"{group}.base_index"
    for shard, bases, index in zip(manifest.shards, arrays[f"{group}.base"], arrays[field], strict=True):
        if index.min() < 0 or index.max() >= len(bases):
            raise InputError(
                f"{folder / shard.files[field].name}: found base images {index.min()} to {index.max()}, "
                f"expected 0 to {len(bases) - 1}"
            )
        merged = np.empty(len(bases), np.int32)
        for local, base in enumerate(bases):
            key = base.tobytes()
            if key not in positions:
                positions[key] = len(images)
                images.append(base)
            merged[local] = positions[key]
        merged_indices.append(merged[index])
    return np.stack(images), tuple(merged_indices)
