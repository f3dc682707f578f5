"""Files of records as JSON Lines: one object per finished run, appended whole."""

import json
import os
from pathlib import Path
from typing import Any

from jepa_fast.errors import InputError
from jepa_fast.platforms import lock_file


def read(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`, one per line; none if there is no such file.

    A last line without its line feed was cut short when its writer was killed, and is ignored.

    Raises:
        InputError: another line is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    objects = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}); remove the line and measure again") from error
        if not isinstance(found, dict):
            raise InputError(f"{path}, line {number}: found a {type(found).__name__}, expected a JSON object")
        objects.append(found)
    return objects


def append(path: Path, fields: dict[str, Any]) -> None:
    """Add one line to `path`, which is made if need be. Threads and processes may do so at the same time.

    Raises:
        OSError: the system refused; the file is as it was.
    """
    line = json.dumps(fields).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: nothing is left to be written when the file is closed.
    with path.open("a+b", buffering=0) as file:
        lock_file(file.fileno())
        file.seek(0)
        size = file.read().rfind(b"\n") + 1
        file.truncate(size)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise OSError(error.errno, error.strerror, str(path)) from None
