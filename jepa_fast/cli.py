"""How every command starts: parse the flags, run, and turn bad input into one line and exit status 2."""

import ctypes
import logging
import sys
from collections.abc import Callable
from typing import Literal, TypeVar

import tyro

from jepa_fast.config import require
from jepa_fast.errors import InputError, RunError

Arguments = TypeVar("Arguments")


def run(main: Callable[[Arguments], None], arguments_type: type[Arguments], description: str) -> None:
    """Parse `arguments_type` (a frozen dataclass) from the command line and call `main` with it.

    Exit status: 0 done, 1 a run that cannot go on (RunError), 2 bad input (InputError or OSError), 130 interrupted.
    Errors are one line on standard error.
    """
    arguments = tyro.cli(arguments_type, description=description)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(arguments)
    except InputError as error:
        fail(str(error))
    except RunError as error:
        fail(str(error), status=1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where}")
    except KeyboardInterrupt:
        sys.exit(130)


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


def fail(message: str, status: int = 2) -> None:
    """Print `error: message` on standard error, in one line, and exit with `status`."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
