"""Predicted states of whole splits. The model is handed frame 0 and the actions, nothing else."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa_fast.data.host import evaluation_batches, group_bases
from jepa_fast.data.shards import Split
from jepa_fast.models.gated import AnyEncoded, GatedModel
from jepa_fast.models.registry import AnyWorld


class Rollouts(NamedTuple):
    """N trajectories of T states and where the agent really was. float32, on the CPU."""

    states: Tensor  # [N, T, D]
    locations: Tensor  # [N, T, 2] in pixels


def all_locations(split: Split) -> Tensor:
    """Where the agent really was: float32 [N, T, 2]."""
    return torch.from_numpy(split.targets("locations", np.arange(split.count)))


@torch.no_grad()
def rollout_split(world: AnyWorld, split: Split, name: str, batch_size: int = 256) -> Rollouts:
    """Roll `world` out over every trajectory of `split`, with a progress bar called `name`."""
    device = next(world.parameters()).device
    training = world.training
    world.eval()
    encode = world.batch_encoder(split.spec, group_bases(split, device))
    states = []
    with tqdm(total=split.count, desc=f"rollout {name}", unit="traj", leave=False, dynamic_ncols=True) as bar:
        for batch in evaluation_batches(split, batch_size):
            moved = batch.to(device)
            first = encode(moved.frames(slice(1)), world.dropout_clock)
            states.append(_unroll(world, first, moved.actions).float().cpu())
            bar.update(len(batch.indices))
    world.train(training)
    return Rollouts(torch.cat(states), all_locations(split))


def _unroll(world: AnyWorld, first: AnyEncoded, actions: Tensor) -> Tensor:
    """States [B, T, D] from one encoded frame [B, 1]."""
    if isinstance(world, GatedModel):
        assert not isinstance(first, Tensor)
        return world.unroll(first, actions)
    assert isinstance(first, Tensor)
    return world.unroll(first[:, 0], actions)
