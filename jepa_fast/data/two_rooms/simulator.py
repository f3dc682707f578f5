"""Simulated trajectories of an agent in two rooms: every one a pure function of (seed, split, index).

A replica: the original data set of 2.5 million frames is not public, and this generator was matched to what is known of
it. Results on one are not results on the other.

Trajectories are drawn in blocks of 64, each from its own Philox stream keyed (seed, split id) and counted from
(0, 0, 0, block), so any range can be made again in any order and by any number of workers. Whatever has a quota (walks
sent through the door, direction, starting room) fills it within each block, whose rows are then shuffled. Whatever may
round differently in vectors of another length (sines, long sums) happens within a block; the dynamics, run over all
blocks together, use sums, products and comparisons alone. The bits hold for one NumPy version: NumPy may improve its
distributions between versions.
"""

from dataclasses import dataclass
from math import pi
from typing import Literal, NamedTuple

import numpy as np

from jepa_fast.data.two_rooms.world import WORLD, Bool, Float32, Float64, Int64, is_solid, step
from jepa_fast.errors import InputError


@dataclass(frozen=True)
class Split:
    """What a split holds.

    Attributes:
        id: part of the random streams' key: never shared, never reused.
        size: trajectories of the standard set; an index beyond it is just as well defined.
        frames: T, frames per trajectory.
        policy: how starts and actions are drawn: a random "walk", a "push" against the wall or an "expert" passage.
        held_out_walls: whether walls stand where no other split has them.
    """

    id: int
    size: int
    frames: int
    policy: Literal["walk", "push", "expert"]
    held_out_walls: bool = False


SPLITS = {
    "train": Split(0, 147_008, 17, "walk"),
    "probe_normal/train": Split(1, 10_000, 17, "walk"),
    "probe_normal/val": Split(2, 2_000, 17, "walk"),
    "probe_wall/val": Split(3, 2_000, 17, "push"),
    "probe_wall_other/val": Split(4, 2_000, 17, "push", held_out_walls=True),
    "probe_expert/train": Split(5, 3_000, 91, "expert"),
    "probe_expert/val": Split(6, 1_000, 91, "expert"),
}


class Trajectories(NamedTuple):
    """n trajectories of T frames. `step` takes each location and action to the next location, bit for bit."""

    locations: Float32  # [n, T, 2] (x, y) in pixels
    actions: Float32  # [n, T - 1, 2] (x, y) in pixels per step, as commanded: also where the move was blocked
    wall_x: Int64  # [n] middle column of the wall
    door_y: Int64  # [n] middle row of the door


class Plans(NamedTuple):
    """What is drawn of n trajectories before the dynamics run."""

    starts: Float32  # [n, 2] (x, y) in pixels, never in solid wall
    actions: Float32  # [n, T - 1, 2] pixels per step
    wall_x: Int64  # [n]
    door_y: Int64  # [n]


def simulate(split: str, start: int, stop: int, seed: int) -> Trajectories:
    """Trajectories `start` to `stop - 1` of a split.

    Raises:
        InputError: an unknown split, a seed outside [0, 2^64) or a range that is not 0 <= start <= stop.
    """
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: got {seed}, expected an integer in [0, 2^64)")
    if not 0 <= start <= stop:
        raise InputError(f"start, stop: got {start}, {stop}, expected 0 <= start <= stop")
    frames = SPLITS[split].frames
    first, last = start // WORLD.block, -(-stop // WORLD.block)
    rows = (last - first) * WORLD.block
    starts = np.empty((rows, 2), np.float32)
    actions = np.empty((rows, frames - 1, 2), np.float32)
    wall_x = np.empty(rows, np.int64)
    door_y = np.empty(rows, np.int64)
    for block in range(first, last):
        plans, order = draw_block(split, block, seed)
        shown = slice((block - first) * WORLD.block, (block - first + 1) * WORLD.block)
        starts[shown], actions[shown] = plans.starts[order], plans.actions[order]
        wall_x[shown], door_y[shown] = plans.wall_x[order], plans.door_y[order]
    wanted = slice(start - first * WORLD.block, stop - first * WORLD.block)
    starts, actions, wall_x, door_y = starts[wanted], actions[wanted], wall_x[wanted], door_y[wanted]
    locations = np.empty((stop - start, frames, 2), np.float32)
    locations[:, 0] = starts
    for time in range(frames - 1):
        locations[:, time + 1] = step(locations[:, time], actions[:, time], wall_x, door_y)
    return Trajectories(locations, actions, wall_x, door_y)


