"""Writing splits: `pack` turns a source of frames into shards, on many processes, restartable, always the same bits.

Every shard leaves a record beside it when its files are durable; a killed run finds the records and goes on after them.
The manifest comes last. Encoding is the same throughout a split: frames that do not fit it start the split again with
the next weaker one.
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
from typing import Never

import numpy as np
from tqdm import tqdm

from jepa_fast.data.encoding import Encoded, Misfit, Source, encode, encode_chunk, strongest_layout, weaker_layout
from jepa_fast.data.manifest import MANIFEST_NAME, Encoding, Layout, Manifest, Shard
from jepa_fast.data.parallel import ordered_map
from jepa_fast.data.shards import verify_shard
from jepa_fast.data.walls import write_groups
from jepa_fast.data.writing import ArrayWriter, locked, require_space, sync_folder, write_text
from jepa_fast.errors import InputError

# What one task holds in memory at most: this many trajectories, or fewer long ones of this many bytes as frames.
CHUNK_ROWS = 512
CHUNK_BYTES = 40_000_000
SHARD_BYTES = 250_000_000

OWN_FILE = re.compile(
    r"(dot|window|corner|wall|actions|locations|group|group_corner|base)-\d{5}\.npy(\.tmp)?"
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
        encoding: "window": dot windows, walls once; "wall_once": full dot frames, walls once; "full": both per frame.
            What the data does not allow is stored in the next weaker way, with one log line.
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
        self.source = source
        self.folder = folder
        self.encoding: Encoding = encoding
        self.workers = workers
        self.shard_rows = shard_rows
        self.label = label
        frame_bytes = source.frames * source.height * source.width
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
        layout = self._first_layout()
        for record in self._records():
            if record.header() == self._header(record.layout) and _weakness(record.layout) > _weakness(layout):
                layout = record.layout
        shards = self._write_shards(layout)
        while isinstance(shards, Misfit):
            layout = self._weaken(layout, shards)
            shards = self._write_shards(layout)
        grouped = None if layout.wall_per_frame else write_groups(self.folder, shards, self.source.count)
        if grouped is not None:
            shards, walls = grouped
            layout = replace(layout, spec=replace(layout.spec, wall_window=walls.side))
        manifest = replace(self._header(layout), shards=tuple(shards))
        write_text(self.folder / MANIFEST_NAME, manifest.to_json())
        self._discard(_names(manifest))
        seconds = time.perf_counter() - began
        window = layout.spec.window
        log.info(
            "%s: %d trajectories in %.1f s (%.0f/s); dots %s; walls %s",
            self.label,
            self.source.count,
            seconds,
            self.source.count / seconds,
            "as full frames" if window is None else f"in windows of {window} pixels",
            "per frame"
            if layout.wall_per_frame
            else f"once, {0 if grouped is None else len(grouped[1].bases)} base images",
        )
        return manifest

    def _header(self, layout: Layout) -> Manifest:
        return Manifest(self.description, self.encoding, self.source.count, layout, ())

    def _finished(self) -> Manifest | None:
        """The manifest of this very split if it is there."""
        path = self.folder / MANIFEST_NAME
        if not path.exists():
            return None
        manifest = Manifest.parse(path.read_bytes(), path)
        source, layout = self.source, manifest.layout
        spec = replace(layout.spec, frames=source.frames, height=source.height, width=source.width, scale=source.scale)
        difference = manifest.header().difference(self._header(replace(layout, spec=spec)))
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

    def _first_layout(self) -> Layout:
        """The strongest layout that the first chunk allows."""
        rows = min(self.chunk_rows, self.source.count)
        chunk = self.source.chunk(0, rows)
        layout = strongest_layout(self.source, self.encoding, chunk.locations is not None)
        while isinstance(outcome := encode_chunk(chunk, 0, rows, layout), Misfit):
            layout = self._weaken(layout, outcome)
        return layout

    def _weaken(self, layout: Layout, misfit: Misfit) -> Layout:
        weaker = weaker_layout(layout, misfit)
        if weaker.wall_per_frame != layout.wall_per_frame:
            change = "walls are stored per frame"
        elif weaker.spec.window is None:
            change = "dots are stored as full frames"
        else:
            change = f"windows are {weaker.spec.window} pixels wide"
        # Windows start at one pixel, and the first chunk always widens them: that is measuring, not falling back.
        level = logging.DEBUG if layout.spec.window == 1 and weaker.spec.window is not None else logging.INFO
        log.log(
            level,
            "%s: trajectory %d, step %d: %s: %s",
            self.label,
            misfit.trajectory,
            misfit.step,
            misfit.reason,
            change,
        )
        return weaker

    def _write_shards(self, layout: Layout) -> list[Shard] | Misfit:
        """Write every shard that an earlier run did not finish, or tell the first frame that does not fit."""
        fields = layout.fields()
        row_bytes = sum(np.dtype(field.dtype).itemsize * int(np.prod(field.shape)) for field in fields.values())
        rows = self.shard_rows or _multiple(self.chunk_rows, SHARD_BYTES // row_bytes)
        starts = range(0, self.source.count, rows)
        if len(starts) > 100_000:
            raise InputError(f"{self.label}: shard_rows: {rows} gives {len(starts)} shards, expected at most 100000")
        stops = {first: min(first + rows, self.source.count) for first in starts}
        kept = self._keep_shards(layout, stops)
        records = {f"shard-{first // rows:05d}.json" for first in kept}
        self._discard(records | _names(replace(self._header(layout), shards=tuple(kept.values()))))
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
            tqdm(total=self.source.count, initial=done, desc=self.label, unit="traj", disable=None) as bar,
        ):
            for first in missing:
                shard = self._write_shard(first // rows, first, stops[first], layout, chunks, bar)
                if isinstance(shard, Misfit):
                    return shard
                kept[first] = shard
        return [kept[first] for first in starts]

    def _write_shard(
        self, index: int, first: int, stop: int, layout: Layout, chunks: Iterator[Encoded | Misfit], bar: "tqdm[Never]"
    ) -> Shard | Misfit:
        """Write the next chunks as one shard, then its record."""
        rows = stop - first
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(ArrayWriter(self.folder / f"{name}-{index:05d}.npy", field, rows))
                for name, field in layout.fields().items()
            }
            written = 0
            while written < rows:
                encoded = next(chunks)
                if isinstance(encoded, Misfit):
                    return encoded
                for name, writer in writers.items():
                    writer.write(np.ascontiguousarray(encoded[name]))
                written += len(encoded["wall"])
                bar.update(len(encoded["wall"]))
            shard = Shard(first, rows, {name: writer.finish() for name, writer in writers.items()})
        sync_folder(self.folder)
        record = replace(self._header(layout), shards=(shard,))
        write_text(self.folder / f"shard-{index:05d}.json", record.to_json())
        return shard

    def _keep_shards(self, layout: Layout, stops: dict[int, int]) -> dict[int, Shard]:
        """Shards of an earlier run that belong to this split and still have the recorded bits, by first trajectory."""
        kept = {}
        for record in self._records():
            if record.header() != self._header(layout) or len(record.shards) != 1:
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


def _weakness(layout: Layout) -> tuple[float, bool]:
    """Order of layouts from the smallest to the most general one."""
    window = layout.spec.window
    return (np.inf if window is None else window, layout.wall_per_frame)


def _names(manifest: Manifest) -> set[str]:
    """Every file that the manifest lists."""
    return {file.name for shard in manifest.shards for file in shard.files.values()}


def _multiple(unit: int, most: int) -> int:
    """The largest multiple of `unit` up to `most`, at least one unit. Generators may draw in blocks of 64."""
    return unit * max(1, most // unit)
