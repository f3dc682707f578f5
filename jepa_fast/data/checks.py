"""The files of a split against its manifest: presence, size, header, hashes, and values that are out of range."""

import hashlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.manifest import Field, FileRecord, Manifest, Shard
from jepa_fast.errors import InputError
from jepa_fast.platforms import open_file_limits, raise_open_file_limit

# What a process may have open besides the shards: libraries, logs, sockets of a distributed run.
OTHER_FILES = 64


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
                row, step = _place(folder, shard, field, bad[0])
                raise InputError(
                    f"{path}: trajectory {shard.first + row}, step {step}: found {values[tuple(bad[0, :-1])].tolist()},"
                    " expected finite numbers"
                )


def _place(folder: Path, shard: Shard, field: str, place: NDArray[np.int64]) -> tuple[int, int]:
    """Trajectory and step of a number in a shard's actions or targets."""
    if "length" not in shard.files:
        return int(place[0]), int(place[1])
    lengths = np.load(folder / shard.files["length"].name, allow_pickle=False) - (field == "actions")
    row = int(np.searchsorted(np.cumsum(lengths), place[0], side="right"))
    return row, int(place[0] - lengths[:row].sum())


def allow_open_files(needed: int) -> None:
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


def map_file(folder: Path, file: FileRecord, field: Field) -> NDArray[Any]:
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


def as_field(array: NDArray[Any], field: Field) -> NDArray[Any]:
    """The array in the shape and type of its field: version 1 stored no channel axis, and corners always as bytes."""
    return array.reshape(len(array), *field.shape).astype(field.dtype, copy=False)


def check_corners(folder: Path, manifest: Manifest, arrays: dict[str, tuple[NDArray[Any], ...]]) -> None:
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


def read_lengths(folder: Path, manifest: Manifest, arrays: tuple[NDArray[np.int64], ...]) -> NDArray[np.int64]:
    """Frames of each trajectory, int64 [N], once they are those of the manifest and of the files."""
    spec = manifest.spec
    for shard, lengths in zip(manifest.shards, arrays, strict=True):
        total, expected = int(lengths.sum()), shard.files["actions"].rows + shard.rows
        if lengths.min() < (spec.shortest or 2) or lengths.max() > spec.frames or total != expected:
            raise InputError(
                f"{folder / shard.files['length'].name}: found {total} frames in trajectories of {lengths.min()} to "
                f"{lengths.max()}, expected {expected} in {spec.shortest} to {spec.frames}"
            )
    return np.concatenate(arrays)
