"""Files of records as JSON Lines: one object per finished run, appended whole."""

import json
import os
from pathlib import Path
from typing import Any

from jepa_fast.platforms import lock_file
from jepa_fast.reading import read_lines


def read(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`, one per line; none if there is no such file.

    A last line without its line feed was cut short when its writer was killed, and is ignored.

    Raises:
        InputError: another line is not a JSON object, or the file cannot be read.
    """
    return [fields for _, fields in read_lines(path)]


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
