"""The losses of 50 steps of four presets, as they were stored: whatever is moved or rewritten, training is the same.

On one thread, by plain PyTorch ops. Where processor, instruction set and torch are those of a stored run, bit for bit;
elsewhere, where libraries sum in another order, within 1e-4 of it.
"""

import json
from pathlib import Path

import pytest
import torch

from jepa_fast.config import RunConfig
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.record import processor
from jepa_fast.engine.step import Trainer
from jepa_fast.presets import preset

# Runs of commit d6d67db: {"processor", "cpu_capability", "torch", "losses": {preset: [50 floats in hexadecimal]}}.
STORED = json.loads((Path(__file__).parent / "losses.json").read_text())
STEPS, BATCH_SIZE, SEED = 50, 8, 3


def stored_run():
    """The stored run of a machine like this one, and whether there is one; else another's."""
    here = (processor(), torch.backends.cpu.get_cpu_capability(), torch.__version__)
    for run in STORED:
        if (run["processor"], run["cpu_capability"], run["torch"]) == here:
            return run["losses"], True
    return STORED[0]["losses"], False


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(STORED[0]["losses"]))
def test_fifty_steps_have_the_stored_losses(name, two_rooms, one_thread):
    config = RunConfig(
        preset=name, recipe=preset(name), seed=SEED, steps=STEPS, batch_size=BATCH_SIZE, amp="off", compile=False,
        device="cpu", data=str(two_rooms), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    split = open_split(two_rooms / "train")
    trainer = Trainer(config, split.spec, group_bases(split, torch.device("cpu")))
    rows = Sampler(split.count, BATCH_SIZE, SEED).steps(0, STEPS)
    losses = [trainer.step(gather(split, each)).metrics[0].item() for each in rows]
    runs, is_same_machine = stored_run()
    expected = [float.fromhex(loss) for loss in runs[name]]
    if is_same_machine:
        assert losses == expected
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=0)
