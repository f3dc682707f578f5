"""What a run writes down besides checkpoints.

environment.json, metrics.jsonl and spectra.jsonl are the truth; TensorBoard is a view of it.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

import jepa_fast
from jepa_fast import migrations
from jepa_fast.probing.collapse import Spectrum

ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SPECTRA = "spectra.jsonl"

Metrics = dict[str, float | int]


class Record:
    """Appends to the files in `folder` after `step`: lines of later steps, left by a killed run, are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        for name in (METRICS, SPECTRA):
            _truncate(folder / name, step)
        self._metrics = (folder / METRICS).open("a")
        self._spectra = (folder / SPECTRA).open("a")
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
    """All lines of the run's metrics.jsonl, by today's names; a half-written last line is left out."""
    return [migrations.metrics(line) for line in _read_lines(folder / METRICS)]


def read_spectra(folder: Path) -> list[dict[str, Any]]:
    """All lines of the run's spectra.jsonl, as `Record.write_spectrum` describes them."""
    return _read_lines(folder / SPECTRA)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().split("\n") if path.is_file() else []
    return [json.loads(line) for line in lines[:-1]]


def _truncate(path: Path, step: int) -> None:
    """Rewrite a file of lines without those after `step`."""
    kept = [line for line in _read_lines(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(temporary, path)


def read_environment(folder: Path) -> dict[str, Any]:
    """What `write_environment` wrote, without the command: where things lay on the machine is nobody's business."""
    environment: dict[str, Any] = json.loads((folder / ENVIRONMENT).read_text())
    del environment["command"]
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
    (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n")


def _commit() -> str | None:
    """The commit of the checkout that the package runs from; None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
