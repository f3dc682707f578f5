"""A command of the package in a process of its own, and what it cost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jepa_fast

# Between looks at whether a process has ended.
POLL_S = 0.02


class Cost(NamedTuple):
    """How a process ended, and its wall-clock and CPU time from start to end."""

    status: int  # 0 done; the number of a signal, negative, where one ended it
    wall_s: float
    cpu_s: float  # user and system, of all its threads and processes


class Command:
    """`python -m MODULE FLAGS`, started at once, with the code that runs here.

    What it prints goes to the end of `log`, without one to where this process prints. `threads` is OMP_NUM_THREADS, by
    default this process's own. Files of `keep_open` stay open as long as it lives.
    """

    def __init__(
        self,
        module: str,
        *flags: str | Path,
        log: Path | None = None,
        threads: int | None = None,
        keep_open: tuple[int, ...] = (),
    ) -> None:
        environment = os.environ | {"PYTHONPATH": _with_this_package(os.environ.get("PYTHONPATH"))}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        words = [sys.executable, "-m", module, *map(str, flags)]
        self._started = time.monotonic()
        # A terminal's Ctrl-C goes to all its processes but those of another session: whoever starts one stops it.
        if log is None:
            self._process = subprocess.Popen(words, env=environment, pass_fds=keep_open, start_new_session=True)
        else:
            with log.open("ab") as out:
                self._process = subprocess.Popen(
                    words, env=environment, pass_fds=keep_open, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                )  # fmt: skip

    def wait(self) -> Cost:
        """Wait for its end. An interrupt while waiting is passed on, and waited for before it is raised."""
        try:
            return self._wait()
        except KeyboardInterrupt:
            self.stop()
            self._wait()
            raise

    def stop(self) -> None:
        """Ask it to end: training saves first."""
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGTERM)

    def _wait(self) -> Cost:
        # Popen.wait does not tell what a single child used. A wait without end would sleep through an interrupt that
        # came just before the call.
        while True:
            ended, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(POLL_S)
        wall_s = time.monotonic() - self._started
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Cost(self._process.returncode, wall_s, usage.ru_utime + usage.ru_stime)


def _with_this_package(path: str | None) -> str:
    own = str(Path(jepa_fast.__file__).parents[1])
    return own if not path else f"{own}{os.pathsep}{path}"
