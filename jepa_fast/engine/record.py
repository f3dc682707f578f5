"""What a run writes down besides checkpoints.

environment.json, metrics.jsonl and spectra.jsonl are the truth; TensorBoard is a view of it.
"""

import json
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jepa_fast
from jepa_fast import migrations
from jepa_fast.config import MOST_STEPS
from jepa_fast.data.writing import write_text
from jepa_fast.errors import require
from jepa_fast.probing.collapse import Spectrum
from jepa_fast.reading import decode, is_finite, read_json, read_lines

ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SPECTRA = "spectra.jsonl"
# Metrics are float32.
LARGEST = 3.5e38

Metrics = dict[str, float | int]


class Record:
    """Appends to the files in `folder` after `step`: lines of later steps, left by a killed run, are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        # For those who write: reports read what is written here.
        from torch.utils.tensorboard import SummaryWriter

        for name in (METRICS, SPECTRA):
            _truncate(folder / name, step)
        self._metrics = (folder / METRICS).open("a", encoding="utf-8")
        self._spectra = (folder / SPECTRA).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, metrics: Metrics) -> None:
        """Append one line; `metrics` has a "step"."""
        self._metrics.write(json.dumps(metrics) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            if name != "step":
                self._board.add_scalar(name, value, int(metrics["step"]))

    def write_spectrum(self, step: int, spectrum: Spectrum) -> None:
        """Append one line to spectra.jsonl, five digits each: {"step", "rank", "rankme", "size", "std": [D],
        "singular_values": [D]}.
        """
        std, singular_values = (
            [float(f"{value:.5g}") for value in values.tolist()] for values in (spectrum.std, spectrum.singular_values)
        )
        line = {
            "step": step, "rank": spectrum.rank, "rankme": spectrum.rankme, "size": spectrum.size, "std": std,
            "singular_values": singular_values,
        }  # fmt: skip
        self._spectra.write(json.dumps(line) + "\n")
        self._spectra.flush()
        for name, value in (("rank", spectrum.rank), ("rankme", spectrum.rankme), ("std", spectrum.std.mean())):
            self._board.add_scalar(f"latent_{name}", float(value), step)

    def close(self) -> None:
        """Flush and close all files."""
        self._metrics.close()
        self._spectra.close()
        self._board.close()


def read_metrics(folder: Path) -> list[Metrics]:
    """All lines of the run's metrics.jsonl, by today's names; a half-written last line is left out.

    Raises:
        InputError: a line is not one of named, finite numbers, "step" among them.
    """
    found = []
    for where, fields in read_lines(folder / METRICS):
        _require_step(fields, where)
        for name, value in fields.items():
            require(
                is_finite(value) and abs(value) <= LARGEST, f"{where}: {name}", value, "a number in float32's range"
            )
        found.append(migrations.metrics(fields))
    return found


def read_spectra(folder: Path) -> list[dict[str, Any]]:
    """All lines of the run's spectra.jsonl, as `Record.write_spectrum` describes them; older ones have no RankMe.

    Raises:
        InputError: a line is not of that form.
    """
    found = []
    for where, fields in read_lines(folder / SPECTRA):
        _require_step(fields, where)
        for name in ("std", "singular_values"):
            values = decode(list[float], fields.get(name), f"{where}: {name}")
            right = len(values) > 0 and all(0 <= value <= LARGEST for value in values)
            require(right, f"{where}: {name}", values, "a list of numbers from 0 up to float32's largest")
        for name in ("rank", "rankme", "size"):
            value = decode(float, fields.get(name, None if name == "rank" else 1.0), f"{where}: {name}")
            right = 0 <= value <= LARGEST
            require(right, f"{where}: {name}", value, "a number from 0 up to float32's largest")
        found.append(fields)
    return found


def _require_step(fields: dict[str, Any], where: str) -> None:
    step = fields.get("step")
    require(type(step) is int and 0 <= step <= MOST_STEPS, f"{where}: step", step, "a number of steps")


def _truncate(path: Path, step: int) -> None:
    """Rewrite a file of lines without those after `step`, and without a half-written last one."""
    kept = []
    for where, fields in read_lines(path):
        _require_step(fields, where)
        if fields["step"] <= step:
            kept.append(json.dumps(fields) + "\n")
    write_text(path, "".join(kept))


def read_environment(folder: Path) -> dict[str, Any]:
    """What `write_environment` wrote, without the command: where things lay on the machine is nobody's business."""
    return {name: value for name, value in load_environment(folder).items() if name != "command"}


def load_environment(folder: Path) -> dict[str, Any]:
    """What `write_environment` wrote.

    Raises:
        InputError: there is no environment.json, or it is not an object of plain values.
    """
    path = folder / ENVIRONMENT
    found = read_json(path, "the environment of a run")
    require(isinstance(found, dict), str(path), found, "a JSON object")
    environment: dict[str, Any] = found
    for name, value in environment.items():
        values = value if isinstance(value, list) else [value]
        plain = all(one is None or isinstance(one, str | int | float) for one in values)
        require(plain, f"{path}: {name}", value, "a text, a number or a list of them")
    commit = environment.get("commit")
    require(commit is None or isinstance(commit, str), f"{path}: commit", commit, "a text, or null")
    return environment


def write_environment(folder: Path, device: torch.device) -> None:
    """Write environment.json: versions, device, commit, command line."""
    environment = {
        "command": [sys.executable, *sys.argv],
        "jepa_fast": jepa_fast.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
    write_text(folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")


def _commit() -> str | None:
    """The commit of the project's own checkout that the package runs from; None outside one.

    An installed package, or a copy of it, may lie inside the repository of something else.
    """
    root = Path(jepa_fast.__file__).resolve().parents[1]
    # Where git runs a command, a hook for one, it tells it another repository in these.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(root), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top, described = git("rev-parse", "--show-toplevel"), git("show", "HEAD:pyproject.toml")
    if top is None or Path(top).resolve() != root or described is None:
        return None
    try:
        name = tomllib.loads(described).get("project", {}).get("name")
    except (tomllib.TOMLDecodeError, AttributeError):
        return None
    return git("rev-parse", "HEAD") if name == "jepa_fast" else None


def processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
