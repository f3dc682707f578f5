"""A command or a piece of Python, run in a fork of a process that has imported already what most of them need.

Apart from the tests, so that a fork has little to import.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# One thread, nothing compiled at run time.
SETTINGS = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "MPLBACKEND": "Agg"}
# What many commands import, imported once.
PRELOADED = [
    "tests.forked",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
    "jepa_fast.engine.loop",
    "jepa_fast.probing.evaluation",
]


def run_here(words: list[str], place: Path, log: Path) -> None:
    """`python WORDS` in this process, in the folder `place`, with its output in `log`."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(place)
    os.environ |= SETTINGS
    # Of the process that started this one: no benchmark runs where it is.
    os.environ.pop("PYTEST_XDIST_WORKER", None)
    # What a script finds: what is installed, and its own folder; not the project's root.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")]
    for name in [name for name in sys.modules if name.split(".")[0] in ("bench", "research", "scripts", "tests")]:
        del sys.modules[name]
    kind, *rest = words
    if kind == "-m":
        sys.argv, sys.path[:0] = rest, [str(place)]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[:0] = ["-c"], [str(place)]
        exec(compile(rest[0], "<block>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:0] = words, [str((place / kind).parent)]
        runpy.run_path(kind, run_name="__main__")
