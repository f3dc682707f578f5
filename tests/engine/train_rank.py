"""One process of test_distributed: trains the runs in some folders, saving after every step, and ends each early."""

import logging
import sys
from pathlib import Path

import torch

from jepa_fast.config import LoopOptions, RunConfig
from jepa_fast.engine.distributed import joined
from jepa_fast.engine.loop import training

last_step, folders = int(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
torch.set_num_threads(1)
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
with joined("cpu") as ranks:
    for folder in folders:
        config = RunConfig.load(folder / "config.json")
        for progress in training(config, folder, LoopOptions(checkpoint_minutes=0), ranks):
            if progress.done == last_step:
                break
        ranks.barrier()
