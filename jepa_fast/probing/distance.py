"""How errors depend on how close the dot is to what could stop it."""

import numpy as np
import torch
from torch import Tensor

from jepa_fast.data.host import evaluation_batches
from jepa_fast.data.shards import Split
from jepa_fast.probing.results import DistanceBin

# Lower ends of the bins, in pixels.
EDGES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
BATCH = 256  # trajectories


def distances_to_solid(split: Split) -> Tensor:
    """From where the dot really was to the centre of the nearest solid pixel of frame 0, in pixels: [N, T].

    Infinite where nothing is solid.
    """
    found = []
    for batch in evaluation_batches(split, BATCH):
        locations = torch.from_numpy(split.locations(batch.indices.numpy()))
        walls = batch.walls if batch.walls.dim() == 3 else batch.walls[:, 0]
        found += [_nearest(points, wall) for points, wall in zip(locations, walls, strict=True)]
    return torch.stack(found)


def _nearest(points: Tensor, wall: Tensor) -> Tensor:
    """Distances [T] of points [T, 2] to the nearest non-zero pixel of an image [H, W]."""
    solid = wall.nonzero().flip(-1).to(points.dtype)
    if len(solid) == 0:
        return torch.full((len(points),), torch.inf)
    return (points[:, None] - solid).square().sum(dim=-1).amin(dim=1).sqrt()


def errors_by_distance(distances: Tensor, official: Tensor, converged: Tensor) -> list[DistanceBin]:
    """Mean errors over the frames of each bin, from [N, T] each, in the order of EDGES; without empty bins."""
    bins = []
    place = torch.from_numpy(np.searchsorted(EDGES, distances.numpy(), side="right")) - 1
    for index, low in enumerate(EDGES):
        inside = place == index
        if inside.any():
            means = official[inside].mean().item(), converged[inside].mean().item()
            bins.append(DistanceBin(low, int(inside.sum()), *means))
    return bins