def draw_block(split: str, block: int, seed: int) -> tuple[Plans, Int64]:
    """A block's plans as they were drawn, quotas first, and the order in which the split shows them."""
    kind = SPLITS[split]
    generator = np.random.Generator(
        np.random.Philox(key=np.array([seed, kind.id], np.uint64), counter=np.array([0, 0, 0, block], np.uint64))
    )
    columns = np.array(WORLD.held_out_wall_columns if kind.held_out_walls else WORLD.wall_columns)
    wall_x = columns[generator.integers(len(columns), size=WORLD.block)]
    door_y = generator.integers(*WORLD.door_rows, size=WORLD.block, endpoint=True)
    draw = {"walk": _draw_walks, "push": _draw_pushes, "expert": _draw_experts}[kind.policy]
    starts, actions = draw(generator, wall_x, door_y, kind.frames - 1)
    return Plans(starts, actions, wall_x, door_y), generator.permutation(WORLD.block)


def _draw_walks(generator: np.random.Generator, wall_x: Int64, door_y: Int64, steps: int) -> tuple[Float32, Float32]:
    """Starts [n, 2] and actions [n, steps, 2] of random walks, the first six sent through the door.

    A start in solid wall is not kept: a walk through the door is drawn anew as a whole, another one gets a new column,
    from the left and from the right room with equal chances.
    """
    doors = WORLD.door_walks
    door_starts, door_actions = _draw_door_walks(generator, wall_x[:doors], door_y[:doors], steps)
    solid = is_solid(door_starts, wall_x[:doors], door_y[:doors])
    while solid.any():
        door_walls = wall_x[:doors][solid], door_y[:doors][solid]
        door_starts[solid], door_actions[solid] = _draw_door_walks(generator, *door_walls, steps)
        solid = is_solid(door_starts, wall_x[:doors], door_y[:doors])

    wall_x, door_y = wall_x[doors:], door_y[doors:]
    starts = generator.uniform(*WORLD.borders, (len(wall_x), 2)).astype(np.float32)
    # Judged after rounding, and again after each redraw: rounding can move a start onto the wall's face.
    solid = is_solid(starts, wall_x, door_y)
    while solid.any():
        goes_left = generator.random(np.count_nonzero(solid)) < 0.5
        starts[solid, 0] = _draw_x(generator, wall_x[solid], goes_left)
        solid = is_solid(starts, wall_x, door_y)
    actions = _random_walks(generator, generator.uniform(0, 2 * pi, len(wall_x)), steps)
    return np.concatenate([door_starts, starts]), np.concatenate([door_actions, actions])


def _draw_door_walks(
    generator: np.random.Generator, wall_x: Int64, door_y: Int64, steps: int
) -> tuple[Float32, Float32]:
    """Starts [n, 2] and actions [n, steps, 2] of walks through a point in the door, from either side.

    Two random walks leave the point in opposite directions. The first `crossing` actions of the one to the left, walked
    backwards, lead to the point; the other, without its first action, leads on. Half of the walks are turned around.
    A start may lie in solid wall; that is for the caller to see.
    """
    count = len(wall_x)
    jamb = WORLD.door_half_height
    point = np.stack(
        [
            wall_x + generator.uniform(-WORLD.wall_half_width, WORLD.wall_half_width, count),
            door_y + _truncated_normal(generator, 0.0, 1.4, -jamb, jamb, (count,)),
        ],
        axis=-1,
    )
    leftwards = generator.uniform(0.75 * pi, 1.25 * pi, count)
    left = _random_walks(generator, leftwards, steps)
    right = _random_walks(generator, leftwards + pi, steps)
    crossing = generator.integers(1, steps, size=count, endpoint=True)
    turned = generator.random(count) < 0.5

    since = np.arange(steps) - crossing[:, None]  # [n, steps] actions since the door; negative before it
    before_door = (since < 0)[..., None]
    backwards = -np.take_along_axis(left, np.maximum(-1 - since, 0)[..., None], axis=1)
    onwards = np.take_along_axis(right, np.maximum(1 + since, 0)[..., None], axis=1)
    actions = np.where(before_door, backwards, onwards)
    actions = np.where(turned[:, None, None], -actions[:, ::-1], actions)
    before_door = np.where(turned[:, None, None], ~before_door[:, ::-1], before_door)
    starts = point - (actions * before_door).sum(axis=1)
    near, far = WORLD.borders
    return starts.clip(near + 0.01, far - 0.01).astype(np.float32), actions


