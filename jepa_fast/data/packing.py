"""Writing splits: `pack` turns a source of frames into shards, on many processes, restartable, always the same bits.

Every shard leaves a record beside it when its files are durable; a killed run finds the records and goes on after them.
The manifest comes last. A group of channels is stored in one way throughout a split. Which one is guessed from the
first trajectories; where a frame does not fit, all of them are looked at, and the split is written once more.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np

from jepa_fast.data.bases import share_bases
from jepa_fast.data.checks import verify_shard
from jepa_fast.data.encoding import Encoded, Misfit, encode, encode_chunk
from jepa_fast.data.layouts import (
    Layout,
    Needs,
    dense_spec,
    explain,
    first_layout,
    fitted,
    merged_needs,
    needs_of,
    trajectory_bytes,
)
from jepa_fast.data.manifest import (
    MANIFEST_NAME,
    Encoding,
    Field,
    FrameSpec,
    Manifest,
    Shard,
    Unit,
    check_name,
    first_difference,
)
from jepa_fast.data.parallel import cut_by_bytes, one_ahead, ordered_map
from jepa_fast.data.shards import Split, open_shard, open_split
from jepa_fast.data.sources import Chunk, Source, check_chunk
from jepa_fast.data.two_rooms import version1
from jepa_fast.data.windows import size_text
from jepa_fast.data.writing import ArrayWriter, require_space, sync_folder, write_array, write_text
from jepa_fast.errors import InputError
from jepa_fast.locking import Lock
from jepa_fast.progress import Progress

# What one task holds in memory at most: this many trajectories, or fewer long ones of this many bytes as frames.
CHUNK_ROWS = 512
CHUNK_BYTES = 40_000_000
SHARD_BYTES = 250_000_000
# Chunks are multiples of 64 trajectories where at least so many fit.
LEAST_CHUNK = 16

OWN_FILE = re.compile(
    rf"(\w+\.(pixels|corner|base_index|base|background)|target\.\w+|length|{'|'.join(version1.NAMES)})-\d{{5}}\.npy(\.tmp)?"
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
    check: Callable[[Split, int], None] | None = None,
) -> Manifest:
    """Write all trajectories of `source` as a split in `folder`; a split that is there already is kept.

    Windows are pasted back and compared with their frames before they are written, files with what was to be written.

    Args:
        source: picklable for more than one worker.
        folder: made where missing.
        encoding: the strongest codec to be used: "window": windows, and once what does not change; "static": whole
            frames, and once what does not change; "dense": every frame whole. The log says what the data allowed.
        workers: processes that compute and encode; 1 works in this one.
        shard_rows: trajectories per shard; by default about 0.25 GB.
        label: name for the progress bar and the log; by default the folder's.
        check: is given what an earlier run left, a split and the source's trajectory that it begins with, where the
            source's description does not tell all that is in it; raises InputError where the two differ.

    Raises:
        InputError: bad source data, a finished split of another description, too little disk space, another process at
            work in the folder.
        OSError: what the system refused, with the file's name.
        RunError: another process took the folder over while this one stood still.
    """
    packing = _Packing(source, folder, encoding, workers, shard_rows, label or folder.name, check)
    # It may lie on a disk that cannot be written.
    finished = packing.finished()
    if finished is not None:
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder) as lock:
        return packing.run(lock)


class _Packing:
    """One run of `pack`."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        encoding: Encoding,
        workers: int,
        shard_rows: int | None,
        label: str,
        check: Callable[[Split, int], None] | None,
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
        self.check = check
        channels = sum(group.channels for group in source.groups)
        self.frame_bytes = channels * source.height * source.width
        fitting = CHUNK_BYTES // (source.frames * self.frame_bytes)
        # Generators may draw in blocks of 64.
        self.chunk_rows = min(CHUNK_ROWS, _multiple(64, fitting) if fitting >= LEAST_CHUNK else max(1, fitting))
        self.lengths = source.lengths
        # As it reads back from JSON, so that it can be compared with what was read.
        self.description = json.loads(json.dumps(source.description))

    def finished(self) -> Manifest | None:
        """The manifest of this very split if it is there."""
        finished = self._finished()
        if finished is not None:
            log.info("%s: already there, %d trajectories", self.label, finished.trajectories)
            if self.check is not None:
                self.check(open_split(self.folder), 0)
            # A run that was killed right after writing the manifest left its records.
            self._discard(_names(finished))
        return finished

    def run(self, lock: Lock) -> Manifest:
        """Write the split, under the folder's lock, unless whoever held it before has done so."""
        finished = self.finished()
        if finished is not None:
            return finished
        began = time.perf_counter()
        first = self.source.chunk(0, self._cuts(0, self.source.count)[1])
        layout = self._first_layout(first)
        for record in self._records():
            if record.header() == self._header(record.spec) and record.spec != layout.spec:
                # An earlier run has looked at all trajectories.
                layout = replace(layout, spec=record.spec)
        shards = self._write_shards(layout)
        if isinstance(shards, Misfit):
            layout = self._refitted(layout, shards)
            shards = self._write_shards(layout)
            assert not isinstance(shards, Misfit), shards
        shards, spec = share_bases(self.folder, shards, layout.spec, layout.square, self.source.count)
        manifest = replace(self._header(spec), shards=tuple(shards))
        lock.require_held()
        write_text(self.folder / MANIFEST_NAME, manifest.to_json())
        self._discard(_names(manifest))
        seconds = time.perf_counter() - began
        speed = self.source.count / seconds
        log.info("%s: %d trajectories in %.1f s (%.0f/s)", self.label, self.source.count, seconds, speed)
        for index, group in enumerate(spec.groups):
            held = [shard.files[f"{group.name}.base"].rows for shard in shards if group.base == "images"]
            log.info("%s: %s: %s", self.label, group.name, explain(layout, index, group, first, max(held, default=0)))
        return manifest

    def _header(self, spec: FrameSpec) -> Manifest:
        return Manifest(self.description, self.encoding, self.source.count, spec, ())

    def _finished(self) -> Manifest | None:
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
        rows = len(chunk.actions) if chunk.lengths is None else len(chunk.lengths)
        check_chunk(chunk, 0, rows, dense_spec(self.source))
        layout = first_layout(self.source, self.encoding, chunk)
        if isinstance(encode_chunk(chunk, 0, rows, layout), Misfit):
            # The first guess is made from a few trajectories.
            layout = fitted(layout, needs_of((block for _, block in chunk.blocks()), layout))
        return layout

    def _refitted(self, layout: Layout, misfit: Misfit) -> Layout:
        """The cheapest layout that all trajectories fit, where one does not fit `layout`."""
        tasks = list(pairwise(self._cuts(0, self.source.count)))
        with (
            ordered_map(partial(_look_task, self.source, layout), tasks, self.workers) as found_needs,
            Progress(f"codecs of {self.label}", self.source.count, "trajectories") as progress,
        ):
            needs = []
            for (first, stop), need in zip(tasks, found_needs, strict=True):
                needs.append(need)
                progress.update(stop - first)
        found = fitted(layout, merged_needs(needs))
        for index, (old, new) in enumerate(zip(layout.spec.groups, found.spec.groups, strict=True)):
            if old != new:
                what = "whole frames"
                if new.window is not None:
                    what = f"windows of {size_text(new.window)} pixels over {new.base}"
                where = f"trajectory {misfit.trajectory}, step {misfit.step}: {old.name}: {misfit.reason}: "
                log.info("%s: %s%s is stored as %s", self.label, where * (index == misfit.group), new.name, what)
        return found

    def _cuts(self, first: int, stop: int) -> list[int]:
        """Where to cut trajectories `first` to `stop - 1` into tasks."""
        if self.lengths is None:
            return [*range(first, stop, self.chunk_rows), stop]
        sizes = self.lengths[first:stop] * self.frame_bytes
        return [first + cut for cut in cut_by_bytes(sizes, CHUNK_BYTES, CHUNK_ROWS)]

    def _shard_cuts(self, layout: Layout) -> list[int]:
        """Where shards begin, and N."""
        count, row_bytes = self.source.count, trajectory_bytes(layout.spec, layout.frames)
        rows = self.shard_rows
        if rows is None and self.lengths is not None:
            share = row_bytes / (layout.frames * self.frame_bytes)
            cuts = cut_by_bytes(self.lengths * self.frame_bytes, int(SHARD_BYTES / share), count)
        else:
            rows = rows or _multiple(self.chunk_rows, int(SHARD_BYTES // row_bytes))
            cuts = [*range(0, count, rows), count]
        if len(cuts) > 100_001:
            found = f"{rows or SHARD_BYTES} gives {len(cuts) - 1} shards"
            raise InputError(f"{self.label}: shard_rows: {found}, expected at most 100000")
        return cuts

    def _write_shards(self, layout: Layout) -> list[Shard] | Misfit:
        """Write every shard that an earlier run did not finish, or tell the first frame that does not fit."""
        cuts = self._shard_cuts(layout)
        starts, stops = cuts[:-1], dict(pairwise(cuts))
        numbers = {first: number for number, first in enumerate(starts)}
        kept = self._keep_shards(layout, stops)
        records = {f"shard-{numbers[first]:05d}.json" for first in kept}
        self._discard(records | _names(replace(self._header(layout.spec), shards=tuple(kept.values()))))
        missing = [first for first in starts if first not in kept]
        frames = sum(self._frames(first, stops[first]) for first in missing)
        rows = sum(stops[first] - first for first in missing)
        per_frame = trajectory_bytes(layout.spec, 2) - trajectory_bytes(layout.spec, 1)
        require_space(self.folder, int(rows * trajectory_bytes(layout.spec, 0) + frames * per_frame))
        tasks = [part for first in missing for part in pairwise(self._cuts(first, stops[first]))]
        work = partial(_encode_task, self.source, layout)
        is_copy = self.source.is_plain and all(group.codec == "dense" for group in layout.spec.groups)
        done = self.source.count - rows
        with (
            one_ahead(work, tasks) if is_copy else ordered_map(work, tasks, self.workers) as chunks,
            Progress(f"packing {self.label}", self.source.count, "trajectories", done) as progress,
        ):
            for first in missing:
                shard = self._write_shard(numbers[first], first, stops[first], layout, chunks, progress)
                if isinstance(shard, Misfit):
                    return shard
                kept[first] = shard
        return [kept[first] for first in starts]

    def _write_shard(
        self, index: int, first: int, stop: int, layout: Layout, chunks: Iterator[Encoded | Misfit], progress: Progress
    ) -> Shard | Misfit:
        """Write the next chunks as one shard, then its record."""
        rows, frames = stop - first, self._frames(first, stop)
        lengths: dict[Unit, int] = {"trajectory": rows, "frame": rows, "action": rows}
        if self.lengths is not None:
            lengths |= {"frame": frames, "action": frames - rows}
        with ExitStack() as stack:
            writers = {}
            for name, field in _row_fields(layout).items():
                path = self.folder / f"{name}-{index:05d}.npy"
                writers[name] = stack.enter_context(ArrayWriter(path, field, lengths[layout.spec.unit(name)]))
            written = 0
            while written < rows:
                encoded = next(chunks)
                if isinstance(encoded, Misfit):
                    return encoded
                for name, writer in writers.items():
                    writer.write(np.ascontiguousarray(encoded[name]))
                done = len(encoded["actions"] if self.lengths is None else encoded["length"])
                written += done
                progress.update(done)
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

    def _frames(self, first: int, stop: int) -> int:
        """Frames of the trajectories `first` to `stop - 1`."""
        if self.lengths is None:
            return (stop - first) * self.source.frames
        return int(self.lengths[first:stop].sum())

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
                if self.check is not None:
                    self.check(open_shard(self.folder, record), shard.first)
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


def _look_task(source: Source, layout: Layout, task: tuple[int, int]) -> tuple[Needs, ...]:
    chunk = source.chunk(*task)
    check_chunk(chunk, task[0], task[1] - task[0], layout.spec)
    return needs_of((block for _, block in chunk.blocks()), layout)


def _row_fields(layout: Layout) -> dict[str, Field]:
    """The fields of which every trajectory has a row."""
    return {name: field for name, field in layout.spec.fields().items() if not name.endswith(".base")}


def _names(manifest: Manifest) -> set[str]:
    """Every file that the manifest lists."""
    return {file.name for shard in manifest.shards for file in shard.files.values()}


def _multiple(unit: int, most: int) -> int:
    """The largest multiple of `unit` up to `most`, at least one unit."""
    return unit * max(1, most // unit)
