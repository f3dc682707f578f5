"""Predicted latents of whole splits. The model is handed frame 0 and the actions, nothing else."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_fast.data.host import evaluation_batches, group_bases
from jepa_fast.data.shards import Split
from jepa_fast.models.model import Model
from jepa_fast.progress import Progress


class Rollouts(NamedTuple):
    """N trajectories of T latents and where the agent really was. float32, on the CPU."""

    latents: Tensor  # [N, T, D]
    locations: Tensor  # [N, T, 2] in pixels


def all_locations(split: Split) -> Tensor:
    """Where the agent really was: float32 [N, T, 2]."""
    return torch.from_numpy(split.targets("locations", np.arange(split.count)))


@torch.no_grad()
def rollout_split(model: Model, split: Split, name: str, batch_size: int = 256) -> Rollouts:
    """Roll `model` out over every trajectory of `split`, with progress under `name`."""
    torch.backends.cudnn.allow_tf32 = False  # as in training
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    encode = model.batch_encoder(split.spec, group_bases(split, device))
    latents: Tensor | None = None
    done = 0
    with Progress(f"rollout {name}", split.count, "trajectories") as progress:
        for batch in evaluation_batches(split, batch_size):
            moved = batch.to(device)
            first = encode(moved.frames(slice(1)), model.dropout_clock)
            rolled = model.unroll(first, moved.actions)
            if latents is None:
                latents = torch.empty(split.count, *rolled.shape[1:])
            latents[done : done + len(rolled)] = rolled
            done += len(rolled)
            progress.update(len(rolled))
    model.train(training)
    assert latents is not None
    return Rollouts(latents, all_locations(split))
