"""The world of the agent: its measures, the rules by which an agent moves, and what it looks like.

Coordinates are (x, y) = (column, row) in pixels, origin in the top left pixel's centre, y downwards. One vertical wall
of three columns around `wall_x` parts the two rooms; its door is centred on row `door_y`.
"""

from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """Measures of the world and of the random walks in it; lengths in pixels, actions in pixels per step.

    Attributes:
        size: side of the square image.
        dot_std: standard deviation of the agent's Gaussian.
        borders: row and column of the near and of the far border.
        wall_half_width: the wall fills columns wall_x - 1 to wall_x + 1.
        door_half_height: the door leaves rows door_y - 4 to door_y + 4 open.
        wall_columns: where the wall may stand.
        held_out_wall_columns: where it stands in probe_wall_other alone.
        door_rows: first and last row a door may be centred on.
        turn_concentration: kappa of the von Mises turn from one action to the next.
        length_mean: mean of an action's length before truncation.
        length_std: standard deviation of an action's length before truncation.
        length_range: shortest and longest action of a random walk.
        expert_length: length of an expert's full step.
        block: trajectories drawn together from one random stream.
        door_walks: how many of a block's random walks are sent through the door.
    """

    size: int = 65
    dot_std: float = 1.3
    borders: tuple[int, int] = (4, 60)
    wall_half_width: int = 1
    door_half_height: int = 4
    wall_columns: tuple[int, ...] = (*range(20, 37), 42, 43, 44)
    held_out_wall_columns: tuple[int, ...] = (37, 38, 39, 40, 41)
    door_rows: tuple[int, int] = (10, 54)
    turn_concentration: float = 5.0
    length_mean: float = 1.0
    length_std: float = 0.4
    length_range: tuple[float, float] = (0.2, 1.8)
    expert_length: float = 0.9
    block: int = 64
    door_walks: int = 6

    @property
    def peak(self) -> float:
        """A, the brightest value of an image: the peak of a two-dimensional Gaussian, and the value of walls."""
        return 1 / (2 * pi * self.dot_std**2)

    @property
    def scale(self) -> float:
        """Value of one uint8 step: image = uint8 * scale."""
        return self.peak / 255


WORLD = World()


def is_solid(locations: ArrayLike, wall_x: ArrayLike, door_y: ArrayLike) -> Bool:
    """Whether locations [..., 2] lie in the wall's solid part: faces included, the door's jambs not. Bool [...]."""
    points = np.asarray(locations, np.float64)
    from_wall, from_door = points[..., 0] - np.asarray(wall_x), points[..., 1] - np.asarray(door_y)
    solid: Bool = (abs(from_wall) <= WORLD.wall_half_width) & (abs(from_door) > WORLD.door_half_height)
    return solid


def step(location: ArrayLike, action: ArrayLike, wall_x: ArrayLike, door_y: ArrayLike) -> Float32:
    """Where an agent is after one action: location + action, or exactly where it was if anything is in the way.

    Nothing slides and nothing is clamped. A move is blocked by

    1. a border: the move touches or crosses column or row 4 or 60, or starts on one;
    2. a face of the wall: it strictly crosses x = wall_x - 1 or wall_x + 1 outside [door_y - 4, door_y + 4];
    3. the solid wall: it ends there, as `is_solid` says, faces included.

    A move that leaves the door through a jamb needs no rule of its own: it ends in the wall or crosses a face below or
    above the door. So an agent that starts outside the solid wall is never inside it, and a move is blocked exactly
    where its way meets a border or the wall's interior, or ends on a face.

    The destination is rounded to float32 before the rules see it and they are evaluated in float64: whatever `step`
    returned can be stored as float32 and stepped again, with the same bits. Only sums, products and comparisons are
    used, so a result does not depend on how many moves are made together.

    Args:
        location: finite, [..., 2] (x, y) in pixels; rounded to float32.
        action: finite, [..., 2] pixels per step.
        wall_x: [...], the wall's middle column.
        door_y: [...], the door's middle row.

    Returns:
        float32 [..., 2]; the leading shapes are broadcast.
    """
    start = np.asarray(location, np.float32)
    goal = (start + np.asarray(action, np.float64)).astype(np.float32)
    start = np.broadcast_to(start, goal.shape)
    here, there = start.astype(np.float64), goal.astype(np.float64)

    near, far = WORLD.borders
    blocked = (((here - near) * (there - near) <= 0) | ((here - far) * (there - far) <= 0)).any(axis=-1)

    # From here on the door's centre is the origin, and crossings are compared multiplied by the move's extent instead
    # of divided by it: no division by zero, and mirrored moves give mirrored numbers.
    origin = np.stack(np.broadcast_arrays(np.asarray(wall_x, np.float64), np.asarray(door_y, np.float64)), axis=-1)
    here, there = here - origin, there - origin
    x, y = here[..., 0], here[..., 1]
    next_x, next_y = there[..., 0], there[..., 1]
    move_x, move_y = next_x - x, next_y - y
    for face in (-WORLD.wall_half_width, WORLD.wall_half_width):
        crosses = (x - face) * (next_x - face) < 0
        beside_door = abs(y * move_x + (face - x) * move_y) > WORLD.door_half_height * abs(move_x)
        blocked = blocked | (crosses & beside_door)
    blocked = blocked | is_solid(there, 0, 0)
    return np.where(blocked[..., None], start, goal)


