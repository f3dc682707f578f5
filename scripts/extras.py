"""Print what extras of pyproject.toml require, a line each: for pip, without installing the project again.

python scripts/extras.py dev,dali
"""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(names: str) -> list[str]:
    """The requirements of these extras, named with commas between; none of no name.

    Raises:
        SystemExit: there is no such extra.
    """
    known = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = [name for name in names.split(",") if name]
    for name in wanted:
        if name not in known:
            raise SystemExit(f"EXTRAS: got {name!r}, expected some of {', '.join(known)}")
    return [line for name in wanted for line in known[name]]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1] if len(sys.argv) > 1 else "")))
