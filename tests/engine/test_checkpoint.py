"""Checkpoints are whole, the last two are kept, and damage is survived."""

import logging
import os

import pytest
import torch

from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from jepa_fast.errors import InputError


def test_the_newest_of_the_last_two_is_loaded(tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.full((3,), float(step))})
    names = sorted(path.name for path in checkpoint_folder(tmp_path).iterdir())
    assert names == ["step-000000002.pt", "step-000000010.pt"]
    state = load_checkpoint(tmp_path)
    assert state["step"] == 10
    assert torch.equal(state["weights"], torch.full((3,), 10.0))


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, caplog, damage):
    save_checkpoint(tmp_path, 1, {"step": 1})
    newest = save_checkpoint(tmp_path, 2, {"step": 2, "weights": torch.zeros(1000)})
    newest.write_bytes(newest.read_bytes()[:-700] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path)["step"] == 1
    assert "step-000000002.pt: does not open" in caplog.text


def test_a_failed_write_leaves_the_earlier_checkpoint_and_no_litter(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {"step": 2})
    monkeypatch.undo()
    assert [path.name for path in checkpoint_folder(tmp_path).iterdir()] == ["step-000000001.pt"]
    assert load_checkpoint(tmp_path)["step"] == 1


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}.*no checkpoint that opens"):
        load_checkpoint(tmp_path)


def test_a_pickle_with_code_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    save_checkpoint(tmp_path, 1, {"step": Payload()})
    with pytest.raises(InputError, match="no checkpoint that opens"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()
