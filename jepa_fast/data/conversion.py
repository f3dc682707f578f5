"""Converting files: columns are checked, looked at and packed; what lay in the folder before is compared with them.

Files are read in chunks, so they may be larger than memory, and frames of bytes once, while they are packed. Floats
become bytes by one scale, and where values are negative one offset, for the whole set; the worst error that this makes
is measured beforehand and goes into the manifest.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.columns import (
    SPLIT_SEED,
    ChannelOrder,
    ColumnSource,
    Indices,
    Selection,
    channel_order,
    channels_first,
    leading,
    quantise,
)
from jepa_fast.data.decoding import decoded_group, stored_rows
from jepa_fast.data.manifest import Encoding, Manifest, check_name
from jepa_fast.data.packing import pack
from jepa_fast.data.parallel import cut_by_bytes, ordered_map
from jepa_fast.data.readers import Column, Reader
from jepa_fast.data.shards import Split
from jepa_fast.data.sources import Chunk, SourceGroup
from jepa_fast.errors import InputError, require
from jepa_fast.progress import Progress

# Looked at in one go: bytes of frames, and trajectories at most.
CHUNK_BYTES = 16_000_000
CHUNK_ROWS = 512
# Frames of bytes that go into the digest of a source: so many bytes, in so many episodes.
SAMPLE_BYTES, LEAST_SAMPLE, MOST_SAMPLE = 64_000_000, 3, 512
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# Of frames, in pixels.
LEAST_SIDE, MOST_SIDE = 8, 512
# Beyond this, actions are likely to be in other units than were meant.
USUAL_ACTIONS = 1000.0
# Episodes that the log names.
NAMED = 20

log = logging.getLogger(__name__)


def open_columns(reader: Reader, selection: Selection, scale: float | None, workers: int) -> ColumnSource:
    """The source of some columns, after a look at every value.

    Args:
        reader: of the files.
        selection: which columns, and how they are read.
        scale: value of one uint8 step; by default 1/255 for bytes, and for floats what makes the largest value 255.
        workers: processes that look.

    Raises:
        InputError: a column is missing or of the wrong shape, or a value is NaN, infinite or beyond the scale.
    """
    columns = reader.columns
    for name in selection.columns:
        held = ", ".join(columns) or "none"
        require(name in columns, "column", name, f"one of {held}, in {reader.where(name)}")
    frames, where = columns[selection.frames], reader.where(selection.frames)
    found = _text(frames)
    is_number = frames.dtype in (np.uint8, np.bool_) or frames.dtype.kind == "f"
    if not is_number or len(frames.shape) not in (2, 3) or not frames.rows.size or frames.rows.max() < 2:
        expected = "float, bool or uint8 [N, T, C, H, W] with T >= 2" + _remedy(frames.dtype)
        raise InputError(f"{where}: found {found}, expected {expected}")
    order: ChannelOrder = "first"
    if len(frames.shape) == 3:
        order = channel_order(frames.shape, selection.order, where)
        if selection.order is None:
            log.info("%s: %s, channels %s", where, found, order)
    channels, height, width = channels_first(np.broadcast_to(0, (1, *frames.shape)), order).shape[1:]
    if not LEAST_SIDE <= min(height, width) <= max(height, width) <= MOST_SIDE:
        expected = f"{LEAST_SIDE} x {LEAST_SIDE} to {MOST_SIDE} x {MOST_SIDE}: resize them first"
        raise InputError(f"{where}: found frames of {height} x {width} pixels, expected {expected}")
    groups = selection.groups or (SourceGroup("frames", channels),)
    if sum(group.channels for group in groups) != channels:
        listed = ", ".join(f"{group.name}:{group.channels}" for group in groups)
        raise InputError(f"{where}: found {found}, expected the channels of --groups {listed}")
    because = f"{where} is {found.partition(' ')[2]}"
    action_size = _action_size(reader, selection, columns, because)
    targets = []
    for name, column in selection.targets:
        check_name(name, "--targets")
        other, place = columns[column], reader.where(column)
        expected = f"float {_expected(frames, 0, 'size')}"
        if other.dtype.kind not in "fiub" or len(other.shape) > 1 or not prod(other.shape):
            raise InputError(f"{place}: found {_text(other)}, expected {expected}, as {because}")
        _drops_last(other, frames, place, expected, because)
        targets.append((name, prod(other.shape)))
    numbers = np.arange(len(frames.rows))
    if frames.rows.min() < 2:
        short, numbers = numbers[frames.rows < 2], numbers[frames.rows >= 2]
        named = ", ".join(map(str, short[:NAMED])) + (" and others" if len(short) > NAMED else "")
        log.info("%s: %d episodes of fewer than 2 frames are left out: %s", where, len(short), named)
    is_measured = scale is None and frames.dtype.kind == "f"
    if scale is None:
        # The brightest byte is 1, as in floats of the same frames; flags are 0 and 1 as they are.
        scale = 1 / 255 if frames.dtype == np.uint8 else 1.0
    source = ColumnSource(
        reader, selection, numbers, frames.rows[numbers], (channels, height, width), order, str(frames.dtype),
        groups, action_size, tuple(targets), scale,
    )  # fmt: skip
    return _survey(source, measured=is_measured, workers=workers)


def _action_size(reader: Reader, selection: Selection, columns: Mapping[str, Column], because: str) -> int:
    """A, once the actions' type and shape are right."""
    actions, frames, where = columns[selection.actions], columns[selection.frames], reader.where(selection.actions)
    found, size = _text(actions), prod(actions.shape)
    is_integer = actions.dtype.kind in "iub"
    expected = f"float {_expected(frames, 1, 'A')}"
    if selection.action_classes is not None:
        if not is_integer or len(actions.shape) > 1 or size != 1:
            expected = f"integers {_expected(frames, 1)}"
            raise InputError(f"{where}: found {found}, expected {expected}, as {because}")
    elif is_integer and size == 1:
        expected = "floats, or the number of classes of integers (--action-classes)"
        raise InputError(f"{where}: found {found}, expected {expected}")
    elif not (is_integer or actions.dtype.kind == "f") or len(actions.shape) > 1 or not size:
        raise InputError(f"{where}: found {found}, expected {expected}, as {because}{_remedy(actions.dtype)}")
    last = _drops_last(actions, frames, where, expected, because, fewer=1)
    if last:
        log.info("%s: as many actions as frames: the last of every episode leads to no frame and is left out", where)
    return selection.action_classes or size


