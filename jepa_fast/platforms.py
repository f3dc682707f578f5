"""What operating systems offer each in its own way: cores, locks, limits on open files, folders made durable."""

import contextlib
import ctypes
import importlib
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


def _module(name: str) -> ModuleType | None:
    """A module of the standard library that not every system has."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# POSIX has the first two, Windows the last one.
_fcntl, _resource, _msvcrt = _module("fcntl"), _module("resource"), _module("msvcrt")


def is_posix() -> bool:
    """Whether the system has the modules of POSIX: locks of folders, limits on files."""
    return _fcntl is not None and _resource is not None


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def try_lock_file(descriptor: int) -> bool | None:
    """Whether the open file is this process's until it is closed; None where the system, or this disk, has no locks.

    Processes that inherit the descriptor hold it as well. What is in the file can be read and written by others.
    """
    try:
        if _fcntl:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        elif _msvcrt:
            # A byte beyond all content: who has it locked keeps others from reading it.
            os.lseek(descriptor, 2**30, os.SEEK_SET)
            _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
        else:
            return None
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def lock_file(descriptor: int) -> None:
    """Wait until no other process holds the open file, and hold it until it is closed."""
    if _fcntl:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX)
    elif _msvcrt:
        # Tries for ten seconds; what is written under it takes less.
        _msvcrt.locking(descriptor, _msvcrt.LK_LOCK, 1)


def flush_file(descriptor: int) -> None:
    """Make what was written to an open file durable, its times apart where the system tells them apart."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where a folder can be opened: Windows does so by itself."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class OpenFiles(NamedTuple):
    """Limits on the files that a process may have open; infinity: there is none."""

    soft: float  # in force, can be raised
    hard: float  # as far as that


def open_file_limits() -> OpenFiles:
    """The limits of this process; without any where the system tells none."""
    if _resource is None:
        return OpenFiles(math.inf, math.inf)
    limits = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    return OpenFiles(*(math.inf if limit == _resource.RLIM_INFINITY else limit for limit in limits))


def raise_open_file_limit(soft: int) -> None:
    """Raise the limit in force to `soft`, which is at most the hard one."""
    if _resource is not None:
        _, hard = _resource.getrlimit(_resource.RLIMIT_NOFILE)
        _resource.setrlimit(_resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Inside the `with` statement no Ctrl-C reaches this thread or what it starts, on systems that have masks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_interrupts() -> None:
    """In a worker: leave Ctrl-C to its parent where a mask did not see to it, as on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# Of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Keep large freed blocks for the next allocation instead of giving them back to the system, where glibc serves.

    A step on a CPU frees and takes the same tens of megabytes every time; given back, all of their pages are mapped and
    cleared anew. What the process holds at most stays what it was.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    largest = 2**31 - 1  # an int
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, largest)