def _draw_pushes(generator: np.random.Generator, wall_x: Int64, door_y: Int64, steps: int) -> tuple[Float32, Float32]:
    """Starts [n, 2] and actions [n, steps, 2] straight at the wall, half to the right and half to the left.

    A start is 2 to 15 pixels from the wall's middle; a quarter are within 2 rows of the door's, the others half above
    and half below.
    """
    count = len(wall_x)
    near, far = WORLD.borders
    goes_right = np.arange(count) < count // 2
    x_low = np.where(goes_right, np.maximum(near, wall_x - 15), wall_x + 2)
    x_high = np.where(goes_right, wall_x - 2, np.minimum(far, wall_x + 15))
    band = generator.random(count)
    at_door, above = band < 0.25, band >= 0.625
    y_low = np.select([at_door, above], [door_y - 2, np.full(count, near)], door_y + 2)
    y_high = np.select([at_door, above], [door_y + 2, door_y - 2], far)
    starts = generator.uniform(np.stack([x_low, y_low], axis=-1), np.stack([x_high, y_high], axis=-1))
    actions = np.zeros((count, steps, 2), np.float32)
    actions[..., 0] = np.where(goes_right, 1, -1)[:, None]
    return starts.astype(np.float32), actions


def _draw_experts(generator: np.random.Generator, wall_x: Int64, door_y: Int64, steps: int) -> tuple[Float32, Float32]:
    """Starts [n, 2] and actions [n, steps, 2] of passages from room to room, half of them from the left."""
    count = len(wall_x)
    from_left = np.arange(count) < count // 2
    ends = np.empty((2, count, 2))
    ends[0, :, 0] = _draw_x(generator, wall_x, from_left)
    ends[1, :, 0] = _draw_x(generator, wall_x, ~from_left)
    ends[..., 1] = generator.uniform(*WORLD.borders, (2, count))
    starts, goals = ends.astype(np.float32)
    passage_y = door_y + generator.uniform(-2, 2, count)
    direction = np.where(from_left, 1, -1)
    approach = np.stack([wall_x - 1.8 * direction, passage_y], axis=-1)
    departure = np.stack([wall_x + 1.8 * direction, passage_y], axis=-1)
    return starts, expert_actions(starts, np.stack([approach, departure, goals]), steps)


def expert_actions(starts: Float32, waypoints: Float64, steps: int) -> Float32:
    """Actions [n, steps, 2] from starts [n, 2] to each of the waypoints [legs, n, 2] in turn, in 0.9-pixel steps.

    Each leg sets out from where the last one ended and ends with its partial step if that is at least 0.2 pixels, else
    short of its waypoint. After the last leg the agent stands still; what takes more than `steps` is cut off.
    """
    here = starts.astype(np.float64)
    actions = np.zeros((len(starts), steps, 2))
    begun = np.zeros(len(starts), np.int64)
    times = np.arange(steps)
    for waypoint in waypoints:
        way = waypoint - here
        distance = np.sqrt((way**2).sum(axis=-1))
        direction = way / np.maximum(distance, np.finfo(np.float64).tiny)[:, None]
        full_steps = np.floor(distance / WORLD.expert_length)
        rest = distance - full_steps * WORLD.expert_length
        rest = np.where(rest >= WORLD.length_range[0], rest, 0)
        since = times - begun[:, None]  # [n, steps]
        under_way = (since >= 0) & (since < full_steps[:, None])
        lengths = np.where(under_way, WORLD.expert_length, 0) + np.where(since == full_steps[:, None], rest[:, None], 0)
        actions += lengths[..., None] * direction[:, None]
        here = here + (full_steps * WORLD.expert_length + rest)[:, None] * direction
        begun += full_steps.astype(np.int64) + (rest > 0)
    return actions.astype(np.float32)


def _draw_x(generator: np.random.Generator, wall_x: Int64, in_left_room: Bool) -> Float64:
    """Columns [n], uniform over the left or the right room's width."""
    near, far = WORLD.borders
    low = np.where(in_left_room, near, wall_x + WORLD.wall_half_width)
    high = np.where(in_left_room, wall_x - WORLD.wall_half_width, far)
    columns: Float64 = generator.uniform(low, high)
    return columns


def _random_walks(generator: np.random.Generator, first_angles: Float64, steps: int) -> Float32:
    """Actions [n, steps, 2]: von Mises turns after the first angle, independent truncated normal lengths."""
    count = len(first_angles)
    angles = np.empty((count, steps))
    angles[:, 0] = first_angles
    angles[:, 1:] = generator.vonmises(0.0, WORLD.turn_concentration, (count, steps - 1))
    np.cumsum(angles, axis=1, out=angles)
    lengths = _truncated_normal(generator, WORLD.length_mean, WORLD.length_std, *WORLD.length_range, (count, steps))
    actions: Float32 = (lengths[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)).astype(np.float32)
    return actions


def _truncated_normal(
    generator: np.random.Generator, mean: float, std: float, low: float, high: float, shape: tuple[int, ...]
) -> Float64:
    """Normal numbers, those outside [low, high] drawn again."""
    numbers = generator.normal(mean, std, shape)
    outside = (numbers < low) | (numbers > high)
    while outside.any():
        numbers[outside] = generator.normal(mean, std, np.count_nonzero(outside))
        outside = (numbers < low) | (numbers > high)
    return numbers
