"""Short runs of the presets whose agent stays or moves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jepa_fast.config import RunConfig
from jepa_fast.engine.loop import train
from jepa_fast.presets import preset
from jepa_fast.runs import create_run


def configuration(name: str, data: Path, **changes: Any) -> RunConfig:
    """Twelve steps of the preset `name` on `data`, but for the changes."""
    config = RunConfig(
        preset=name, recipe=preset(name), seed=3, steps=12, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    return replace(config, **changes)


def run(folder: Path, config: RunConfig) -> Path:
    """Train in the new run folder `folder`."""
    create_run(folder, config)
    train(config, folder)
    return folder