def _drops_last(column: Column, frames: Column, where: str, expected: str, because: str, fewer: int = 0) -> bool:
    """Whether every episode has as many rows as frames, and not `fewer`, as it may have.

    Raises:
        InputError: it has neither.
    """
    is_equal = _is_equal(column) and _is_equal(frames)
    if len(column.rows) != len(frames.rows):
        raise InputError(f"{where}: found {_text(column)}, expected {expected}, as {because}")
    for left_out in (fewer, 0):
        if np.array_equal(column.rows, frames.rows - left_out):
            return left_out < fewer
    if is_equal:
        raise InputError(f"{where}: found {_text(column)}, expected {expected}, as {because}")
    is_fewer = fewer and (column.rows < frames.rows).sum() > (column.rows == frames.rows).sum()
    wanted = frames.rows - fewer if is_fewer else frames.rows
    episode = int(np.flatnonzero(column.rows != wanted)[0])
    found = f"{column.rows[episode]} rows for {frames.rows[episode]} frames"
    raise InputError(f"{where}: episode {episode}: found {found}, expected {wanted[episode]}, as {because}")


def _is_equal(column: Column) -> bool:
    return len(column.rows) > 0 and bool((column.rows == column.rows[0]).all())


def _expected(frames: Column, fewer: int, *more: str) -> str:
    """The shape of a column beside these frames."""
    steps = str(frames.rows[0] - fewer) if _is_equal(frames) else "T - 1" if fewer else "T"
    return f"[{', '.join((str(len(frames.rows)), steps, *more))}]"


def _text(column: Column) -> str:
    """Type and shape of a column."""
    if not len(column.rows):
        return f"{column.dtype} {[0, *column.shape]}"
    if _is_equal(column):
        return f"{column.dtype} {[len(column.rows), int(column.rows[0]), *column.shape]}"
    least, most = column.rows.min(), column.rows.max()
    return f"{column.dtype} {len(column.rows)} episodes of {least} to {most} rows {list(column.shape)}"


def _remedy(dtype: np.dtype[Any]) -> str:
    is_object = dtype.kind == "O"
    return "; episodes of different length are stored end to end, or come through jepa_fast.pack" if is_object else ""


