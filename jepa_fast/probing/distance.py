"""How errors depend on how close the agent is to what could stop it."""

import numpy as np
import torch
from torch import Tensor

from jepa_fast.data.host import evaluation_batches, group_bases
from jepa_fast.data.shards import Split
from jepa_fast.data.two_rooms.rooms import solid_images
from jepa_fast.probing.results import DistanceBin

# Lower ends of the bins, in pixels.
EDGES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
BATCH = 256  # trajectories


def distances_to_solid(split: Split) -> Tensor:
    """From where the agent really was to the centre of the nearest solid pixel of frame 0, in pixels: [N, T].

    Infinite where nothing is solid.
    """
    found, bases = [], group_bases(split)
    for batch in evaluation_batches(split, BATCH):
        locations = torch.from_numpy(split.targets("locations", batch.indices.numpy()))
        solid = solid_images(batch, split.spec, bases)
        found += [_nearest(points, image) for points, image in zip(locations, solid, strict=True)]
    return torch.stack(found)


def _nearest(points: Tensor, image: Tensor) -> Tensor:
    """Distances [T] of points [T, 2] to the nearest non-zero pixel of an image [H, W]."""
    solid = image.nonzero().flip(-1).to(points.dtype)
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
