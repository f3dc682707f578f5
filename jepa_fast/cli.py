"""How every command starts: parse the flags, run, and turn bad input into one line and exit status 2.

A command's arguments are a frozen dataclass, and so is every configuration inside it: tyro makes a flag of each field,
however deep, with the defaults of an instance. Of a union the member that the instance has is taken.
"""

import contextlib
import ctypes
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from jepa_fast.config import require
from jepa_fast.errors import InputError, RunError, printable
from jepa_fast.progress import LogHandler

Arguments = TypeVar("Arguments")
Value = TypeVar("Value")
# A setting that is chosen where it is not given: None as a default, and no value on the command line.
Chosen = Annotated[Value | None, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint="")]
# The data's folder among other settings of the data: --data, as in every command, and --data.path.
DataFolder = Annotated[Path | None, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint="", aliases=("--data",))]


def run(
    main: Callable[[Arguments], None],
    arguments_type: type[Arguments],
    description: str,
    defaults: Callable[[Sequence[str]], Arguments] | None = None,
) -> None:
    """Parse `arguments_type` (a frozen dataclass) from the command line and call `main` with it.

    `defaults` gives the instance that the flags change, from the words of the command line; it may look for a flag with
    `peek`. Exit status: 0 done, 1 a run that cannot go on (RunError, or no memory), 2 bad input (InputError or
    OSError), 130 interrupted. Errors are one line on standard error.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal of ASCII gets a question mark for what it cannot show.
        sys.stdout.reconfigure(errors="replace")
    with _Interrupts() as interrupts:
        try:
            arguments = parse(arguments_type, description, sys.argv[1:], defaults)
            keep_freed_memory()
            handler = LogHandler()
            handler.setFormatter(_Printable("%(message)s"))
            logging.basicConfig(level=logging.INFO, handlers=[handler])
            main(arguments)
        except InputError as error:
            fail(str(error), details=error.details)
        except RunError as error:
            fail(str(error), status=1)
        except BrokenPipeError:
            # Who read the output has seen enough; flushing it fails once more.
            sys.exit(1)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            fail(f"{error.strerror or error}{where}")
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            if interrupts.received:
                # What a library makes of an interrupt.
                sys.exit(130)
            if not _is_out_of_memory(error):
                raise
            said = str(error).strip().splitlines() or [type(error).__name__]
            fail(f"out of memory: {said[0]}", status=1)
        finally:
            _flush()


class _Printable(logging.Formatter):
    """Messages name files, and files have names of any kind."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Interrupts:
    """While entered, Ctrl-C raises KeyboardInterrupt, wherever Python is at that moment."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None
        self._hook = sys.unraisablehook

    def __enter__(self) -> "_Interrupts":
        handlers = (signal.SIG_DFL, signal.default_int_handler)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) in handlers:
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
            sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            sys.unraisablehook = self._hook

    def _interrupt(self, *_: object) -> None:
        self.received = True
        raise KeyboardInterrupt

    def _unraisable(self, raised: Any) -> None:
        """A callback that was interrupted, such as the import system's, cannot raise: it is done once more."""
        if isinstance(raised.exc_value, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        else:
            self._hook(raised)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory is used up, the processor's or the device's."""
    is_torchs = isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    return isinstance(error, MemoryError) or is_torchs


def _flush() -> None:
    """Write out what was printed; nothing, where nobody reads it any more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Or Python would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(
    arguments_type: type[Arguments],
    description: str,
    words: Sequence[str],
    defaults: Callable[[Sequence[str]], Arguments] | None = None,
) -> Arguments:
    """The arguments that `words` ask for. Prints the help and exits if they ask for that.

    Raises:
        InputError: a flag that there is not, or a value that does not do.
    """
    default: Any = tyro.MISSING_NONPROP if defaults is None else defaults(words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = (tyro.conf.AvoidSubcommands,)
            parsed: Arguments
            parsed = tyro.cli(arguments_type, description=description, args=words, default=default, config=config)
            return parsed
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise InputError(_complaint(said.getvalue())) from None


def peek(words: Sequence[str], flag: str) -> str | None:
    """The value of `flag` in the words of a command line, before they are parsed; None where it is not given."""
    value = None
    for word, following in zip_longest(words, words[1:]):
        name, equals, rest = word.partition("=")
        if name == flag:
            value = rest if equals else following
    return value


def differences(given: Any, expected: Any, flag: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two configurations differ: the flag of each such field, the value given and the one expected."""
    if is_dataclass(given) and type(given) is type(expected):
        for each in fields(given):
            name = each.name.replace("_", "-")
            yield from differences(getattr(given, each.name), getattr(expected, each.name), f"{flag}.{name}")
    elif _is_tree(given) and _is_tree(expected) and len(given) == len(expected):
        for number, (one, other) in enumerate(zip(given, expected, strict=True)):
            yield from differences(one, other, f"{flag}.{number}")
    elif isinstance(given, Mapping) and isinstance(expected, Mapping) and given.keys() == expected.keys():
        for name in given:
            yield from differences(given[name], expected[name], f"{flag}.{name}")
    elif given != expected:
        yield flag, given, expected


def _is_tree(value: Any) -> bool:
    """Whether a value is a tuple of configurations, whose fields have flags of their own."""
    return isinstance(value, tuple) and any(is_dataclass(each) for each in value)


def _complaint(box: str) -> str:
    """What tyro drew as a box, as one line: what is wrong, and the flags that may have been meant."""
    # A title, and parts between lines that are drawn with letters where the terminal has nothing else.
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        words = line.strip("│|╭╮╰╯ ")
        if line.startswith("╭") or (words and not words.strip("─-")):
            sections.append([])
        elif words:
            sections[-1].append(words)
    what = " ".join(sections[min(1, len(sections) - 1)])
    meant = [
        line.split()[0].rstrip(",")
        for section in sections[1:]
        if section and section[0].startswith("Perhaps you meant")
        for line in section
        if line.startswith("--")
    ]
    said = re.sub(r"^Error parsing (\w+: (?=\w+\.))?", "", what)
    return said + (f"; did you mean {' or '.join(meant)}?" if meant else "")


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for this process's next allocation; other C libraries are left as they are.

    It gives large blocks back at once otherwise, and a step's next tensor gets pages that must be zeroed again. See
    mallopt(3), malloc.h.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, -1)  # never
        mallopt(top_pad, 2**26)
        mallopt(mmap_max, 0)


def choose_device(flag: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """The device that `--device` means on this machine. Imports torch, so call it after parsing.

    Raises:
        InputError: cuda is asked for by name and torch sees no such device.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    require(flag != "cuda" or has_cuda, "--device", flag, "cpu: torch sees no CUDA device")
    return "cuda" if has_cuda and flag != "cpu" else "cpu"


def explain_device(flag: Literal["auto", "cpu", "cuda"]) -> str:
    """What `choose_device` chose, and why, in words. Imports torch."""
    import torch

    if flag != "auto":
        return f"{flag}, as asked for"
    if torch.cuda.is_available():
        return "cuda, which torch sees"
    if torch.backends.mps.is_available():
        # Latents are watched and probed in float64, and no run has been tried there.
        return "cpu, for torch sees no CUDA device; Apple's GPU is left out: it has no float64, which runs need"
    return "cpu, for torch sees no CUDA device"


def fail(message: str, status: int = 2, details: str = "") -> None:
    """Print `error: message` on standard error, in one line, then any details, and exit with `status`."""
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    if details:
        print(details, file=sys.stderr)
    sys.exit(status)
