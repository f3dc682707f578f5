"""The learned distance: its loss by hand, that it says how many actions lie between, and that planners go by it."""

import numpy as np
import pytest
import torch

from jepa_fast.config import GatedFeaturesConfig
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.models.registry import build_model
from jepa_fast.plan import Arguments, training_split
from jepa_fast.planning.control import ModelWorld, latent_task
from jepa_fast.planning.learned import distance_loss, fit_distance
from jepa_fast.planning.protocol import LONGEST_ACTION_PX, draw_episodes, frames_of


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(GatedFeaturesConfig(dim=6)).eval()


def test_the_loss_is_that_of_its_formula_in_float64():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(3, 5, 2))
    first, second, others = np.array([0, 1, 3]), np.array([2, 4, 4]), np.array([2, 0, 1])
    total = 0.0
    for row in range(3):
        here = points[row, first[row]]
        steps = second[row] - first[row]
        total += (np.linalg.norm(here - points[row, second[row]]) / steps - 1) ** 2 / 3
        total += max(0, 1 - np.linalg.norm(here - points[others[row], second[others[row]]]) / 5) ** 2 / 3
    found = distance_loss(torch.from_numpy(points), *map(torch.from_numpy, (first, second, others)))
    assert found.item() == pytest.approx(total, rel=1e-9)


def test_it_learns_how_many_actions_lie_between(model, two_rooms):
    split = open_split(two_rooms / "train")
    distance = fit_distance(model, split, steps=40)
    again = fit_distance(model, split, steps=40)
    places = np.float32([[20, 32], [22, 32], [28, 32], [44, 32]])
    frames = torch.from_numpy(frames_of(places, np.full(4, 60), np.full(4, 30)))
    with torch.no_grad():
        points = distance(model.latents(model.encode(frames[:, None]))[:, 0])
        assert torch.equal(points, again(model.latents(model.encode(frames[:, None]))[:, 0]))
    near, further, far = (points[1:] - points[0]).norm(dim=1)
    assert 0 < near < further < far


def test_a_task_counts_distances_of_the_points_in_full_steps(model):
    episodes = draw_episodes(1, seed=0)
    where = episodes.wall_x, episodes.door_y
    frames, goals = (torch.from_numpy(frames_of(at, *where)) for at in (episodes.starts, episodes.goals))
    plain = latent_task(model, frames, goals, 2, LONGEST_ACTION_PX)
    scaled = latent_task(model, frames, goals, 2, LONGEST_ACTION_PX, lambda latents: -3 * latents)
    actions = torch.randn(1, 4, 3, 2)
    torch.testing.assert_close(scaled.now(), plain.now(), rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled.distances(actions), plain.distances(actions), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        bent = latent_task(model, frames, goals, 2, LONGEST_ACTION_PX, torch.tanh)
        assert not torch.allclose(bent.distances(actions), plain.distances(actions))
    world = ModelWorld(model, torch.device("cpu"), torch.tanh)
    torch.testing.assert_close(world.tasks(episodes, episodes.starts).now(), bent.now())


def test_an_export_is_asked_where_trajectories_are(tmp_path, two_rooms):
    with pytest.raises(InputError, match="--data: got None"):
        training_split(Arguments(tmp_path))
    assert training_split(Arguments(tmp_path, data=two_rooms)).count > 0
