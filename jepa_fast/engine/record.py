"""What a run writes down besides checkpoints: environment.json, metrics.jsonl (the truth), TensorBoard (its view)."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

import jepa_fast

Metrics = dict[str, float | int]


class Record:
    """Appends metrics to `folder`, starting after `step`: lines of later steps, left by a killed run, are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "metrics.jsonl"
        _truncate(path, step)
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, metrics: Metrics) -> None:
        """Append one line; `metrics` has a "step"."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if name != "step":
                self._board.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[Metrics]:
    """All lines of the run's metrics.jsonl; a half-written last line is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n") if path.is_file() else []
    return [json.loads(line) for line in lines[:-1]]


def _truncate(path: Path, step: int) -> None:
    """Rewrite metrics.jsonl without the lines after `step`."""
    kept = [metrics for metrics in read_metrics(path.parent) if metrics["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(metrics) + "\n" for metrics in kept))
    os.replace(temporary, path)


def write_environment(folder: Path, device: torch.device) -> None:
    """Write environment.json: versions, device, commit, command line."""
    environment = {
        "command": [sys.executable, *sys.argv],
        "jepa_fast": jepa_fast.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")


def _commit() -> str | None:
    """The commit of the checkout that the package runs from; None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