def convert_columns(
    reader: Reader,
    selection: Selection,
    out: Path,
    scale: float | None,
    encoding: Encoding,
    workers: int,
    validation: float | None = None,
) -> Manifest:
    """Pack some columns as the split `out`, or as the splits `out`/train and `out`/val, every value compared.

    Args:
        reader: of the files.
        selection: which columns, and how they are read.
        out: the folder.
        scale: value of one uint8 step; by default found from the values.
        encoding: the strongest codec.
        workers: processes.
        validation: share of the episodes that become the split val.

    Returns:
        The manifest of the split, or of the one to train on.

    Raises:
        InputError: a column is not of the layout, a value is not finite or beyond the scale, or the disk lacks space.
        OSError: a file cannot be read or written.
    """
    source = open_columns(reader, selection, scale, workers)
    parts = {out: source} if validation is None else {out / name: part for name, part in divided(source, validation)}
    manifests = []
    for folder, part in parts.items():
        manifests.append(pack(part, folder, encoding, workers, check=partial(check_round_trip, part)))
        log.info(
            "%s: every frame, action and target on disk compared with its source: equal after rounding to steps of %g, "
            "which moves a pixel by at most %g", folder, part.scale, part.error,
        )  # fmt: skip
    return manifests[0]


def divided(source: ColumnSource, validation: float) -> list[tuple[str, ColumnSource]]:
    """The episodes to train on and those to validate with: the same ones for every run.

    Raises:
        InputError: one of the two would be empty.
    """
    held = round(validation * source.count)
    require(
        0 < held < source.count, "--validation", validation, f"a share that leaves both parts of {source.count} some"
    )
    order = np.random.default_rng(SPLIT_SEED).permutation(source.count)
    parts = []
    for name, chosen in (("train", np.sort(order[held:])), ("val", np.sort(order[:held]))):
        part = replace(
            source, numbers=source.numbers[chosen], all_lengths=source.all_lengths[chosen], part=(name, validation)
        )
        parts.append((name, part))
    return parts


class _Seen(NamedTuple):
    least: float
    largest: float
    largest_action: float
    digest: bytes


def _survey(source: ColumnSource, measured: bool, workers: int) -> ColumnSource:
    """`source` with its digest, error, offset and, if it is to be `measured`, scale."""
    columns, chosen = source.reader.columns, source.selection
    # Any byte will do for a frame.
    looked_at = tuple(name for name in chosen.columns if not (name == chosen.frames and source.has_bytes))
    step_bytes = sum(prod(columns[name].shape) * columns[name].dtype.itemsize for name in looked_at)
    # Numbers alone are few: starting a worker would take longer than looking at them.
    most_rows = source.count if source.has_bytes else CHUNK_ROWS
    tasks = list(pairwise(cut_by_bytes(source.all_lengths * step_bytes, CHUNK_BYTES, most_rows)))
    digest, least, largest, action = hashlib.sha256(), 0.0, 0.0, 0.0
    with ordered_map(partial(_look, source, looked_at), tasks, workers) as results:
        for seen in _watched(results, tasks, "looking"):
            least, largest = min(least, seen.least), max(largest, seen.largest)
            action = max(action, seen.largest_action)
            digest.update(seen.digest)
    if action > USUAL_ACTIONS:
        log.warning(
            "%s: actions of up to %.3g: a predictor takes them as they are, and learns from numbers around 1; scale "
            "them before packing", source.reader.where(source.selection.actions), action,
        )  # fmt: skip
    if source.has_bytes:
        digest.update(np.ascontiguousarray(_sample(source)).data)
    source = replace(source, digest=digest.hexdigest())
    if source.has_bytes:
        return source
    # Frames of one value alone have no range; any scale is right for them.
    scale = ((largest - least) / 255 or 1.0) if measured else source.scale
    if largest - least > 255 * scale * (1 + 1e-6):
        holds = f"{largest}" if least == 0 else f"{least} to {largest}"
        where = source.reader.where(source.selection.frames)
        expected = f"at least {(largest - least) / 255}: {where} holds {holds}"
        raise InputError(f"--scale: got {scale}, expected {expected}")
    source = replace(source, scale=scale, offset=least)
    with ordered_map(partial(_worst_error, source), tasks, workers) as errors:
        return replace(source, error=max(_watched(errors, tasks, "rounding")))


def _sample(source: ColumnSource) -> NDArray[Any]:
    """Frames of episodes that are evenly spread: what tells a source from another of the same sizes."""
    frame_bytes = prod(source.size)
    count = int(np.clip(SAMPLE_BYTES / (source.all_lengths.mean() * frame_bytes), LEAST_SAMPLE, MOST_SAMPLE))
    spread = np.unique(np.linspace(0, source.count - 1, min(count, source.count)).astype(np.int64))
    return source.reader.read((source.selection.frames,), source.numbers[spread])[source.selection.frames]


