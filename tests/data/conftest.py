"""Small sources of frames with known pixels, and reading a split back with NumPy alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa_fast.data.decoding import decoded_group
from jepa_fast.data.shards import Split
from jepa_fast.data.sources import Chunk, SourceGroup


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

    offset = 0.0
    lengths = None
    is_plain = False
    groups = (SourceGroup("agent", 1), SourceGroup("wall", 1))
    action_size = 2

    @property
    def targets(self) -> tuple[tuple[str, int], ...]:
        return () if self.locations is None else (("locations", 2),)

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
        targets = () if self.locations is None else (self.locations[rows],)
        return Chunk((self.dots[rows][:, :, None], np.expand_dims(self.walls[rows], -3)), self.actions[rows], targets)


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


@dataclass
class GroupSource:
    """Trajectories of any groups of channels, held in memory."""

    arrays: dict[str, np.ndarray]  # [N, T, c, H, W] each
    actions: np.ndarray
    square: bool = False
    scale: float = 0.25
    offset: float = 0.0
    targets: tuple[tuple[str, int], ...] = ()
    description: dict[str, Any] = field(default_factory=lambda: {"made": "in memory"})

    lengths = None
    is_plain = False

    @property
    def groups(self) -> tuple[SourceGroup, ...]:
        return tuple(SourceGroup(name, array.shape[2], self.square) for name, array in self.arrays.items())

    @property
    def action_size(self) -> int:
        return self.actions.shape[2]

    @property
    def first(self) -> np.ndarray:
        return next(iter(self.arrays.values()))

    @property
    def count(self) -> int:
        return len(self.first)

    @property
    def frames(self) -> int:
        return self.first.shape[1]

    @property
    def height(self) -> int:
        return self.first.shape[3]

    @property
    def width(self) -> int:
        return self.first.shape[4]

    def chunk(self, start: int, stop: int) -> Chunk:
        return Chunk(tuple(array[start:stop] for array in self.arrays.values()), self.actions[start:stop])


def draw_group(codec, channels=3, count=24, frames=5, size=(20, 26), window=(4, 6), seed=0) -> np.ndarray:
    """Frames uint8 [N, T, c, H, W] that can be stored by a codec, with windows of at most `window`."""
    random = np.random.default_rng(seed)
    height, width = size
    image = (channels, height, width)
    if codec == "dense":
        return random.integers(0, 256, (count, frames, *image)).astype(np.uint8)
    rooms = random.integers(1, 256, (3, *image)).astype(np.uint8)
    if codec == "static over images":
        # Even, but for specks and a bar: what lies in a window moves no median of a row or column.
        rooms[:] = np.where(random.random(image) < 0.1, rooms[0], 50)
        for bar, room in enumerate(rooms):
            room[:, :, 5 * bar : 5 * bar + 3] = 200
        stills = rooms[random.integers(0, 3, count)]
        for still in stills:
            row, column = random.integers(0, [height - window[0] + 1, width - window[1] + 1])
            still[:, row : row + window[0], column : column + window[1]] = 0
        return np.repeat(stills[:, None], frames, axis=1)
    backgrounds = {
        "static": random.integers(0, 256, (count, *image)),
        "black": np.zeros((count, *image)),
        "one image": np.repeat(rooms[:1], count, axis=0),
        "images": rooms[np.arange(count) % 3],
        "own": random.integers(0, 256, (count, *image)),
    }[codec].astype(np.uint8)
    array = np.repeat(backgrounds[:, None], frames, axis=1)
    if codec == "static":
        return array
    # In distinct places, so that the median of a trajectory's frames is its background.
    places = [
        (row, column)
        for row in range(0, height - window[0] + 1, window[0])
        for column in range(0, width - window[1] + 1, window[1])
    ]
    for trajectory in range(count):
        for step, place in enumerate(random.permutation(len(places))[:frames]):
            row, column = places[place]
            part = random.integers(1, 256, (channels, *window))
            array[trajectory, step, :, row : row + window[0], column : column + window[1]] = part
    return array


@dataclass
class EpisodeSource:
    """Trajectories of any lengths, held in memory: per group a list of [L, c, H, W]."""

    arrays: dict[str, list[np.ndarray]]
    actions: list[np.ndarray]  # [L - 1, A] each
    places: list[np.ndarray]  # [L, 2] each
    scale: float = 0.25
    offset: float = 0.0
    targets: tuple[tuple[str, int], ...] = (("place", 2),)
    description: dict[str, Any] = field(default_factory=lambda: {"made": "in memory"})

    is_plain = False

    @property
    def groups(self) -> tuple[SourceGroup, ...]:
        return tuple(SourceGroup(name, arrays[0].shape[1]) for name, arrays in self.arrays.items())

    @property
    def action_size(self) -> int:
        return self.actions[0].shape[1]

    @property
    def first(self) -> list[np.ndarray]:
        return next(iter(self.arrays.values()))

    @property
    def count(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(episode) for episode in self.first])

    @property
    def frames(self) -> int:
        return int(self.lengths.max())

    @property
    def height(self) -> int:
        return self.first[0].shape[2]

    @property
    def width(self) -> int:
        return self.first[0].shape[3]

    def chunk(self, start: int, stop: int) -> Chunk:
        rows = slice(start, stop)
        return Chunk(
            tuple(np.concatenate(arrays[rows]) for arrays in self.arrays.values()),
            np.concatenate(self.actions[rows]),
            (np.concatenate(self.places[rows]),),
            self.lengths[rows],
        )

    def clip(self, number: int, start: int, frames: int, skip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels [T, C, H, W], actions [T - 1, skip A] and places [T, 2] of a clip, by the plainest means."""
        steps = [start + skip * step for step in range(frames)]
        pixels = [np.concatenate([arrays[number][step] for arrays in self.arrays.values()]) for step in steps]
        actions = [np.concatenate(self.actions[number][step : step + skip]) for step in steps[:-1]]
        return np.stack(pixels), np.stack(actions), np.stack([self.places[number][step] for step in steps])


