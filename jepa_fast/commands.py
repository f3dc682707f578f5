"""The console command: `jepa-fast train ...` is `python -m jepa_fast.train ...`."""

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from jepa_fast import cli

PACKAGE = Path(__file__).parent
HELP = ("-h", "--help")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that the first word names; without one, or for --help, list them all."""
    name, *rest = (sys.argv[1:] if words is None else list(words)) or HELP
    if name in HELP:
        print(overview())
        return
    if module_file(name) is None:
        near = difflib.get_close_matches(name, descriptions(), 1)
        cli.fail(f"{name}: no such command{f'; did you mean {near[0]}?' if near else ''} (jepa-fast --help lists them)")
    sys.argv = [f"jepa-fast {name}", *rest]
    # Under the name that processes which a command starts find it by.
    runpy.run_module(f"jepa_fast.{name}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """What `jepa-fast --help` prints."""
    found = descriptions()
    width = max(map(len, found))
    lines = [f"    {name:<{width}}  {description}" for name, description in found.items()]
    return "\n".join(["usage: jepa-fast COMMAND ...", "", *lines, "", "jepa-fast COMMAND --help explains one."])


def descriptions() -> dict[str, str]:
    """Every command of the package and what it does, found in its files, which are not imported."""
    names = sorted(path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir())
    found = {name: _description(path) for name in names if (path := module_file(name)) is not None}
    return {name: description for name, description in found.items() if description is not None}


def module_file(name: str) -> Path | None:
    """The file of `python -m jepa_fast.NAME`; None where that is no command."""
    if not name.isidentifier():
        return None
    paths = (PACKAGE / f"{name}.py", PACKAGE / name / "__main__.py")
    return next((path for path in paths if path.is_file() and _description(path) is not None), None)


def _description(path: Path) -> str | None:
    """The third argument of a module's `cli.run(main, Arguments, "what it does")`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.run" and len(node.args) > 2:
            return str(ast.literal_eval(node.args[2]))
    return None
