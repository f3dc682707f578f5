"""The Gymnasium environment moves as the generator does and starts the protocol's episodes."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import jepa_fast.envs
from jepa_fast.data.two_rooms import WORLD, render_dots, render_walls, simulate
from jepa_fast.envs import ENVIRONMENT, TwoRooms, TwoRoomsVector
from jepa_fast.errors import InputError
from jepa_fast.planning.protocol import draw_episodes


@pytest.mark.parametrize("observation", ["channels", "rgb"])
# It recommends actions from -1 to 1; these are pixels.
@pytest.mark.filterwarnings("ignore:.*normalized space.*:UserWarning")
def test_gymnasium_accepts_it(observation):
    check_env(gymnasium.make(ENVIRONMENT, observation=observation, render_mode="rgb_array").unwrapped)


def test_it_is_registered_alone_and_vectorised():
    alone = gymnasium.make(ENVIRONMENT, protocol="strict")
    assert isinstance(alone.unwrapped, TwoRooms)
    many = gymnasium.make_vec(ENVIRONMENT, num_envs=3)
    assert isinstance(many, TwoRoomsVector)
    assert many.observation_space.shape == (3, 2, 65, 65)
    assert jepa_fast.envs.ENVIRONMENT == ENVIRONMENT


@pytest.mark.parametrize("split", ["train", "probe_wall/val", "probe_expert/val"])
def test_it_moves_as_the_generator_does_to_the_bit(split):
    made = simulate(split, 0, 64, seed=3)
    env = TwoRoomsVector(64)
    env.reset(seed=0)
    rooms = env._rooms
    rooms.locations[:] = made.locations[:, 0]
    rooms.episodes.wall_x[:], rooms.episodes.door_y[:] = made.wall_x, made.door_y
    for time in range(made.actions.shape[1]):
        frames, *_, info = env.step(made.actions[:, time])
        np.testing.assert_array_equal(info["location"], made.locations[:, time + 1])
    agents, walls = render_dots(made.locations[:, -1:])[:, 0], render_walls(made.wall_x, made.door_y)
    stored = np.stack([agents, walls], axis=1).astype(np.float32) * np.float32(WORLD.scale)
    np.testing.assert_array_equal(frames, stored)


def test_a_row_of_many_is_what_it_is_alone():
    many = TwoRoomsVector(5, protocol="strict", observation="rgb")
    frames, info = many.reset(seed=7)
    alone = TwoRooms(protocol="strict", observation="rgb")
    frame, its_info = alone.reset(seed=7, options={"episode": 3})
    generator = np.random.default_rng(0)
    for _ in range(101):
        np.testing.assert_array_equal(frames[3], frame)
        np.testing.assert_array_equal(info["location"][3], its_info["location"])
        actions = generator.normal(0, 2, (5, 2))
        frames, rewards, _, over, info = many.step(actions)
        if its_info["episode_number"] == 3 and alone._rooms.taken[0] < 100:
            frame, reward, _, its_over, its_info = alone.step(actions[3])
            assert (rewards[3], over[3]) == (reward, its_over)
        else:
            frame, its_info = alone.reset(options={"episode": 8})
    assert its_info["episode_number"] == 8


def test_episodes_are_those_of_the_protocol_one_after_the_other():
    expected = draw_episodes(3, seed=5, held_out=True)
    env = TwoRooms(held_out=True)
    seen = [env.reset(seed=5)[1], env.reset()[1], env.reset()[1]]
    for name, wanted in (("location", expected.starts), ("goal", expected.goals), ("wall_x", expected.wall_x)):
        np.testing.assert_array_equal([info[name] for info in seen], wanted)


def test_too_long_an_action_is_shortened_and_the_budget_truncates():
    env = TwoRooms(protocol="strict")
    _, info = env.reset(seed=1)
    before, count, over = info["location"], 0, False
    direction = np.sign(32 - before[1])
    while not over:
        _, reward, terminated, over, info = env.step(np.array([0, 100 * direction]))
        assert not terminated
        assert reward in (0, 1)
        if count == 0:
            assert abs(info["location"] - before).max() == pytest.approx(1.8, abs=1e-5)
        count += 1
    assert count == 100


@pytest.mark.parametrize("wrong", [{"protocol": "easy"}, {"observation": "grey"}, {"render_mode": "human"}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TwoRooms(**wrong)
