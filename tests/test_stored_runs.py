"""Runs of version 0.1, commit d6d67db: what they left is read, and they go on to the losses that they had then."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import jepa_fast
from jepa_fast.config import RunConfig
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint
from jepa_fast.engine.record import processor, read_metrics
from jepa_fast.engine.step import Trainer

STORED = Path(__file__).parent / "stored" / "runs"
# Of eight steps; after the third one the state was stored, and the losses of the other five.
DONE, STEPS, BATCH_SIZE, SEED = 3, 8, 8, 3


def resumed(name, folder):
    """A run folder whose newest checkpoint is the stored state."""
    shutil.copytree(STORED / name, folder)
    checkpoint_folder(folder).mkdir()
    shutil.copy(STORED / name / "after-3-steps.pt", checkpoint_folder(folder) / f"step-{DONE:09d}.pt")
    return folder


@pytest.mark.parametrize("name", ["baseline", "ema", "features20k", "wall_apart"])
def test_a_checkpoint_goes_on_to_the_losses_of_then(tmp_path, two_rooms, name):
    folder = resumed(name, tmp_path / "run")
    split, threads = open_split(two_rooms / "train"), torch.get_num_threads()
    trainer = Trainer(RunConfig.load(folder / "config.json"), split.spec, group_bases(split, torch.device("cpu")))
    trainer.restore(load_checkpoint(folder))
    torch.set_num_threads(1)
    rows = Sampler(split.count, BATCH_SIZE, SEED).steps(DONE, STEPS)
    losses = [trainer.step(gather(split, each)).metrics[0].item() for each in rows]
    torch.set_num_threads(threads)
    stored = json.loads((folder / "losses.json").read_text())
    expected = [float.fromhex(loss) for loss in stored["losses"]]
    here = (processor(), torch.backends.cpu.get_cpu_capability(), torch.__version__)
    if here == (stored["processor"], stored["cpu_capability"], stored["torch"]):
        assert losses == expected
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("features20k", {"surprise", "moving", "state_std_mean"}, {"nll", "move_probability", "latent_std_mean"}),
        ("infonce", {"found"}, {"top1"}),
    ],
)
def test_metrics_are_read_by_today_s_names(name, old, new):
    (stored,) = (json.loads(line) for line in (STORED / name / "metrics.jsonl").read_text().splitlines())
    (line,) = read_metrics(STORED / name)
    assert old <= stored.keys()
    assert new <= line.keys()
    assert not old & line.keys()
    assert list(line.values()) == list(stored.values())


def test_models_of_runs_and_exported_ones_are_loaded(tmp_path):
    model = jepa_fast.load(resumed("features20k", tmp_path / "run"))
    exported = jepa_fast.load(STORED / "features20k" / "export")
    assert exported.config == model.config
    assert exported.config.kind == "gated_features"
    assert exported.state_dict().keys() == model.state_dict().keys()
