"""Files that appear whole or not at all: temporary name, hash and read back, fsync, rename, fsync the folder.

Hashing and the disk each take about as long as writing does, so a large file has a thread for either.
"""

import errno
import hashlib
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.manifest import Field, FileRecord
from jepa_fast.errors import InputError
from jepa_fast.platforms import flush_file
from jepa_fast.platforms import sync_folder as sync_folder

TEMPORARY_SUFFIX = ".tmp"
# Bytes from which a second thread is worth its while.
LARGE = 1 << 20
# Read back in pieces that stay in the processor's cache.
READ_BACK = 1 << 20
# Bytes after which the disk is set to work; what is left for the end is waited for.
FLUSHED = 1 << 25
# Left free on the disk beyond the shards: manifest, file system overhead, the neighbours.
SPARE_BYTES = 64_000_000


class ArrayWriter:
    """One .npy file of a known number of rows, written front to back, and compared with what was to be written.

    Plain write() instead of a writable mapping: on a full disk a mapping ends the process with SIGBUS, write() raises.
    Used in a `with` statement; leaving it without `finish` removes what was written.

    Raises:
        OSError: with the file's name, whatever the system refused.
    """

    def __init__(self, path: Path, field: Field, rows: int):
        self.path = path
        self.rows = rows
        self.bytes = 0
        self._temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._digest = hashlib.sha256()
        # Their threads start with the first piece that is large enough.
        self._hashing = ThreadPoolExecutor(1, "hashing")
        self._flushing = ThreadPoolExecutor(1, "flushing")
        self._flushed: Future[None] | None = None
        self._piece = bytearray()
        self._flushed_bytes = 0
        self._file = self._temporary.open("w+b", buffering=0)
        header = {"descr": field.dtype, "fortran_order": False, "shape": (rows, *field.shape)}
        np.lib.format.write_array_header_1_0(self, header)

    def write(self, data: bytes | NDArray[Any]) -> None:
        """Append raw bytes, or the rows of a C-contiguous array."""
        if isinstance(data, np.ndarray):
            # Of arrays of no bytes there is no view as bytes.
            view = data.data.cast("B") if data.size else memoryview(b"")
        else:
            view = memoryview(data)
        hashed = self._hashing.submit(self._digest.update, view) if view.nbytes >= LARGE else None
        try:
            self._append(view)
            self._read_back(view)
            self.bytes += view.nbytes
            if self.bytes - self._flushed_bytes >= FLUSHED:
                self._flush_ahead()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        finally:
            if hashed is None:
                self._digest.update(view)
            else:
                hashed.result()

    def _append(self, view: memoryview) -> None:
        done = 0
        while done < view.nbytes:
            done += self._file.write(view[done:])

    def _read_back(self, view: memoryview) -> None:
        """Compare the end of the file with what was written there."""
        self._file.seek(self.bytes)
        for first in range(0, view.nbytes, READ_BACK):
            expected = view[first : first + READ_BACK]
            # Of one size mostly; a new one would be cleared first.
            if len(self._piece) != expected.nbytes:
                self._piece = bytearray(expected.nbytes)
            filled = 0
            while filled < expected.nbytes:
                count = self._file.readinto(memoryview(self._piece)[filled:])
                if not count:
                    break
                filled += count
            if filled < expected.nbytes or self._piece != expected:
                raise OSError(errno.EIO, "reads otherwise than it was written")

    def _flush_ahead(self) -> None:
        """Have what was written so far flushed, once the last flush is over."""
        if self._flushed is not None:
            self._flushed.result()
        self._flushed = self._flushing.submit(flush_file, self._file.fileno())
        self._flushed_bytes = self.bytes

    def finish(self) -> FileRecord:
        """Put the file in its place for good and tell what it holds."""
        try:
            if self._flushed is not None:
                self._flushed.result()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        os.replace(self._temporary, self.path)
        return FileRecord(self.path.name, self.rows, self.bytes, self._digest.hexdigest())

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hashing.shutdown()
        self._flushing.shutdown()
        # On a full disk closing fails once more; the first error is the one to tell.
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def write_array(path: Path, array: NDArray[Any]) -> FileRecord:
    """Write a whole array to `path`."""
    with ArrayWriter(path, Field(array.dtype.str, array.shape[1:]), len(array)) as writer:
        writer.write(np.ascontiguousarray(array))
        return writer.finish()


def write_text(path: Path, text: str) -> None:
    """Write a small text file to `path` and make it, and the renames before it, durable."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    sync_folder(path.parent)


def require_space(folder: Path, needed: int) -> None:
    """Raise InputError unless `needed` bytes and some spare ones are free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise InputError(
            f"{folder}: found {free / 1e9:.2f} GB free, expected {(needed + SPARE_BYTES) / 1e9:.2f} GB for the shards"
        )
