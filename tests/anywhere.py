"""Commands of ours as they run where the system has no fcntl, no resource, no affinity, no signal masks and no fork.

    python tests/anywhere.py SYSTEM COMMAND ... [--then COMMAND ...]

SYSTEM "windows" has a msvcrt with locks of this process's own making; "bare" has neither.
"""

import errno
import importlib.abc
import itertools
import os
import runpy
import signal
import sys
import types

HIDDEN = {"fcntl", "resource", "pwd", "grp", "termios", "syslog"}
FUNCTIONS = {
    os: ("sched_getaffinity", "fork", "forkpty", "sync", "getloadavg"),
    signal: ("pthread_sigmask", "pthread_kill"),
}


class Hider(importlib.abc.MetaPathFinder):
    """Finds no module of HIDDEN."""

    def find_spec(self, name, path, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def fake_msvcrt():
    """What Windows has for locking, here between the descriptors of one process."""
    module, held = types.ModuleType("msvcrt"), {}
    module.LK_NBLCK, module.LK_LOCK = 2, 1

    def locking(descriptor, mode, count):
        file = os.fstat(descriptor)
        if (holder := held.get(file.st_ino, descriptor)) != descriptor:
            try:
                is_open = os.path.samestat(os.fstat(holder), file)
            except OSError:
                is_open = False
            if is_open:
                raise OSError(errno.EACCES, "Permission denied")
        held[file.st_ino] = descriptor

    module.locking = locking
    return module


def hide(system):
    """Take away what POSIX systems alone have."""
    # What the standard library has imported for itself on this system it may keep.
    import subprocess  # noqa: F401
    from multiprocessing import popen_spawn_posix  # noqa: F401

    for name in HIDDEN:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hider())
    for module, names in FUNCTIONS.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    if system == "windows":
        sys.modules["msvcrt"] = fake_msvcrt()


if __name__ == "__main__":
    hide(sys.argv[1])
    for _, words in (words for words in itertools.groupby(sys.argv[2:], lambda word: word != "--then") if words[0]):
        sys.argv = list(words)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
