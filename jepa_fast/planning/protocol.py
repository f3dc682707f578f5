"""How planning is measured in the two-room world: which episodes, how long they last and when one has succeeded.

An episode leads from one room to the other. Start and goal are uniform in opposite rooms, START_MARGIN_PX from the
border lines and WALL_MARGIN_PX from the wall's faces; a coin says from which room to which. Wall and door are drawn as
in training, or with the wall where it never stands in training. Every episode is a pure function of (seed, number,
held_out), from a Philox stream of its own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jepa_fast.data.two_rooms.world import WORLD, Bool, Float32, Int64, UInt8, render_dots, render_walls, step
from jepa_fast.errors import require

START_MARGIN_PX = 6.6
WALL_MARGIN_PX = 2.6
# The longest action in planners and in the world: that of the data.
LONGEST_ACTION_PX = WORLD.length_range[1]
# What a stream is for, in the upper half of its key: no two uses share a stream, nor any with the data's splits.
EPISODE_STREAM, HELD_OUT_STREAM, PLANNER_STREAM, POLICY_STREAM = (number << 32 for number in (1, 2, 3, 4))


@dataclass(frozen=True)
class Protocol:
    """When an episode ends and when it has succeeded. It is never stopped early.

    Attributes:
        budget: actions of an episode.
        success_px: distance to the goal at the end, in pixels, below which it has succeeded.
    """

    budget: int
    success_px: float


PROTOCOLS = {"cross_room": Protocol(200, 4.5), "strict": Protocol(100, 1.41)}


class Episodes(NamedTuple):
    """N episodes; coordinates (x, y) in pixels."""

    numbers: Int64  # [N] what they are called: with the seed they say all
    starts: Float32  # [N, 2]
    goals: Float32  # [N, 2]
    wall_x: Int64  # [N]
    door_y: Int64  # [N]

    def rows(self, which: slice | Int64) -> "Episodes":
        """Some of them."""
        return Episodes(
            self.numbers[which], self.starts[which], self.goals[which], self.wall_x[which], self.door_y[which]
        )


def stream(seed: int, purpose: int, *counters: int) -> np.random.Generator:
    """The random stream of a purpose: key (seed, purpose + first counter), counted from the second counter."""
    first, second = (*counters, 0, 0)[:2]
    key, counter = np.array([seed, purpose + first], np.uint64), np.array([0, 0, 0, second], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_episodes(count: int, seed: int = 0, held_out: bool = False, first: int = 0) -> Episodes:
    """Episodes `first` to `first + count - 1`.

    Args:
        count: how many, at least 1.
        seed: of their streams.
        held_out: with the wall in the columns of WORLD.held_out_wall_columns.
        first: number of the first.

    Raises:
        InputError: a count or a seed that there cannot be.
    """
    require(count >= 1, "episodes", count, "at least 1")
    require(0 <= seed < 2**63, "seed", seed, "an integer in [0, 2^63)")
    columns = WORLD.held_out_wall_columns if held_out else WORLD.wall_columns
    low, high = WORLD.borders[0] + START_MARGIN_PX, WORLD.borders[1] - START_MARGIN_PX
    numbers = np.arange(first, first + count)
    ends = np.empty((count, 2, 2), np.float32)
    wall_x, door_y = np.empty(count, np.int64), np.empty(count, np.int64)
    for row, number in enumerate(numbers):
        generator = stream(seed, HELD_OUT_STREAM if held_out else EPISODE_STREAM, int(number))
        wall_x[row] = columns[generator.integers(len(columns))]
        door_y[row] = generator.integers(*WORLD.door_rows, endpoint=True)
        face = WORLD.wall_half_width + WALL_MARGIN_PX
        left, right = generator.uniform(low, wall_x[row] - face), generator.uniform(wall_x[row] + face, high)
        ends[row, :, 0] = (left, right) if generator.random() < 0.5 else (right, left)
        ends[row, :, 1] = generator.uniform(low, high, 2)
    return Episodes(numbers, ends[:, 0], ends[:, 1], wall_x, door_y)


def limited(actions: Float32) -> Float32:
    """Actions [..., 2], those longer than LONGEST_ACTION_PX shortened to it."""
    length = np.sqrt((actions.astype(np.float64) ** 2).sum(axis=-1, keepdims=True))
    # A float32 below the limit, so that rounding does not lengthen what was shortened.
    longest = np.nextafter(np.float32(LONGEST_ACTION_PX), np.float32(0))
    return np.where(length > longest, actions * (longest / np.maximum(length, longest)), actions).astype(np.float32)


def frames_of(locations: Float32, wall_x: Int64, door_y: Int64) -> Float32:
    """Frames float32 [N, 2, 65, 65] of agents at locations [N, 2]: what a model sees, to the bits of the data set."""
    agents = render_dots(locations[:, None])[:, 0]
    return np.stack([agents, render_walls(wall_x, door_y)], axis=1).astype(np.float32) * np.float32(WORLD.scale)


def rgb_frames(locations: Float32, wall_x: Int64, door_y: Int64) -> UInt8:
    """Images uint8 [N, 65, 65, 3] for people: walls grey, the agent in orange on black."""
    agents = render_dots(locations[:, None])[:, 0].astype(np.uint16)
    walls = render_walls(wall_x, door_y).astype(np.uint16)
    channels = [np.maximum(walls * 7 // 10, agents * share // 255) for share in (255, 160, 60)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def is_legal(path: Float32, wall_x: Int64, door_y: Int64) -> Bool:
    """Whether each path [N, T, 2] could be walked: no move of it meets a border or the wall. Bool [N].

    Every move is made once more by the simulator: one that it blocks leads through something.
    """
    here, there = path[:, :-1], path[:, 1:]
    again = step(here, there.astype(np.float64) - here, wall_x[:, None], door_y[:, None])
    free: Bool = (again == there).all(axis=(1, 2))
    return free
