"""Small sources of frames with known pixels, and reading a split back with NumPy alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa_fast.data.encoding import Chunk
from jepa_fast.data.shards import Split


@dataclass
class ArraySource:
    """Trajectories held in memory; remembers which chunks were asked for."""

    dots: np.ndarray
    walls: np.ndarray
    actions: np.ndarray
    locations: np.ndarray | None
    scale: float = 0.5
    description: dict[str, Any] = field(default_factory=lambda: {"made": "in memory"})
    asked: list[tuple[int, int]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.dots)

    @property
    def frames(self) -> int:
        return self.dots.shape[1]

    @property
    def height(self) -> int:
        return self.dots.shape[2]

    @property
    def width(self) -> int:
        return self.dots.shape[3]

    def chunk(self, start: int, stop: int) -> Chunk:
        self.asked.append((start, stop))
        rows = slice(start, stop)
        locations = None if self.locations is None else self.locations[rows]
        return Chunk(self.dots[rows], self.walls[rows], self.actions[rows], locations)


def draw_source(count=40, frames=5, height=20, width=26, side=4, seed=0) -> ArraySource:
    """Dots as full squares of `side` pixels at random places; walls are one of two columns with a gap of 3 rows."""
    random = np.random.default_rng(seed)
    dots = np.zeros((count, frames, height, width), np.uint8)
    for trajectory in range(count):
        for step in range(frames):
            row, column = random.integers(0, [height - side + 1, width - side + 1])
            square = random.integers(1, 256, (side, side))
            dots[trajectory, step, row : row + side, column : column + side] = square
    walls = np.zeros((count, height, width), np.uint8)
    for wall in walls:
        wall[:, random.choice([8, 15])] = 200
        gap = random.integers(0, height - 3)
        wall[gap : gap + 3] = 0
    actions = random.standard_normal((count, frames - 1, 2)).astype(np.float32)
    locations = random.standard_normal((count, frames, 2)).astype(np.float32)
    return ArraySource(dots, walls, actions, locations)


def read_frames(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Dots and walls uint8 [N, T, H, W] of a split, from np.load and the manifest's names."""
    spec = split.spec
    dots, walls = [], []
    for shard in split.manifest.shards:
        stored = {name: np.load(split.folder / file.name) for name, file in shard.files.items()}
        if spec.window is None:
            dots.append(stored["dot"])
        else:
            images = np.zeros((shard.rows, spec.frames, spec.height, spec.width), np.uint8)
            for place in np.ndindex(shard.rows, spec.frames):
                row, column = stored["corner"][place]
                images[place][row : row + spec.window, column : column + spec.window] = stored["window"][place]
            dots.append(images)
        wall = stored["wall"]
        shape = (shard.rows, spec.frames, spec.height, spec.width)
        walls.append(wall if wall.ndim == 4 else np.broadcast_to(wall[:, None], shape))
    return np.concatenate(dots), np.concatenate(walls)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(name="draw_source", scope="session")
def draw_source_fixture():
    return draw_source


@pytest.fixture(name="read_frames")
def read_frames_fixture():
    return read_frames


@pytest.fixture(name="folder_bytes")
def folder_bytes_fixture():
    return folder_bytes
