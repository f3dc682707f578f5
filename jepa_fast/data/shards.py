"""Reading splits: every file checked against the manifest, memory-mapped, and gathered row by row.

A split is a folder such as DIR/train or DIR/probe_normal/val: a manifest and shards of plain .npy files. NumPy only.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.checks import allow_open_files, as_field, check_corners, map_file, read_lengths, verify_shard
from jepa_fast.data.clips import Clips, Rows, cut, explain
from jepa_fast.data.manifest import MANIFEST_NAME, FrameSpec, Manifest, Unit
from jepa_fast.errors import InputError
from jepa_fast.progress import Progress

__all__ = ["FrameSpec", "Manifest", "Split", "open_split"]


class Piece(NamedTuple):
    """Rows of one shard, and where in a batch they go."""

    shard: int
    target: slice
    rows: dict[Unit, NDArray[np.int64]]  # by what a field has a row for


@dataclass(frozen=True, eq=False)
class Split:
    """An opened split: N trajectories in memory-mapped shards, or the clips of them (`clips`).

    Attributes:
        folder: where it lies.
        manifest: what it is.
        fingerprint: sha256 of the manifest, which holds the sha256 of every file.
        starts: int64 [S + 1], first trajectory of each shard, then N.
        arrays: per field one array for each shard, bases apart; `base_index` counts in `bases`, not in shards' bases.
        bases: per group of channels the distinct base images of all shards, uint8 [G, c, H, W], or None without any.
        spec: geometry, scale and windows of the frames, with the lengths that batches have.
        lengths: int64 [N], frames of each trajectory, where they differ.
        drawn: the clips that an index stands for; without any, it stands for a whole trajectory.
    """

    folder: Path
    manifest: Manifest
    fingerprint: str
    starts: NDArray[np.int64]
    arrays: dict[str, tuple[NDArray[Any], ...]]
    bases: tuple[NDArray[np.uint8] | None, ...]
    spec: FrameSpec
    lengths: NDArray[np.int64] | None = None
    drawn: Clips | None = None

    @property
    def count(self) -> int:
        """How many there are to draw from: N trajectories, or the clips of them."""
        return self.manifest.trajectories if self.drawn is None else self.drawn.count

    def clips(self, frames: int | None = None, skip: int = 1, apart: bool = False) -> "Split":
        """The same split with clips of T frames in place of trajectories; of whole ones of one length itself.

        Args:
            frames: T; by default all frames, or 16 where trajectories differ in length. What is shorter is left out.
            skip: frames from one frame of a clip to its next; an action is then the `skip` actions between, in a row.
            apart: whether the clips of a trajectory share no frame; else one starts at every frame.

        Raises:
            InputError: no trajectory is long enough.
        """
        assert self.drawn is None
        stored = self.manifest.spec
        if self.lengths is None and skip == 1 and frames in (None, stored.frames):
            return self
        drawn = cut(self.all_lengths, frames, skip, apart)
        flat = dict(self.arrays)
        if self.lengths is None:
            for name, arrays in self.arrays.items():
                if stored.unit(name) in ("frame", "action"):
                    flat[name] = tuple(array.reshape(-1, *array.shape[2:]) for array in arrays)
        spec = replace(stored, frames=drawn.frames, action_size=skip * stored.action_size, shortest=None)
        return replace(self, arrays=flat, spec=spec, drawn=drawn)

    @property
    def all_lengths(self) -> NDArray[np.int64]:
        """Frames of each trajectory, int64 [N]."""
        if self.lengths is not None:
            return self.lengths
        return np.full(self.manifest.trajectories, self.manifest.spec.frames)

    def explain(self) -> str:
        """One line for the log: what there is to draw from."""
        if self.drawn is not None:
            return f"{self.folder}: {explain(self.drawn, self.all_lengths)}"
        return f"{self.folder}: {self.count:,} trajectories of {self.spec.frames} frames"

    def first(self, count: int) -> "Split":
        """The same split as if it ended after `count` trajectories, or where it ends if that is earlier."""
        return replace(self, manifest=replace(self.manifest, trajectories=min(count, self.count)))

    def require_indices(self, indices: NDArray[np.int64]) -> None:
        """Raise IndexError unless `indices` ascend within [0, count)."""
        if indices.size and (indices[0] < 0 or indices[-1] >= self.count or np.any(indices[1:] < indices[:-1])):
            raise IndexError(f"indices: expected ascending values in [0, {self.count})")

    def pieces(self, indices: NDArray[np.int64]) -> list[Piece]:
        """Where `indices` (ascending, each in [0, count)) lie, shard by shard.

        Raises:
            IndexError: indices out of range or not ascending.
            InputError: they are trajectories of different lengths.
        """
        self.require_indices(indices)
        rows = self._rows(indices)
        trajectories = indices if rows is None else rows.trajectories
        cuts = np.searchsorted(trajectories, self.starts).tolist()
        pieces = []
        for shard, (low, high) in enumerate(pairwise(cuts)):
            if low == high:
                continue
            start = self.starts[shard]
            inside: dict[Unit, NDArray[np.int64]] = {"trajectory": trajectories[low:high] - start}
            if rows is None:
                inside |= {"frame": inside["trajectory"], "action": inside["trajectory"]}
            else:
                before = self._offsets[start]
                inside["frame"] = (rows.frames[low:high] - before).ravel()
                inside["action"] = (rows.actions[low:high] - (before - start)).ravel()
            pieces.append(Piece(shard, slice(low, high), inside))
        return pieces

    def _rows(self, indices: NDArray[np.int64]) -> Rows | None:
        """What is to be taken end to end; None where a trajectory is a row."""
        if self.drawn is not None:
            return self.drawn.rows(indices)
        if self.lengths is None:
            return None
        length = self.length(indices)
        whole = Clips(length, 1, 1, self._offsets, np.arange(len(self.lengths) + 1))
        return whole.rows(indices)

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """First frame of each trajectory, all of them end to end: int64 [N]."""
        if self.drawn is not None:
            return self.drawn.offsets
        assert self.lengths is not None
        offsets: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return offsets

    def length(self, indices: NDArray[np.int64]) -> int:
        """Frames of what `indices` stand for.

        Raises:
            InputError: trajectories of different lengths, of which there is no batch.
        """
        if self.lengths is None or self.drawn is not None or not indices.size:
            return self.spec.frames
        found = self.lengths[indices]
        if found.min() != found.max():
            raise InputError(
                f"{self.folder}: trajectories have {found.min()} to {found.max()} frames, expected clips of one length"
            )
        return int(found[0])

    def row_shape(self, field: str, length: int) -> tuple[int, ...]:
        """Shape of a field in a batch of trajectories of `length` frames, without the first axis."""
        return self._shapes(length)[field]

    def _shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        equal = self.spec if self.spec.shortest is None else replace(self.spec, frames=length, shortest=None)
        return {name: field.shape for name, field in equal.fields().items()}

    def copy(self, field: str, pieces: list[Piece], out: NDArray[Any]) -> None:
        """Copy the rows of a field that `pieces` names into `out`, whose shape and dtype are right."""
        arrays, unit = self.arrays[field], self._unit[field]
        is_flat = unit != "trajectory" and (self.drawn is not None or self.lengths is not None)
        for shard, target, rows in pieces:
            array, place = arrays[shard], out[target]
            if is_flat:
                place = place.reshape(-1, *array.shape[1:])
            # "clip" copies straight into `out`, where "raise" would buffer; the rows are known to be valid.
            array.take(rows[unit], axis=0, out=place, mode="clip")

    @cached_property
    def _unit(self) -> dict[str, Unit]:
        return {name: self.manifest.spec.unit(name) for name in self.arrays}

    def take(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy rows `indices` of a field (ascending, each in [0, count)) into `out` [len(indices), *row shape].

        Raises:
            IndexError: indices out of range or not ascending.
            InputError: they are trajectories of different lengths.
            ValueError: `out` has another shape or dtype.
        """
        dtype = np.dtype(self.manifest.spec.fields()[field].dtype)
        pieces = self.pieces(indices)
        shape = (len(indices), *self.row_shape(field, self.length(indices)))
        if out.shape != shape or out.dtype != dtype:
            raise ValueError(f"out: found {out.dtype} {out.shape}, expected {dtype} {shape}")
        self.copy(field, pieces, out)

    def targets(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The target `name` float32 [len(indices), T, size], for indices in any order.

        Raises:
            InputError: the split was packed without it, or they are trajectories of different lengths.
        """
        field = f"target.{name}"
        if field not in self.arrays:
            held = ", ".join(known for known, _ in self.spec.targets) or "none"
            raise InputError(f"{self.folder}: holds no {name}, which probing needs (targets: {held})")
        order = np.argsort(indices, kind="stable")
        ascending = np.empty((len(indices), *self.row_shape(field, self.length(indices))), np.float32)
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
    return _opened(folder, manifest, hashlib.sha256(text).hexdigest(), verify)


def open_shard(folder: Path, record: Manifest) -> Split:
    """The one shard of a record as a split of its own, whose first trajectory is 0, before its base images are shared.

    Raises:
        InputError: as `open_split`.
    """
    (shard,) = record.shards
    alone = replace(record, trajectories=shard.rows, shards=(replace(shard, first=0),))
    return _opened(folder, alone, hashlib.sha256(alone.to_json().encode()).hexdigest(), verify=False)


def _opened(folder: Path, manifest: Manifest, fingerprint: str, verify: bool) -> Split:
    """The split that a manifest describes, once its files are as it says."""
    fields = manifest.spec.fields()
    allow_open_files(len(manifest.shards) * len(fields))
    arrays = {
        name: tuple(
            as_field(map_file(folder, shard.files[name], manifest.stored_field(name)), field)
            for shard in manifest.shards
        )
        for name, field in fields.items()
    }
    if verify:
        with Progress(f"hashing {folder}", manifest.trajectories, "trajectories") as progress:
            for shard in manifest.shards:
                verify_shard(folder, shard)
                progress.update(shard.rows)
    check_corners(folder, manifest, arrays)
    bases = []
    for group in manifest.spec.groups:
        merged = None
        if group.base == "images":
            merged, arrays[f"{group.name}.base_index"] = _merge_bases(folder, manifest, arrays, group.name)
            del arrays[f"{group.name}.base"]
        bases.append(merged)
    starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)], dtype=np.int64)
    lengths = None if manifest.spec.shortest is None else read_lengths(folder, manifest, arrays.pop("length"))
    return Split(folder, manifest, fingerprint, starts, arrays, tuple(bases), manifest.spec, lengths)


def training_split(folder: Path) -> Path:
    """The split that is trained on in a folder of splits, called train or the only one; a split's own folder is it.

    Raises:
        InputError: there are several, and none is called train.
    """
    if (folder / MANIFEST_NAME).is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if (folder / "train").exists() or not found:
        return folder / "train"
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder}: holds the splits {names}, expected one called train, or the folder of one of them")
    return found[0]


def open_training(folder: Path, frames: int | None = None, skip: int = 1, verify: bool = False) -> Split:
    """The split that is trained on in a folder of splits, or in a split's own folder, as clips of T frames.

    Raises:
        InputError: it is missing or damaged, or no trajectory is long enough.
    """
    split = open_split(training_split(folder), verify)
    if frames is None and split.count == 1:
        # Whole, it would be a batch of one for ever.
        frames = max(2, (split.spec.frames + skip) // (2 * skip))
    return split.clips(frames, skip)


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
