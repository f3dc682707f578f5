"""Commands and pieces of Python, each in a process that is forked off one which has imported what most of them need.

A process of its own, with its signals, limits and exit status, in a tenth of the time that `python -m` takes to import
torch. What the start of Python itself is about (its flags, its encoding, the first seconds) takes subprocess.

Apart from the tests, so that a fork has little to import.
"""

import ctypes
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
# Other systems have no fork, or libraries that do not outlive one: there it is a new Python each time.
CAN_FORK = sys.platform == "linux" and hasattr(os, "fork")
# Of Linux's prctl.
PR_SET_PDEATHSIG = 1
# What many commands import, imported once.
PRELOADED = [
    "tests.forked",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
    "jepa_fast.engine.loop",
    "jepa_fast.fitting",
    "jepa_fast.probing.evaluation",
]


class Command:
    """`python WORDS`, under way: what these tests use of subprocess.Popen, with all output kept."""

    def __init__(self, *words: object, cwd: Path = ROOT, **environment: str) -> None:
        """Start it in the folder `cwd`, with `environment` over that of this process, on one thread."""
        self.args = [str(word) for word in words]
        self.returncode: int | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="forked-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        logs = [str(self._folder / name) for name in ("stdout", "stderr")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **environment}
        # Of the process that started this one: no benchmark runs where it is.
        environment.pop("PYTEST_XDIST_WORKER", None)
        self._process = self._forked(cwd, environment, logs) if CAN_FORK else self._spawned(cwd, environment, logs)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def _forked(self, cwd: Path, environment: dict[str, str], logs: list[str]) -> BaseProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=_run, args=(self.args, str(cwd), environment, logs))
        process.start()
        return process

    def _spawned(self, cwd: Path, environment: dict[str, str], logs: list[str]) -> "subprocess.Popen[bytes]":
        system = os.environ.get("JEPA_FAST_SYSTEM")
        hidden = [] if system is None else [str(ROOT / "tests" / "anywhere.py"), system]
        if hidden:
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        with open(logs[0], "wb") as output, open(logs[1], "wb") as errors:
            return subprocess.Popen(
                [sys.executable, *hidden, *self.args], cwd=cwd, env=environment, stdout=output, stderr=errors
            )

    def poll(self) -> int | None:
        """The exit status, or None while it runs; -N where signal N ended it."""
        process = self._process
        self.returncode = process.exitcode if isinstance(process, BaseProcess) else process.poll()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if isinstance(self._process, BaseProcess):
            self._process.join(timeout)
        else:
            self._process.wait(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(shlex.join(self.args), timeout or 0, self.stdout, self.stderr)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has said at its end: output and errors."""
        self.wait(timeout)
        return self.stdout, self.stderr

    @property
    def stdout(self) -> str:
        """Its output so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        """Its errors so far."""
        return self._read("stderr")

    def _read(self, name: str) -> str:
        log = self._folder / name
        return log.read_text(encoding="utf-8") if log.exists() else ""

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            self._process.kill()

    def __enter__(self) -> "Command":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.wait()


def finished(
    *words: object, cwd: Path = ROOT, timeout: float = 300, check: bool = False, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """`python WORDS`, ended; with `check` it has to succeed. Raises subprocess.TimeoutExpired, having killed it."""
    with Command(*words, cwd=cwd, **environment) as command:
        output, errors = command.communicate(timeout)
    assert command.returncode is not None
    done = subprocess.CompletedProcess(command.args, command.returncode, output, errors)
    if check:
        assert done.returncode == 0, errors
    return done


def _run(words: list[str], place: str, environment: dict[str, str], logs: list[str]) -> None:
    """`python WORDS` in this process."""
    # Nothing is left at work where the tests are killed: this ends with its parent, which ends when nobody holds the
    # tests' end of a pipe any more.
    os.close(forkserver._forkserver._forkserver_alive_fd)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    for stream, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), stream)
    # Whoever runs the tests may ignore it, and commands leave that so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    # What a script finds: what is installed, and its own folder; not the project's root.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")]
    for name in [name for name in sys.modules if name.split(".")[0] in ("bench", "research", "scripts", "tests")]:
        del sys.modules[name]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    kind, *rest = words
    if kind == "-m":
        sys.argv, sys.path[:0] = rest, [place]
        # What python -m has not imported before.
        sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [place]
        exec(compile(rest[0], "<block>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:0] = words, [str((Path(place) / kind).parent)]
        runpy.run_path(kind, run_name="__main__")
