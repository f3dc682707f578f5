"""Checkpoints: written whole or not at all, with a checksum; the last two are kept, the newest sound one is used."""

import hashlib
import io
import logging
import os
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
# Under this name a file holds the checksum of all else in it.
CHECKSUM = "checksum"


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
    found = _newest_first(folder)
    sound = [one for one in found if one.name <= path.name]
    # The run would have gone on from later ones if they had opened: they are out of the way, and not lost.
    for later in found[: len(found) - len(sound)]:
        later.replace(later.with_suffix(".damaged"))
    for old in [*sound[KEPT:], *folder.glob("*.tmp")]:
        old.unlink(missing_ok=True)
    return path


def write_whole(path: Path, state: State) -> None:
    """Write `state` and its checksum to `path`; after a crash or a full disk the file is whole or as it was before.

    Raises:
        OSError: it cannot be written.
    """
    # In memory first: what the disk says is then an OSError of ours, not an error inside torch.save.
    content = io.BytesIO()
    torch.save(state | {CHECKSUM: checksum(state)}, content)
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


def read_whole(path: Path) -> State:
    """What `write_whole` wrote to `path`, tensors on the CPU; files of earlier versions have no checksum.

    Raises:
        InputError: it is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged file makes torch's unpickler raise can be anything.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{path}: does not open ({reason})") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: does not open (found a {type(state).__name__}, expected a dict)")
    expected = state.pop(CHECKSUM, None)
    if expected is not None and expected != checksum(state):
        raise InputError(f"{path}: does not open (its content is not what its checksum was made of)")
    return state


def checksum(state: State) -> str:
    """sha256 of all values of a nested state, in order."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"{len(value)} names ".encode())
            for name, one in value.items():
                digest.update(f"{name!r} ".encode())
                add(one)
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)} values ".encode())
            for one in value:
                add(one)
        else:
            digest.update(f"{value!r} ".encode())

    add(state)
    return digest.hexdigest()


def load_checkpoint(run: Path) -> State:
    """The newest checkpoint of `run` that is sound, tensors on the CPU. A damaged one is skipped with a warning.

    Raises:
        InputError: there is none.
    """
    for path in _newest_first(checkpoint_folder(run)):
        try:
            return migrations.checkpoint(read_whole(path))
        except InputError as error:
            logger.warning("%s; trying the one before", error)
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