def _look(source: ColumnSource, looked_at: tuple[str, ...], task: tuple[int, int]) -> _Seen:
    """The ranges and the digest of some columns of a chunk of trajectories, every value being checked."""
    chosen, reader = source.selection, source.reader
    numbers, lengths = source.numbers[slice(*task)], source.all_lengths[slice(*task)]
    digest, least, largest, action = hashlib.sha256(), 0.0, 0.0, 0.0
    columns = reader.read(looked_at, numbers)
    # Each as often as it is named.
    for column in (chosen.frames, chosen.actions, *(column for _, column in chosen.targets)):
        if column not in looked_at:
            continue
        values = np.ascontiguousarray(columns[column])
        digest.update(values.data)
        rows = lengths
        if column == chosen.actions:
            if len(values) == lengths.sum():
                # What follows no frame may be anything.
                values = values[leading(lengths)]
            rows = lengths - 1
        low, high = float(values.min()), float(values.max())
        place = _Place(reader.where(column), values, numbers, rows)
        if values.dtype.kind == "f":
            # NaN makes both of them NaN.
            if not (np.isfinite(low) and np.isfinite(high)):
                place.refuse(~np.isfinite(values), "finite numbers")
            if column != chosen.frames and max(-low, high) > LARGEST_FLOAT32:
                place.refuse(abs(values) > LARGEST_FLOAT32, "float32's range")
        if column == chosen.frames:
            least, largest = low, high
        if column == chosen.actions:
            action = max(-low, high)
            if chosen.action_classes is not None and not 0 <= low <= high < chosen.action_classes:
                bad = (values < 0) | (values >= chosen.action_classes)
                place.refuse(bad, f"a class from 0 to {chosen.action_classes - 1}")
    return _Seen(least, largest, action if chosen.action_classes is None else 0.0, digest.digest())


class _Place(NamedTuple):
    """Values of a column end to end, and how to say where one of them is."""

    where: str
    values: NDArray[Any]
    numbers: Indices
    rows: Indices

    def refuse(self, bad: NDArray[np.bool_], expected: str) -> None:
        """Raise InputError for the first of the bad values."""
        place = np.argwhere(bad)[0]
        ends = np.cumsum(self.rows)
        row = int(np.searchsorted(ends, place[0], side="right"))
        step = int(place[0] - (ends[row] - self.rows[row]))
        value = self.values[tuple(place)]
        raise InputError(
            f"{self.where}: trajectory {self.numbers[row]}, step {step}: found {value}, expected {expected}"
        )


def _worst_error(source: ColumnSource, task: tuple[int, int]) -> float:
    """The largest distance between a pixel and what becomes of it."""
    frames = source.selection.frames
    values = source.reader.read((frames,), source.numbers[slice(*task)])[frames]
    restored = quantise(values, source.scale, source.offset).astype(np.float64) * source.scale + source.offset
    return float(abs(restored - values).max())


def check_round_trip(source: ColumnSource, split: Split, first: int = 0) -> None:
    """Compare every frame, action and target of `split`, as it is on disk, with the source's from `first` on.

    Raises:
        InputError: naming the first trajectory that differs.
    """
    lengths = source.all_lengths[first : first + split.count]
    tasks = list(pairwise(cut_by_bytes(lengths * prod(source.size), CHUNK_BYTES, CHUNK_ROWS)))
    for start, stop in _watched(iter(tasks), tasks, "comparing"):
        for row, block in source.chunk(first + start, first + stop).blocks():
            _compare(source, split, block, np.arange(start + row, start + row + len(block.actions)), first)


def _compare(source: ColumnSource, split: Split, chunk: Chunk, indices: Indices, first: int) -> None:
    """Compare trajectories of one length; those of the split count from `first`."""
    pairs: list[tuple[str, NDArray[Any], NDArray[Any]]] = [
        (group.name, decoded_group(split, number, indices), chunk.groups[number])
        for number, group in enumerate(source.groups)
    ]
    pairs.append(("actions", stored_rows(split, "actions", indices), chunk.actions))
    for (name, _), values in zip(source.targets, chunk.targets, strict=True):
        pairs.append((name, stored_rows(split, f"target.{name}", indices), values))
    for name, ours, theirs in pairs:
        if not np.array_equal(ours, theirs):
            row = first + indices[int(np.argwhere(ours != theirs)[0, 0])]
            what = name if name == "actions" or (name, theirs.shape[-1]) in source.targets else f"{name} pixels"
            where = source.reader.where(source.selection.frames)
            remedy = "choose another folder or delete this one"
            raise InputError(f"{split.folder}: trajectory {row}: its {what} are not those of {where}; {remedy}")


def _watched(results: Any, tasks: list[tuple[int, int]], label: str) -> Any:
    """The results, with progress in trajectories."""
    with Progress(label, tasks[-1][1], "trajectories") as progress:
        for result, (start, stop) in zip(results, tasks, strict=True):
            yield result
            progress.update(stop - start)
