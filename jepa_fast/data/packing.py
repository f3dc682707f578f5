"""Writing splits: `pack` turns a source of frames into shards, on many processes, restartable, always the same bits.

Every shard leaves a record beside it when its files are durable; a killed run finds the records and goes on after them.
The manifest comes last. A group of channels is stored in one way throughout a split: frames that do not fit start the
split again with the next weaker one.
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.bases import share_bases
from jepa_fast.data.encoding import (
    Chunk,
    Encoded,
    Layout,
    Misfit,
    Source,
    changed_share,
    cheapest,
    check_chunk,
    dense_spec,
    encode,
    encode_chunk,
    first_layout,
    size_text,
    stored_bytes,
    strength,
)
from jepa_fast.data.manifest import (
    MANIFEST_NAME,
    ChannelGroup,
    Encoding,
    Field,
    FrameSpec,
    Manifest,
    Shard,
    check_name,
    first_difference,
)
from jepa_fast.data.parallel import ordered_map
from jepa_fast.data.shards import verify_shard
from jepa_fast.data.two_rooms import version1
from jepa_fast.data.writing import ArrayWriter, locked, require_space, sync_folder, write_array, write_text
from jepa_fast.errors import InputError
from jepa_fast.progress import Progress

# What one task holds in memory at most: this many trajectories, or fewer long ones of this many bytes as frames.
CHUNK_ROWS = 512
CHUNK_BYTES = 40_000_000
SHARD_BYTES = 250_000_000

OWN_FILE = re.compile(
    rf"(\w+\.(pixels|corner|base_index|base|background)|target\.\w+|{'|'.join(version1.NAMES)})-\d{{5}}\.npy(\.tmp)?"
    r"|shard-\d{5}\.json(\.tmp)?|manifest\.json\.tmp"
)

log = logging.getLogger(__name__)


def pack(
    source: Source,
    folder: Path,
    encoding: Encoding = "window",
    workers: int = 1,
    shard_rows: int | None = None,
    label: str | None = None,
) -> Manifest:
    """Write all trajectories of `source` as a split in `folder`; a split that is there already is kept.

    Args:
        source: picklable for more than one worker.
        folder: made where missing.
        encoding: the strongest codec to be used: "window": windows, and once what does not change; "static": whole
            frames, and once what does not change; "dense": every frame whole. What the data does not allow is stored
            in the next weaker way, with one log line.
        workers: processes that compute and encode; 1 works in this one.
        shard_rows: trajectories per shard; by default about 0.25 GB.
        label: name for the progress bar and the log; by default the folder's.

    Raises:
        InputError: bad source data, a finished split of another description, too little disk space.
        OSError: what the system refused, with the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return _Packing(source, folder, encoding, workers, shard_rows, label or folder.name).run()