# 255 exp(-d^2 / (2 std^2)) rounds to 0 beyond d = 4.59 pixels, and 9.2 pixels hold at most 10 pixel centres.
DOT_REACH_PX = 4.6
DOT_SIDE_PX = 10
# Frames rendered together: their float64 patches, 100 numbers a frame, stay in the processor's cache.
FRAMES_TOGETHER = 512


def render_dots(locations: Float32) -> UInt8:
    """Images of the agent, uint8 [n, T, 65, 65], for finite locations [n, T, 2].

    A pixel is round(255 exp(-((column - x)^2 + (row - y)^2) / (2 * 1.3^2))), evaluated in float64 as a product of a
    row and a column profile on the 10 x 10 window outside of which it is 0. Times WORLD.scale that is the agent of peak
    1 / (2 pi 1.3^2), to half a step. What lies beyond the image's edge is cut off.
    """
    count, frames, _ = locations.shape
    images = np.zeros((count * frames, WORLD.size, WORLD.size), np.uint8)
    windows = sliding_window_view(images, (DOT_SIDE_PX, DOT_SIDE_PX), axis=(1, 2), writeable=True)
    centres = locations.reshape(-1, 2).astype(np.float64)
    corners = np.ceil(centres - DOT_REACH_PX).clip(0, WORLD.size - DOT_SIDE_PX)  # [n * T, 2] (column, row)
    distances = (corners - centres)[..., None] + np.arange(DOT_SIDE_PX)  # [n * T, 2, 10]
    profiles = np.exp(distances**2 / (-2 * WORLD.dot_std**2))
    corners_int = corners.astype(np.int64)
    for first in range(0, len(images), FRAMES_TOGETHER):
        part = slice(first, first + FRAMES_TOGETHER)
        patches = 255 * profiles[part, 1, :, None] * profiles[part, 0, None, :]
        columns, rows = corners_int[part].T
        windows[part][np.arange(len(rows)), rows, columns] = np.rint(patches, out=patches).astype(np.uint8)
    return images.reshape(count, frames, WORLD.size, WORLD.size)


def render_walls(wall_x: Int64, door_y: Int64) -> UInt8:
    """Images of borders and wall, uint8 [n, 65, 65], 255 where solid: borders one pixel wide, the wall three.

    Args:
        wall_x: [n], the wall's middle column.
        door_y: [n], the door's middle row; the door stays clear of the borders.
    """
    rows = np.arange(WORLD.size)
    room = np.zeros((WORLD.size, WORLD.size), np.uint8)
    room[WORLD.borders, :] = 255
    room[:, WORLD.borders] = 255
    images = np.tile(room, (len(wall_x), 1, 1))
    closed = abs(rows - door_y[:, None]) > WORLD.door_half_height  # [n, 65]
    strips = sliding_window_view(images, 2 * WORLD.wall_half_width + 1, axis=2, writeable=True)  # [n, 65, 63, 3]
    selected = np.arange(len(wall_x))[:, None], rows, (wall_x - WORLD.wall_half_width)[:, None]
    strips[selected] = 255 * closed[..., None].astype(np.uint8)
    return images
