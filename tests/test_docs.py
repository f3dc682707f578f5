"""What pages and docstrings show is true: links lead somewhere, commands run, Python blocks run.

Commands and blocks run in a copy of the project, on a data set of 80 trajectories and for a few steps
(tests/shown_commands.py tells how each is made small). They are forked off a process that has imported torch already.
"""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import Command
from tests.shown_commands import PAGES, ROOT, SOURCES, Rule, blocks, commands, commands_in, small

LINKED = [*PAGES, ROOT / "CHANGELOG.md"]
COPIED = ("bench", "docs", "examples", "jepa_fast", "kernels", "research", "scripts", "tests")
TRAJECTORIES, STEPS = 80, 4
# Of commands, for folders of their own.
NUMBERS = itertools.count()
# One thread, nothing compiled at run time.
SETTINGS = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "MPLBACKEND": "Agg"}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        linked = page.parent / name if name else page
        if not linked.exists() or (heading and heading not in anchors(linked)):
            missing.append(target)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_that_is_named_exists():
    named = {
        name
        for path in [*LINKED, *SOURCES, ROOT / "Makefile"]
        for name in re.findall(r"\bdocs/[\w-]+\.md", path.read_text())
    }
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_image_is_shown():
    shown = {target for page in LINKED for target in re.findall(r"images/([\w.-]+)", page.read_text())}
    assert {path.name for path in (ROOT / "docs" / "images").iterdir()} == shown


def test_commands_are_found_in_lines_fences_and_code():
    text = "Run `make a` or\n\n    python -m b \\\n        --c  # why\n    x = 1\n\n"
    text += "```\npytest d\n```\n`scripts/e.sh` `make <f>`"
    assert commands_in(text) == ["python -m b --c", "pytest d", "make a"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of the project with a tiny data set, and a tiny run that stopped a step before its end."""
    place = tmp_path_factory.mktemp("project")
    for name in COPIED:
        if (ROOT / name).exists():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, place)
    newest = max((place / "bench" / "results").glob("*/*.json"), key=lambda path: path.name)
    shutil.copy(newest, place / "bench" / "run.json")
    finish("python -m jepa_fast.generate --out data/full --workers 1", place, f"--trajectories {TRAJECTORIES}")
    shutil.copytree(place / "data" / "full", place / "data" / "two_rooms")
    arrays = (
        "import numpy as np\n"
        "rng = np.random.default_rng(0)\n"
        "for states, actions in (('s', 'a'), ('states', 'actions')):\n"
        "    np.save(states, rng.integers(0, 256, (4, 17, 2, 65, 65), np.uint8))\n"
        "    np.save(actions, rng.normal(size=(4, 16, 2)).astype(np.float32))\n"
        "for locations in ('l', 'locations'):\n"
        "    np.save(locations, rng.uniform(5, 60, (4, 17, 2)).astype(np.float32))\n"
    )
    arrays += (
        "import h5py\n"
        "lengths = np.array([5, 9, 20, 17] * 5)\n"
        "with h5py.File('mine.h5', 'w') as file:\n"
        "    file['ep_len'], file['ep_offset'] = lengths, np.cumsum(lengths) - lengths\n"
        "    file['pixels'] = rng.integers(0, 256, (lengths.sum(), 32, 32, 3), np.uint8)\n"
        "    file['action'] = rng.normal(size=(lengths.sum(), 2))\n"
        "    file['proprio'] = rng.normal(size=(lengths.sum(), 4))\n"
    )
    finish_block(arrays, place)
    flags = f"--data data/full --data.batch-size 4 --steps {STEPS} --checkpoint-minutes 0"
    finish("python -m jepa_fast.train --out runs/first", place, flags)
    max((place / "runs" / "first").glob("checkpoints/*")).unlink()
    for name in ("five", "gated_features"):
        shutil.copytree(place / "runs" / "first", place / "runs" / name)
    return place


@pytest.fixture(scope="module")
def done():
    """What commands have said that were run already, None where they succeeded."""
    return {}


@pytest.mark.posix
@pytest.mark.parametrize("shown", commands(), ids=lambda shown: shown.text)
def test_command_runs(shown, place, done):
    command = small(shown.text)
    assert command is not None, f"{', '.join(shown.places)}: no rule in tests/shown_commands.py runs {shown.text!r}"
    if isinstance(command, Rule):
        pytest.skip(str(command.skip))
    if command not in done:  # once, however often it is shown
        done[command] = None
        try:
            finish(command, place)
        except AssertionError as error:
            done[command] = str(error)
    assert done[command] is None, f"{', '.join(shown.places)}: {done[command]}"


@pytest.mark.posix
@pytest.mark.parametrize("shown", blocks(), ids=lambda shown: shown.places[0])
def test_block_runs(shown, place):
    for folder in ("data/mine", "runs/mine"):  # one block's are in the way of the next one's
        shutil.rmtree(place / folder, ignore_errors=True)
    finish_block(re.sub(r"\bsteps=\d+", "steps=2", shown.text), place)


def finish(command: str, place: Path, more: str = "") -> None:
    """Run a command to its end; fail with its output where it fails."""
    number = next(NUMBERS)
    words = shlex.split(f"{command} {more}".replace("OUT", f"outs/{number}"))
    environment = dict(word.split("=") for word in words[:1] if re.match(r"[A-Z_]+=", word))
    words = words[len(environment) :]
    if words[0] == "pytest":
        words = ["python", "-m", *words]
    if words[0] == "python":
        fork(words[1:], place, **environment)
        return
    if words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    environment |= {"PYTHON": sys.executable, "OUT": str(place / "outs" / f"{number}-profile")}
    ended = subprocess.run(
        words, cwd=place, env=os.environ | SETTINGS | environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{command}: exit status {ended.returncode}\n{(ended.stdout + ended.stderr)[-3000:]}"


def finish_block(code: str, place: Path) -> None:
    """Run Python code to its end; fail with its output where it fails."""
    fork(["-c", code], place)


def fork(words: list[str], place: Path, **environment: str) -> None:
    """Run what would follow `python` on a command line, in a fork of a process that has imported torch."""
    command = Command(*words, cwd=place, **(SETTINGS | environment))
    try:
        command.wait(120)
    except subprocess.TimeoutExpired as error:
        command.kill()
        raise AssertionError(f"{shlex.join(words)}: not done after two minutes\n{command.stderr[-3000:]}") from error
    said = command.stdout + command.stderr
    assert command.returncode == 0, f"{shlex.join(words)}: exit status {command.returncode}\n{said[-3000:]}"