class _Packing:
    """One run of `pack`."""

    def __init__(
        self, source: Source, folder: Path, encoding: Encoding, workers: int, shard_rows: int | None, label: str
    ):
        if source.count < 1 or source.frames < 2:
            found = f"{source.count} trajectories of {source.frames} frames"
            raise InputError(f"{label}: source: found {found}, expected at least 1 of at least 2")
        if encoding not in get_args(Encoding):
            raise InputError(f"{label}: encoding: got {encoding!r}, expected one of {', '.join(get_args(Encoding))}")
        for name in (*(group.name for group in source.groups), *(name for name, _ in source.targets)):
            check_name(name, label)
        self.source = source
        self.folder = folder
        self.encoding: Encoding = encoding
        self.workers = workers
        self.shard_rows = shard_rows
        self.label = label
        channels = sum(group.channels for group in source.groups)
        frame_bytes = source.frames * channels * source.height * source.width
        self.chunk_rows = min(CHUNK_ROWS, _multiple(64, CHUNK_BYTES // frame_bytes))
        # As it reads back from JSON, so that it can be compared with what was read.
        self.description = json.loads(json.dumps(source.description))

    def run(self) -> Manifest:
        finished = self._finished()
        if finished is not None:
            log.info("%s: already there, %d trajectories", self.label, finished.trajectories)
            # A run that was killed right after writing the manifest left its records.
            self._discard(_names(finished))
            return finished
        began = time.perf_counter()
        first = self.source.chunk(0, min(self.chunk_rows, self.source.count))
        layout = self._first_layout(first)
        for record in self._records():
            if record.header() == self._header(record.spec) and _weakness(record.spec) > _weakness(layout.spec):
                layout = replace(layout, spec=record.spec)
        shards = self._write_shards(layout)
        while isinstance(shards, Misfit):
            layout = self._weaken(layout, shards, logging.INFO)
            shards = self._write_shards(layout)
        shards, spec = share_bases(self.folder, shards, layout.spec, layout.square, self.source.count)
        manifest = replace(self._header(spec), shards=tuple(shards))
        write_text(self.folder / MANIFEST_NAME, manifest.to_json())
        self._discard(_names(manifest))
        seconds = time.perf_counter() - began
        speed = self.source.count / seconds
        log.info("%s: %d trajectories in %.1f s (%.0f/s)", self.label, self.source.count, seconds, speed)
        for index, group in enumerate(spec.groups):
            self._tell(manifest, group, first.groups[index])
        return manifest

    def _tell(self, manifest: Manifest, group: ChannelGroup, sample: NDArray[np.uint8]) -> None:
        """One line for the log: how a group is stored, why, and what that saves."""
        spec = manifest.spec
        bases = (
            max((shard.files[f"{group.name}.base"].rows for shard in manifest.shards), default=0)
            if (group.base == "images")
            else 0
        )
        over = {None: "", "black": "black", "images": f"{bases} base images", "own": "each trajectory's background"}
        if group.codec == "static":
            what = "one image per trajectory"
            if group.window is not None:
                what += f", a window of {size_text(group.window)} pixels over {over[group.base]}"
        elif group.window is not None:
            what = f"windows of {size_text(group.window)} pixels over {over[group.base]}"
        else:
            what = "every frame"
            if self.encoding != "dense" and sample.ndim == 5:
                what += f", as {100 * changed_share(sample):.0f}% of the pixels differ from the background"
        dense = stored_bytes(spec, ChannelGroup(group.name, group.channels, "dense"))
        share = 100 * stored_bytes(spec, group) / dense
        log.info("%s: %s: %s, %.1f%% of the bytes of whole frames", self.label, group.name, what, share)

    def _header(self, spec: FrameSpec) -> Manifest:
        return Manifest(self.description, self.encoding, self.source.count, spec, ())

    def _finished(self) -> Manifest | None:
        """The manifest of this very split if it is there."""
        path = self.folder / MANIFEST_NAME
        if not path.exists():
            return None
        manifest = Manifest.parse(path.read_bytes(), path)
        expected = self._header(dense_spec(self.source))
        difference = first_difference(manifest.description(), expected.description())
        if difference is not None:
            raise InputError(
                f"{path}: holds another finished split: {difference}; choose another folder or delete this one"
            )
        return manifest

    def _records(self) -> list[Manifest]:
        """Records that finished shards of an earlier run left, each a manifest with one shard."""
        records = []
        for path in sorted(self.folder.glob("shard-*.json")):
            try:
                record = Manifest.parse(path.read_bytes(), path)
            except InputError as error:
                log.info("%s: unreadable record is discarded: %s", self.label, error)
            else:
                records.append(record)
        return records

    def _first_layout(self, chunk: Chunk) -> Layout:
        """The strongest layout that the first chunk allows."""
        check_chunk(chunk, 0, len(chunk.actions), dense_spec(self.source))
        layout = first_layout(self.source, self.encoding, chunk)
        while isinstance(outcome := encode_chunk(chunk, 0, len(chunk.actions), layout), Misfit):
            # The first guess is made from a few trajectories: that is measuring, not falling back.
            layout = self._weaken(layout, outcome, logging.DEBUG)
        return layout

    def _weaken(self, layout: Layout, misfit: Misfit, level: int) -> Layout:
        old, new = layout.spec.groups[misfit.group], cheapest(layout.spec, misfit.fitting)
        log.log(
            level,
            "%s: trajectory %d, step %d: %s: %s: %s is stored as %s",
            self.label,
            misfit.trajectory,
            misfit.step,
            old.name,
            misfit.reason,
            old.name,
            "whole frames" if new.window is None else f"windows of {size_text(new.window)} pixels over {new.base}",
        )
        return layout.with_group(misfit.group, new)

    def _write_shards(self, layout: Layout) -> list[Shard] | Misfit:
        """Write every shard that an earlier run did not finish, or tell the first frame that does not fit."""
        fields = _row_fields(layout)
        row_bytes = sum(np.dtype(field.dtype).itemsize * int(np.prod(field.shape)) for field in fields.values())
        rows = self.shard_rows or _multiple(self.chunk_rows, SHARD_BYTES // row_bytes)
        starts = range(0, self.source.count, rows)
        if len(starts) > 100_000:
            raise InputError(f"{self.label}: shard_rows: {rows} gives {len(starts)} shards, expected at most 100000")
        stops = {first: min(first + rows, self.source.count) for first in starts}
        kept = self._keep_shards(layout, stops)
        records = {f"shard-{first // rows:05d}.json" for first in kept}
        self._discard(records | _names(replace(self._header(layout.spec), shards=tuple(kept.values()))))
        missing = [first for first in starts if first not in kept]
        require_space(self.folder, row_bytes * sum(stops[first] - first for first in missing))
        tasks = [
            (low, min(low + self.chunk_rows, stops[first]))
            for first in missing
            for low in range(first, stops[first], self.chunk_rows)
        ]
        work = partial(_encode_task, self.source, layout)
        done = self.source.count - sum(stops[first] - first for first in missing)
        with (
            ordered_map(work, tasks, self.workers) as chunks,
            Progress(f"packing {self.label}", self.source.count, "trajectories", done) as progress,
        ):
            for first in missing:
                shard = self._write_shard(first // rows, first, stops[first], layout, chunks, progress)
                if isinstance(shard, Misfit):
                    return shard
                kept[first] = shard
        return [kept[first] for first in starts]

    def _write_shard(
        self, index: int, first: int, stop: int, layout: Layout, chunks: Iterator[Encoded | Misfit], progress: Progress
    ) -> Shard | Misfit:
        """Write the next chunks as one shard, then its record."""
        rows = stop - first
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(ArrayWriter(self.folder / f"{name}-{index:05d}.npy", field, rows))
                for name, field in _row_fields(layout).items()
            }
            written = 0
            while written < rows:
                encoded = next(chunks)
                if isinstance(encoded, Misfit):
                    return encoded
                for name, writer in writers.items():
                    writer.write(np.ascontiguousarray(encoded[name]))
                written += len(encoded["actions"])
                progress.update(len(encoded["actions"]))
            files = {name: writer.finish() for name, writer in writers.items()}
        for group, image in zip(layout.spec.groups, layout.images, strict=True):
            if group.base == "images":
                name = f"{group.name}.base"
                files[name] = write_array(self.folder / f"{name}-{index:05d}.npy", image[None])
        shard = Shard(first, rows, files)
        sync_folder(self.folder)
        record = replace(self._header(layout.spec), shards=(shard,))
        write_text(self.folder / f"shard-{index:05d}.json", record.to_json())
        return shard

    def _keep_shards(self, layout: Layout, stops: dict[int, int]) -> dict[int, Shard]:
        """Shards of an earlier run that belong to this split and still have the recorded bits, by first trajectory."""
        kept = {}
        for record in self._records():
            if record.header() != self._header(layout.spec) or len(record.shards) != 1:
                continue
            shard = record.shards[0]
            if shard.first + shard.rows != stops.get(shard.first):
                continue
            try:
                verify_shard(self.folder, shard)
            except (InputError, FileNotFoundError) as error:
                log.info("%s: written again: %s", self.label, error)
            else:
                kept[shard.first] = shard
        if kept:
            log.info("%s: kept %d finished shards of an earlier run", self.label, len(kept))
        return kept

    def _discard(self, keep: set[str]) -> None:
        """Delete files of this format that belong to no kept shard."""
        for path in self.folder.iterdir():
            if OWN_FILE.fullmatch(path.name) and path.name not in keep:
                path.unlink()


def _encode_task(source: Source, layout: Layout, task: tuple[int, int]) -> Encoded | Misfit:
    return encode(source, *task, layout)


def _row_fields(layout: Layout) -> dict[str, Field]:
    """The fields of which every trajectory has a row."""
    return {name: field for name, field in layout.spec.fields().items() if not name.endswith(".base")}


def _weakness(spec: FrameSpec) -> tuple[int, int]:
    """Order of the layouts that one split is written in, one after the other: groups only ever get weaker."""
    windows = sum(sum(group.window) for group in spec.groups if group.window is not None)
    return sum(strength(group) for group in spec.groups), windows


def _names(manifest: Manifest) -> set[str]:
    """Every file that the manifest lists."""
    return {file.name for shard in manifest.shards for file in shard.files.values()}


def _multiple(unit: int, most: int) -> int:
    """The largest multiple of `unit` up to `most`, at least one unit. Generators may draw in blocks of 64."""
    return unit * max(1, most // unit)
