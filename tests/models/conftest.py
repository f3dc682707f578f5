"""Batches drawn at random that keep to the Batch contract, dots and walls at every border and corner included."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jepa_fast.data.batches import Batch, GroupBases, GroupBatch
from jepa_fast.data.host import evaluation_batches
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.shards import open_split
from tests.models.exactness import two_room_groups

SCALE = 0.0942 / 255


def draw_batch(
    seed: int, trajectories: int = 2, frames: int = 3, size: tuple[int, int] = (31, 34), window: int = 5
) -> tuple[Batch, FrameSpec, GroupBases]:
    """A batch with agents in windows and walls over base images, its spec and the bases.

    Walls are frame borders, a bar per base, a gap per wall.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    height, width = size
    dots = draw(256, trajectories, frames, window, window).to(torch.uint8)
    corners = torch.stack([draw(side - window + 1, trajectories, frames) for side in size], dim=-1)
    limits = torch.tensor([height - window, width - window])
    extremes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]) * limits
    corners.view(-1, 2)[: min(4, trajectories * frames)] = extremes[: trajectories * frames]
    bars = [5, width // 2, width // 2 + 1, width - 8]
    bases = torch.zeros(len(bars), height, width, dtype=torch.uint8)
    bases[:, 4], bases[:, -5], bases[:, :, 4], bases[:, :, -5] = 255, 255, 255, 255
    for base, column in zip(bases, bars, strict=True):
        base[:, column : column + 3] = 255
    groups = draw(len(bars), trajectories)
    side = min(9, height // 4)
    wall_corners = torch.stack(
        [draw(height - side + 1, trajectories), torch.tensor(bars)[groups].clamp(max=width - side)], dim=1
    )
    walls = bases[groups]
    for wall, group, (row, _) in zip(walls, groups, wall_corners.tolist(), strict=True):
        wall[row : row + side, bars[group] : bars[group] + 3] = 0
    batch = Batch(
        indices=torch.arange(trajectories),
        groups=(
            GroupBatch(dots[:, :, None], corners.to(torch.uint8)),
            GroupBatch(walls[:, None], wall_corners.to(torch.uint8), groups.to(torch.int32)),
        ),
        actions=torch.randn(trajectories, frames - 1, 2, generator=generator),
    )
    spec = FrameSpec(frames, height, width, SCALE, two_room_groups(window, side), 2, (("locations", 2),))
    return batch, spec, (None, bases[:, None])


@pytest.fixture
def drawn() -> Callable[..., tuple[Batch, FrameSpec, GroupBases]]:
    return draw_batch


@pytest.fixture(scope="module")
def batch_and_spec(two_rooms: Path) -> tuple[Batch, FrameSpec]:
    """All walks against the wall as one batch, and what its frames are like."""
    split = open_split(two_rooms / "probe_wall" / "val")
    return next(evaluation_batches(split, split.count)), split.spec