def draw_lengths(kind: str, lengths, channels=3, action_size=7, seed=0) -> EpisodeSource:
    """Trajectories of these lengths out of frames of that kind."""
    whole = draw_kind(kind, channels, action_size, count=len(lengths), frames=max(lengths), seed=seed)
    random = np.random.default_rng(seed)
    return EpisodeSource(
        {
            name: [row[:length] for row, length in zip(array, lengths, strict=True)]
            for name, array in whole.arrays.items()
        },
        [row[: length - 1] for row, length in zip(whole.actions, lengths, strict=True)],
        [random.standard_normal((length, 2)).astype(np.float32) for length in lengths],
    )


# Codec and base that each kind of frames is to be stored by.
KINDS = {
    "static": ("static", None),
    "static over images": ("static", "images"),
    "black": ("window", "black"),
    "one image": ("window", "images"),
    "images": ("window", "images"),
    "own": ("window", "own"),
    "dense": ("dense", None),
}


def draw_kind(kind: str, channels=3, action_size=7, **sizes) -> GroupSource:
    """Frames of one group called "rgb" of that kind; with a static one a second group moves."""
    arrays = {"rgb": draw_group(kind, channels, **sizes)}
    if kind.startswith("static"):
        arrays["spot"] = draw_group("black", 1, **sizes)
    count, frames = arrays["rgb"].shape[:2]
    actions = np.random.default_rng(5).standard_normal((count, frames - 1, action_size)).astype(np.float32)
    return GroupSource(arrays, actions)


def read_frames(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Dots and walls uint8 [N, T, H, W] of a split, from np.load and the manifest's names."""
    spec = split.spec
    found = []
    for number, group in enumerate(spec.groups):
        images = []
        for shard in split.manifest.shards:
            stored = {
                name.partition(".")[2]: np.load(split.folder / file.name)
                for name, file in shard.files.items()
                if name.startswith(f"{group.name}.")
            }
            shape = (shard.rows, spec.frames, group.channels, spec.height, spec.width)
            if group.codec == "static":
                images.append(np.broadcast_to(stored["pixels"][:, None], shape))
                continue
            if group.codec == "dense":
                images.append(stored["pixels"])
                continue
            whole = np.zeros(shape, np.uint8)
            if group.base != "black":
                base = stored["background"] if group.base == "own" else stored["base"][stored["base_index"]]
                whole[:] = base[:, None]
            height, width = group.window
            for place in np.ndindex(shard.rows, spec.frames):
                row, column = stored["corner"][place]
                whole[place][:, row : row + height, column : column + width] = stored["pixels"][place]
            images.append(whole)
        found.append(np.concatenate(images))
        np.testing.assert_array_equal(decoded_group(split, number, np.arange(split.count)), found[-1])
    return tuple(images[:, :, 0] if images.shape[2] == 1 else images for images in found)


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


@pytest.fixture(name="draw_lengths", scope="session")
def draw_lengths_fixture():
    return draw_lengths


@pytest.fixture(name="draw_kind", scope="session")
def draw_kind_fixture():
    return draw_kind
