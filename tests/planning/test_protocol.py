"""Episodes of the planning protocols: where they start and end, and what a legal path is."""

import numpy as np
import pytest

from jepa_fast.data.two_rooms import WORLD, is_solid, simulate, step
from jepa_fast.planning.protocol import (
    LONGEST_ACTION_PX,
    PROTOCOLS,
    draw_episodes,
    is_legal,
    limited,
)


@pytest.mark.parametrize("held_out", [False, True])
def test_starts_and_goals_are_in_opposite_rooms_at_their_margins(held_out):
    episodes = draw_episodes(2000, seed=1, held_out=held_out)
    columns = WORLD.held_out_wall_columns if held_out else WORLD.wall_columns
    assert set(episodes.wall_x) == set(columns)
    assert episodes.door_y.min() == 10
    assert episodes.door_y.max() == 54
    both = np.stack([episodes.starts, episodes.goals])
    assert both.min() >= np.float32(10.6)
    assert both.max() <= np.float32(53.4)
    sides = both[..., 0] - episodes.wall_x
    assert (sides[0] * sides[1] < 0).all()
    assert abs(sides).min() >= 3.6 - 1e-4
    assert 0.45 < (sides[0] > 0).mean() < 0.55
    assert both[..., 1].mean() == pytest.approx(32, abs=1)


def test_no_start_counts_as_solved():
    for seed in range(3):
        episodes = draw_episodes(1000, seed)
        distances = np.linalg.norm(episodes.starts - episodes.goals, axis=1)
        assert distances.min() > max(protocol.success_px for protocol in PROTOCOLS.values())


def test_an_episode_depends_on_seed_and_number_alone():
    whole, part = draw_episodes(20, seed=4), draw_episodes(3, seed=4, first=11)
    for one, other in zip(whole.rows(slice(11, 14)), part, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(whole.starts, draw_episodes(20, seed=5).starts)


def test_actions_are_shortened_to_the_longest_of_the_data_and_no_other():
    actions = np.random.default_rng(0).normal(0, 2, (10_000, 2)).astype(np.float32)
    short = limited(actions)
    lengths = np.linalg.norm(short.astype(np.float64), axis=1)
    assert lengths.max() <= LONGEST_ACTION_PX
    within = np.linalg.norm(actions.astype(np.float64), axis=1) < 1.79
    np.testing.assert_array_equal(short[within], actions[within])
    cross = short[:, 0] * actions[:, 1] - short[:, 1] * actions[:, 0]
    assert abs(cross).max() < 1e-5


def test_paths_of_the_simulator_are_legal():
    made = simulate("train", 0, 640, seed=0)
    assert is_legal(made.locations, made.wall_x, made.door_y).all()


def test_a_path_that_cuts_the_wall_between_two_free_points_is_not_legal():
    wall_x, door_y = np.array([30, 30, 30]), np.array([20, 20, 20])
    through = [[[28.5, 40], [31.5, 40]], [[28.5, 20], [31.5, 20]], [[5, 5], [3, 5]]]
    paths = np.array(through, np.float32)
    assert not is_solid(paths[:2], 30, 20).any()
    np.testing.assert_array_equal(is_legal(paths, wall_x, door_y), [False, True, False])
    blocked = step(paths[0, 0], paths[0, 1] - paths[0, 0], 30, 20)
    np.testing.assert_array_equal(blocked, paths[0, 0])
