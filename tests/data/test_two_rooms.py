"""Trajectories: reproducible from (seed, split, index) alone, and distributed as their splits say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_fast.data.two_rooms import SPLITS, Trajectories, draw_block, expert_actions, is_solid, simulate, step
from jepa_fast.errors import InputError

WALKS = ["train", "probe_normal/train", "probe_normal/val"]
PUSHES = ["probe_wall/val", "probe_wall_other/val"]


def assert_same_bits(left, right):
    for ours, theirs in zip(left, right, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()


@pytest.fixture(scope="module")
def whole_splits():
    """The first 550 trajectories of every split."""
    return {split: simulate(split, 0, 550, seed=3) for split in SPLITS}


@pytest.fixture(scope="module")
def walks():
    """6,400 trajectories: 100 whole blocks."""
    return simulate("probe_normal/train", 0, 6400, seed=1)


@pytest.fixture(scope="module")
def experts():
    return simulate("probe_expert/train", 0, 1280, seed=1)


def test_the_splits_have_the_published_sizes_and_lengths():
    assert {name: (split.size, split.frames) for name, split in SPLITS.items()} == {
        "train": (147_008, 17),
        "probe_normal/train": (10_000, 17),
        "probe_normal/val": (2_000, 17),
        "probe_wall/val": (2_000, 17),
        "probe_wall_other/val": (2_000, 17),
        "probe_expert/train": (3_000, 91),
        "probe_expert/val": (1_000, 91),
    }


@settings(max_examples=40, derandomize=True, deadline=None)
@given(split=st.sampled_from(list(SPLITS)), start=st.integers(0, 400), count=st.integers(0, 150))
def test_any_range_holds_the_same_bits_as_the_whole(whole_splits, split, start, count):
    whole = whole_splits[split]
    part = simulate(split, start, start + count, seed=3)
    assert_same_bits(part, [field[start : start + count] for field in whole])


def test_single_trajectories_in_any_order_hold_the_same_bits(whole_splits):
    indices = np.random.default_rng(0).permutation(130)
    singles = [simulate("train", index, index + 1, seed=3) for index in indices]
    shuffled = Trajectories(*(np.concatenate(fields) for fields in zip(*singles, strict=True)))
    assert_same_bits(shuffled, [field[:130][indices] for field in whole_splits["train"]])


def test_seeds_splits_and_blocks_share_no_trajectory():
    paths = [
        *(simulate(split, 0, 128, seed).locations[:, :2] for split in SPLITS for seed in (0, 1, 2**64 - 1)),
        simulate("train", 147_008, 147_136, seed=0).locations[:, :2],
    ]
    starts = np.concatenate(paths)[:, 0]
    # Two starts of one world agree in both float32 coordinates about once in 10^13 pairs.
    assert len(np.unique(starts, axis=0)) == len(starts)


@pytest.mark.parametrize("split", SPLITS)
def test_stored_locations_and_actions_reproduce_the_next_location_bit_for_bit(whole_splits, split):
    locations, actions, wall_x, door_y = whole_splits[split]
    frames = SPLITS[split].frames
    assert locations.shape == (550, frames, 2)
    assert actions.shape == (550, frames - 1, 2)
    following = step(locations[:, :-1], actions, wall_x[:, None], door_y[:, None])
    assert following.tobytes() == locations[:, 1:].tobytes()
    assert (following != locations[:, :-1]).any()


@pytest.mark.parametrize("split", SPLITS)
def test_every_location_is_within_the_borders_and_out_of_the_wall(whole_splits, split):
    locations, _, wall_x, door_y = whole_splits[split]
    assert (locations > 4).all()
    assert (locations < 60).all()
    assert not is_solid(locations, wall_x[:, None], door_y[:, None]).any()


@pytest.mark.parametrize("split", SPLITS)
def test_walls_and_doors_stand_in_all_of_their_places_and_nowhere_else(split):
    _, _, wall_x, door_y = simulate(split, 0, 1280, seed=5)
    columns = [37, 38, 39, 40, 41] if split == "probe_wall_other/val" else [*range(20, 37), 42, 43, 44]
    assert np.unique(wall_x).tolist() == columns
    assert np.unique(door_y).tolist() == list(range(10, 55))


@pytest.mark.parametrize("split", WALKS)
def test_walk_actions_are_as_long_as_the_truncated_normal_allows(split):
    lengths = np.linalg.norm(simulate(split, 0, 640, seed=6).actions.astype(np.float64), axis=-1)
    # float32 components: half an ulp of 1.8.
    assert lengths.min() >= 0.2 - 2e-7
    assert lengths.max() <= 1.8 + 2e-7
    # Symmetric truncation at two standard deviations keeps the mean and shrinks the deviation to 0.8796 of 0.4.
    assert lengths.mean() == pytest.approx(1.0, abs=4 * 0.3518 / np.sqrt(lengths.size))
    assert lengths.std() == pytest.approx(0.3518, abs=4 * 0.3518 / np.sqrt(2 * lengths.size))


def test_walks_turn_by_von_mises_angles_also_in_the_door():
    actions = np.concatenate([draw_block("train", block, seed=7)[0].actions for block in range(60)])
    angles = np.arctan2(actions[..., 1], actions[..., 0]).astype(np.float64)
    turns = np.diff(angles, axis=1)
    # Mean of cos of a von Mises angle: I1(5) / I0(5) = 0.89338; the variance of the cosine is below 0.02.
    assert np.cos(turns).mean() == pytest.approx(0.89338, abs=4 * np.sqrt(0.02 / turns.size))
    assert np.sin(turns).mean() == pytest.approx(0.0, abs=4 * np.sqrt(0.18 / turns.size))
    # Halves of a door walk joined without a turn would show 360 times.
    assert (abs(turns) < 1e-6).sum() <= 2


def test_free_walks_set_out_in_every_direction():
    actions = np.concatenate([draw_block("train", block, seed=7)[0].actions[6:, 0] for block in range(60)])
    directions = actions / np.linalg.norm(actions, axis=-1, keepdims=True)
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=4 * np.sqrt(0.5 / len(actions)))
    np.testing.assert_allclose((directions**2).mean(axis=0), 0.5, atol=4 * np.sqrt(0.125 / len(actions)))


def test_free_walks_start_anywhere_and_those_moved_out_of_the_wall_as_often_left_as_right():
    plans = [draw_block("train", block, seed=8)[0] for block in range(1000)]
    starts = np.concatenate([plan.starts[6:] for plan in plans])
    wall_x = np.concatenate([plan.wall_x[6:] for plan in plans])
    x, y = starts.T.astype(np.float64)
    # Of 56 columns those left of the left face, and half of the two between the faces: in the door as in the wall.
    expected = (wall_x - 5 + 1) / 56
    assert ((x < wall_x) - expected).mean() == pytest.approx(0, abs=4 * np.sqrt(0.25 / len(x)))
    assert y.mean() == pytest.approx(32, abs=4 * 56 / np.sqrt(12 * len(y)))
    assert y.std() == pytest.approx(56 / np.sqrt(12), rel=4 * np.sqrt(0.2 / len(y)))


def test_half_of_the_door_walks_go_each_way():
    actions = np.concatenate([draw_block("train", block, seed=7)[0].actions[:6] for block in range(100)])
    assert (actions[..., 0].sum(axis=1) < 0).mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 600))


def test_exactly_the_first_six_plans_of_a_block_are_led_through_the_door():
    reached, free_reached = 0, 0
    for block in range(60):
        starts, actions, wall_x, door_y = draw_block("probe_normal/train", block, seed=1)[0]
        commanded = np.cumsum(np.concatenate([starts[:, None], actions], axis=1, dtype=np.float64), axis=1)
        from_door = abs(commanded - np.stack([wall_x, door_y], axis=-1)[:, None])
        in_door = ((from_door[..., 0] <= 1 + 1e-5) & (from_door[..., 1] <= 4 + 1e-5)).any(axis=1)
        # A start clamped at the border leads past the point it was drawn for.
        clamped = (abs(starts - 32) > 27.98).any(axis=1)
        assert (in_door | clamped)[:6].all()
        reached += in_door[:6].sum()
        free_reached += in_door[6:].sum()
    assert reached > 0.97 * 6 * 60
    assert free_reached < 0.1 * 58 * 60


def test_a_block_shows_each_of_its_plans_once_in_a_mixed_order(walks):
    positions = []
    for block in range(100):
        plans, order = draw_block("probe_normal/train", block, seed=1)
        shown = slice(64 * block, 64 * block + 64)
        np.testing.assert_array_equal(np.sort(order), np.arange(64))
        np.testing.assert_array_equal(walks.locations[shown, 0], plans.starts[order])
        np.testing.assert_array_equal(walks.actions[shown], plans.actions[order])
        np.testing.assert_array_equal(walks.wall_x[shown], plans.wall_x[order])
        np.testing.assert_array_equal(walks.door_y[shown], plans.door_y[order])
        positions.append(np.flatnonzero(order < 6))
    # 600 positions, uniform on 0..63: standard deviation 18.5.
    assert np.mean(positions) == pytest.approx(31.5, abs=4 * 18.5 / np.sqrt(600))


def test_locations_are_spread_as_in_the_reference(walks):
    paths = walks.locations.astype(np.float64)
    spread = ((paths - paths.mean(axis=(0, 1))) ** 2).mean(axis=1)  # [n, 2], one independent number per trajectory
    errors = spread.std(axis=0) / np.sqrt(len(spread))
    # Reference: standard deviations 16.08 and 16.25, each known to 0.1, hence variances to 3.2.
    np.testing.assert_array_less(abs(spread.mean(axis=0) - [16.08**2, 16.25**2]), 3.2 + 3 * errors)


def test_about_a_tenth_of_walks_change_rooms(walks):
    is_left = walks.locations[:, [0, -1], 0] < walks.wall_x[:, None]
    # 9.65 % over 300,000 trajectories of other seeds.
    assert (is_left[:, 0] != is_left[:, 1]).mean() == pytest.approx(0.0965, abs=4 * np.sqrt(0.0965 * 0.9035 / 6400))


@pytest.mark.parametrize("split", PUSHES)
def test_pushes_go_straight_at_the_wall_half_of_each_block_each_way(split):
    locations, actions, wall_x, _ = simulate(split, 0, 1280, seed=2)
    direction = actions[:, 0, 0].astype(np.int64)
    np.testing.assert_array_equal(actions[..., 0], np.repeat(direction[:, None], 16, axis=1))
    assert not actions[..., 1].any()
    assert (np.sort(direction.reshape(-1, 64)) == np.repeat([-1, 1], 32)).all()
    distance = (wall_x - locations[:, 0, 0]) * direction
    # float32 rounding of a start at either end of its range.
    assert distance.min() >= 2 - 2e-6
    assert distance.max() <= 15 + 2e-6
    assert distance.min() < 2.1
    assert distance.max() > 14.9
    assert (locations[..., 1] == locations[:, :1, 1]).all()


@pytest.mark.parametrize("split", PUSHES)
def test_a_quarter_of_pushes_start_at_the_door_and_the_others_above_or_below_it(split):
    locations, _, _, door_y = simulate(split, 0, 3200, seed=2)
    height = locations[:, 0, 1] - door_y
    for share, expected in (((abs(height) < 2), 0.25), ((height < -2), 0.375), ((height > 2), 0.375)):
        assert share.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 3200))


def test_a_third_of_pushes_end_in_the_other_room():
    locations, _, wall_x, _ = simulate("probe_wall/val", 0, 6400, seed=2)
    is_left = locations[:, [0, -1], 0] < wall_x[:, None]
    share = (is_left[:, 0] != is_left[:, 1]).mean()
    # The reference is known to 2 percentage points.
    assert share == pytest.approx(0.335, abs=0.02 + 3 * np.sqrt(0.335 * 0.665 / 6400))


def test_experts_are_never_blocked_and_half_of_each_block_starts_in_each_room(experts):
    steps = np.diff(experts.locations.astype(np.float64), axis=1)
    # Locations are float32: half an ulp of 60 at either end.
    np.testing.assert_allclose(steps, experts.actions, atol=4e-6)
    starts_left = experts.locations[:, 0, 0] < experts.wall_x
    assert (starts_left.reshape(-1, 64).sum(axis=1) == 32).all()


def test_experts_walk_at_nine_tenths_of_a_pixel_and_then_stand_still_in_the_other_room(experts):
    lengths = np.linalg.norm(experts.actions.astype(np.float64), axis=-1)
    full = abs(lengths - 0.9) < 1e-6
    still = lengths == 0
    partial = ~full & ~still
    assert (lengths[partial] >= 0.2 - 1e-6).all()
    assert (lengths[partial] < 0.9).all()
    assert (partial.sum(axis=1) <= 3).all()
    assert (np.diff(still.astype(np.int64), axis=1) >= 0).all()
    arrived = still[:, -1]
    # 95 % of 3,000 trajectories of another seed arrive within the 90 steps.
    assert arrived.mean() == pytest.approx(0.952, abs=4 * np.sqrt(0.952 * 0.048 / len(arrived)))
    is_left = experts.locations[:, [0, -1], 0] < experts.wall_x[:, None]
    assert (is_left[arrived, 0] != is_left[arrived, 1]).all()
    assert (experts.locations[:, -1] == experts.locations[:, -2]).all(axis=-1)[arrived].all()


def test_expert_actions_pass_within_a_fifth_of_a_pixel_of_each_waypoint_in_turn():
    generator = np.random.default_rng(4)
    starts = generator.uniform(4, 60, (200, 2)).astype(np.float32)
    waypoints = generator.uniform(4, 60, (3, 200, 2))
    actions = expert_actions(starts, waypoints, 300).astype(np.float64)
    path = starts[:, None] + np.concatenate([np.zeros((200, 1, 2)), np.cumsum(actions, axis=1)], axis=1)
    earliest = np.zeros(200, np.int64)
    for waypoint in waypoints:
        near = np.linalg.norm(path - waypoint[:, None], axis=-1) < 0.2 + 1e-4
        near &= np.arange(301) >= earliest[:, None]
        assert near.any(axis=1).all()
        earliest = near.argmax(axis=1)
    np.testing.assert_allclose(np.linalg.norm(path[:, -1] - waypoints[-1], axis=-1), 0, atol=0.2 + 1e-4)


def test_expert_actions_from_the_waypoints_themselves_stand_still():
    starts = np.array([[10.0, 20.0]], np.float32)
    assert not expert_actions(starts, np.tile(starts.astype(np.float64), (3, 1, 1)), 5).any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("probe", 0, 1, 0), "probe"),
        (("train", 0, 1, -1), "seed"),
        (("train", 0, 1, 2**64), "seed"),
        (("train", 5, 4, 0), "start, stop"),
        (("train", -1, 4, 0), "start, stop"),
    ],
)
def test_a_bad_request_is_refused_by_the_argument_s_name(arguments, named):
    with pytest.raises(InputError, match=named):
        simulate(*arguments)


def test_an_empty_range_holds_no_trajectories():
    empty = simulate("train", 70, 70, seed=0)
    assert [field.shape for field in empty] == [(0, 17, 2), (0, 16, 2), (0,), (0,)]
