"""Python as it is where the system has no fcntl, no resource, no affinity, no signal masks and no fork.

    python tests/anywhere.py SYSTEM (-m MODULE | -c CODE | FILE) ... [--then (-m MODULE | -c CODE | FILE) ...]

SYSTEM "windows" has the locks of msvcrt, made of those that are hidden; "bare" has none.
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
    """What Windows has for locking, made of what this system has: of open files, between processes too."""
    import fcntl

    module = types.ModuleType("msvcrt")
    module.LK_NBLCK, module.LK_LOCK = 2, 1

    def locking(descriptor, mode, count):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if mode == module.LK_NBLCK else 0))
        except BlockingIOError:
            raise OSError(errno.EACCES, "Permission denied") from None

    module.locking = locking
    return module


def hide(system):
    """Take away what POSIX systems alone have."""
    # What the standard library has imported for itself on this system it may keep.
    import subprocess  # noqa: F401
    from multiprocessing import popen_spawn_posix  # noqa: F401

    if system == "windows":
        sys.modules["msvcrt"] = fake_msvcrt()
    for name in HIDDEN:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hider())
    for module, names in FUNCTIONS.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    # As Windows has it: the name is looked for there before it is looked up in a file of users.
    os.environ.setdefault("USERNAME", "user")


def run(words):
    """What `python WORDS` would do."""
    kind, *rest = words
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<block>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    hide(sys.argv[1])
    for _, words in (words for words in itertools.groupby(sys.argv[2:], lambda word: word != "--then") if words[0]):
        run(list(words))
