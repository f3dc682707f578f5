"""Checkpoints: written whole or not at all, the last two kept, the newest that opens is used."""

import io
import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from jepa_fast import migrations
from jepa_fast.errors import InputError
from jepa_fast.platforms import sync_folder

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{9})\.pt")
KEPT = 2

# What a checkpoint holds: weights, optimiser, generators, position. Nested dicts of tensors and plain values only.
State = dict[str, Any]


def checkpoint_folder(run: Path) -> Path:
    """Where the checkpoints of `run` lie."""
    return run / "checkpoints"


def save_checkpoint(run: Path, step: int, state: State) -> Path:
    """Write `state` as the checkpoint of `step`; older ones but the last are deleted once it is safely on disk.

    What a write left behind that was killed half-way is deleted too.

    Raises:
        OSError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    write_whole(path, state)
    for old in [*_newest_first(folder)[KEPT:], *folder.glob("*.tmp")]:
        old.unlink(missing_ok=True)
    return path


def write_whole(path: Path, state: State) -> None:
    """Write `state` to `path` so that after a crash or a full disk the file is whole or as it was before.

    Raises:
        OSError: it cannot be written.
    """
    # In memory first: what the disk says is then an OSError of ours, not an error inside torch.save.
    content = io.BytesIO()
    torch.save(state, content)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A failed write does not know its file.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_checkpoint(run: Path) -> State:
    """The newest checkpoint of `run` that opens, tensors on the CPU. A damaged one is skipped with a warning.

    Raises:
        InputError: there is none.
    """
    for path in _newest_first(checkpoint_folder(run)):
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
            logger.warning("%s: does not open (%s); trying the one before", path, error)
            continue
        return migrations.checkpoint(state)
    raise InputError(f"{checkpoint_folder(run)}: no checkpoint that opens; expected step-*.pt")


def newest_step(run: Path) -> int | None:
    """Steps that the newest checkpoint of `run` has done; None where there is none."""
    names = [path.name for path in _newest_first(checkpoint_folder(run))]
    found = _NAME.fullmatch(names[0]) if names else None
    return int(found[1]) if found is not None else None


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)
