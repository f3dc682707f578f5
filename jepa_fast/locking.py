"""One writer per folder, however many processes are started on it, and on however many machines.

A lock file says who writes. Where two processes see each other's file locks, which is within a machine and on most
network file systems, the operating system decides: its lock ends with the holder, however that ends. Other file
systems keep such locks to each machine, or have none. So a holder also touches its file now and then, and one on
another machine that has not done so for DEAD_AFTER_S is taken to be dead.
"""

import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from jepa_fast.errors import InputError, RunError, require
from jepa_fast.platforms import try_lock_file

logger = logging.getLogger(__name__)

LOCK = ".lock"
HEARTBEAT_S, DEAD_AFTER_S = 10.0, 120.0
# How long a process that took a lock over waits for another one that did so at the same time.
SETTLING_S = 1.0

Holder = dict[str, Any]


class Lock:
    """A lock on a folder, held while it is entered; other processes may read there.

    Attributes:
        descriptor: of the lock file; processes that inherit it hold the lock as well.
    """

    def __init__(self, folder: Path, name: str = LOCK) -> None:
        """Lock `folder` by the file `name` in it."""
        self._folder, self._path = folder, folder / name
        self._holder = _this_process()
        self._ended = threading.Event()
        self.descriptor = -1

    def __enter__(self) -> "Lock":
        """Take the lock, or that of a dead process over, with a line.

        Raises:
            InputError: another process holds it; its number, host and since when.
            OSError: the folder cannot be written.
        """
        while self.descriptor < 0:
            descriptor, is_new = _open(self._path)
            try:
                if self._take(descriptor, is_new):
                    self.descriptor = descriptor
            finally:
                if self.descriptor < 0:
                    os.close(descriptor)
        threading.Thread(target=self._beat, name=f"heartbeat of {self._path}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # The thread is not waited for: this may run wherever a generator that holds the lock is collected.
        self._ended.set()
        if self.is_held():
            if os.name != "nt":
                self._path.unlink(missing_ok=True)
                os.close(self.descriptor)
            else:
                # There an open file cannot be removed; nor can one that the next process has opened by now.
                os.close(self.descriptor)
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
        else:
            os.close(self.descriptor)
        self.descriptor = -1

    def is_held(self) -> bool:
        """Whether it is still this process's: one that stood still for long is taken to be dead elsewhere."""
        return _read(self._path) == self._holder

    def require_held(self) -> None:
        """To be called before what was worked on for long is written.

        Raises:
            RunError: another process has taken the lock over.
        """
        if not self.is_held():
            other = _read(self._path)
            by = "removed" if other is None else f"taken over by {_described(other)}"
            raise RunError(f"{self._path}: was {by} while this process stood still; it leaves and writes nothing")

    def _take(self, descriptor: int, is_new: bool) -> bool:
        """Whether the lock is this process's now; not so if its file was removed meanwhile.

        Raises:
            InputError: another process holds it.
        """
        free = try_lock_file(descriptor)
        if not _is_at(descriptor, self._path):
            return False
        if free is False:
            raise self._refusal(_read(self._path))
        if is_new:
            self._write(descriptor)
            return True
        other = _read(self._path)
        if other is None:
            # Made by a process that has not written into it yet, or that was killed before it could.
            time.sleep(SETTLING_S)
            other = _read(self._path)
        is_seen_dead = free and other is not None and other["machine"] == self._holder["machine"]
        if not is_seen_dead and not (free and other is None):
            self._require_silent(other)
        logger.warning("%s: taken over from %s, which is gone", self._path, _described(other))
        self._write(descriptor)
        if not is_seen_dead:
            time.sleep(SETTLING_S)
            # Of several that have taken it over, the last one to write has it.
            if not self.is_held():
                raise self._refusal(_read(self._path))
        return True

    def _write(self, descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(self._holder).encode())
            os.fsync(descriptor)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _require_silent(self, other: Holder | None) -> None:
        """Wait until a process that this machine cannot see has been silent for long enough.

        Raises:
            InputError: it gave a sign of life.
        """
        first = seen = _touched(self._path)
        silent_s = _now(self._folder) - seen
        if silent_s < DEAD_AFTER_S:
            what = "%s: held by %s, last seen %.0f s ago; waiting up to %.0f s for a sign of life"
            logger.info(what, self._path, _described(other), max(silent_s, 0), DEAD_AFTER_S - silent_s)
        deadline = time.monotonic() + DEAD_AFTER_S - silent_s
        while seen == first and time.monotonic() < deadline:
            time.sleep(min(1.0, HEARTBEAT_S))
            seen = _touched(self._path)
        if seen != first:
            raise self._refusal(other)

    def _refusal(self, other: Holder | None) -> InputError:
        who = f"{self._folder}: in use by {_described(other)}"
        return InputError(f"{who}, or by one that it started; one at a time writes there")

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            # A network file system may be away for a while.
            with contextlib.suppress(OSError):
                if not self.is_held():
                    return
                os.utime(self._path)


def output(path: Path, flag: str = "--out") -> Lock:
    """The lock on a file that a command is going to write, to be held from before the work on.

    Raises:
        InputError: it can be seen that it cannot be written.
    """
    require(path.is_file() or not path.exists(), flag, str(path), "a file, or none yet")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "no such folder" if not path.parent.exists() else "not permitted"
        raise InputError(f"{flag}: {path} cannot be written ({why})")
    return Lock(path.parent, f".{path.name}.lock")


def _this_process() -> Holder:
    """What a lock file says of its holder."""
    try:
        # Of this start of this machine: containers share host names, and processes do not outlive a start.
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        machine = f"{socket.gethostname()} {uuid.getnode():x}"
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    return who | {"machine": machine, "token": uuid.uuid4().hex}


def _described(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _open(path: Path) -> tuple[int, bool]:
    """The lock file, opened, and whether this process made it. A link in its place is not followed."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags), False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Holder | None:
    """Who holds the lock; None if the file does not say."""
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    fields = {"pid": int, "host": str, "since": str, "machine": str, "token": str}
    right = isinstance(holder, dict) and all(isinstance(holder.get(name), kind) for name, kind in fields.items())
    return holder if right else None


def _touched(path: Path) -> float:
    """When the holder gave its last sign of life, by the file system's clock; 0 where it removed the file."""
    try:
        # Opened, because what a network file system remembers of a closed file may be old.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0


def _now(folder: Path) -> float:
    """The time by the file system's clock."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b" ")
        file.flush()
        return os.fstat(file.fileno()).st_mtime
