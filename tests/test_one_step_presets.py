"""What holds for every preset whose agent stays or moves."""

import shutil

import numpy as np
import pytest
import torch

from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import load_checkpoint
from tests.one_step_runs import configuration, run


@pytest.mark.parametrize("name", ["features20k", "pixels300k", "wall_apart"])
def test_training_reads_no_location(tmp_path, two_rooms, name):
    """With the simulator's locations destroyed on disk, training gives the same bits."""
    shutil.copytree(two_rooms / "train", tmp_path / "data" / "train")
    files = list((tmp_path / "data" / "train").glob("target.locations-*.npy"))
    assert files
    for path in files:
        np.save(path, np.full_like(np.load(path), np.nan))
    assert np.isnan(open_split(tmp_path / "data" / "train").targets("locations", np.arange(3))).all()
    kept = load_checkpoint(run(tmp_path / "kept", configuration(name, two_rooms)))["model"]
    destroyed = load_checkpoint(run(tmp_path / "destroyed", configuration(name, tmp_path / "data")))["model"]
    assert all(torch.equal(kept[key], destroyed[key]) for key in kept)
