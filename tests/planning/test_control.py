"""Episodes: the same whatever is planned together, never through a wall, and the functions and commands around them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import jepa_fast as jf
from jepa_fast.config import GatedFeaturesConfig, GlimpseConfig
from jepa_fast.errors import InputError
from jepa_fast.models.gated_features import GatedFeatures
from jepa_fast.models.registry import build_model
from jepa_fast.planning.control import ModelWorld, SimulatorWorld, walk, walk_floor
from jepa_fast.planning.planner_config import PlannerConfig
from jepa_fast.planning.protocol import PROTOCOLS, Episodes, Protocol, draw_episodes, frames_of, is_legal
from jepa_fast.planning.results import outcome, wilson
from jepa_fast.planning.tasks import Surprises

TINY = PlannerConfig(horizon=2, execute=1, samples=6, first_samples=6, elites=2, iterations=1, first_iterations=1)
QUICK = PlannerConfig(first_samples=200, first_iterations=8)


@pytest.mark.parametrize("model", [GatedFeaturesConfig(), GlimpseConfig(channels=4, blocks=1, hidden=16)])
def test_planning_batches_of_1_7_and_200_walk_alike(model):
    torch.manual_seed(0)
    world = ModelWorld(build_model(model).eval(), torch.device("cpu"))
    count = 200 if isinstance(model, GatedFeaturesConfig) else 9
    episodes, protocol = draw_episodes(count, seed=3), Protocol(2, 4.5)
    together = walk(world, episodes, protocol, TINY, batch=200)
    for batch, rows in ((1, 30), (7, 50)):
        few = walk(world, episodes.rows(slice(0, rows)), protocol, TINY, batch=batch)
        np.testing.assert_array_equal(few.path, together.path[:rows])
        np.testing.assert_array_equal(few.actions, together.actions[:rows])


def test_the_simulator_as_model_arrives_and_no_path_cuts_a_wall():
    episodes = draw_episodes(8, seed=1)
    walked = walk(SimulatorWorld(), episodes, PROTOCOLS["strict"], QUICK)
    found = outcome("simulator", walked, episodes, PROTOCOLS["strict"])
    assert found.final >= 7
    assert found.legal == 8
    assert found.solved_starts == 0
    assert np.linalg.norm(walked.actions.astype(np.float64), axis=-1).max() <= 1.8


def test_floors_are_low_and_legal():
    episodes, protocol = draw_episodes(200, seed=0), PROTOCOLS["cross_room"]
    for floor, most in (("random", 0.1), ("straight", 0.5)):
        found = outcome(floor, walk_floor(floor, episodes, protocol), episodes, protocol)
        assert found.final / 200 < most
        assert found.legal == 200
        assert found.ever >= found.final


def test_rewarded_is_the_end_not_the_moment():
    episodes, protocol = draw_episodes(1, seed=0), Protocol(2, 4.5)
    path = np.stack([episodes.starts[0], episodes.goals[0], episodes.starts[0]])[None]
    walked = walk_floor("random", episodes, protocol)._replace(path=path)
    found = outcome("away again", walked, episodes, protocol)
    assert (found.ever, found.final) == (1, 0)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (97, 100, 0.9155, 0.9897)],
)
def test_intervals_are_wilsons(successes, count, low, high):
    assert wilson(successes, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_plan_gives_actions_between_two_frames():
    episodes = draw_episodes(2, seed=0)
    where = episodes.wall_x, episodes.door_y
    first, goal = (torch.from_numpy(frames_of(at, *where)) for at in (episodes.starts, episodes.goals))
    model = build_model(GatedFeaturesConfig()).eval()
    config = replace(TINY, horizon=6)
    both = jf.plan(model, first, goal, planner=config)
    assert both.shape == (2, 6, 2)
    torch.testing.assert_close(jf.plan(model, first[0], goal[0], planner=config), both[0])
    with pytest.raises(InputError, match="planner: got 'best'"):
        jf.plan(model, first, goal, planner="best")
    with pytest.raises(InputError, match="first_frame, goal_frame"):
        jf.plan(model, first, goal[0])


def test_plan_is_a_function_and_a_command_of_one_name():
    import jepa_fast.plan

    assert jf.plan is jepa_fast.plan
    assert callable(jf.plan)
    assert jepa_fast.plan.Arguments(run=None).planner == "icem"


def test_a_model_whose_rollouts_are_made_as_a_whole_plans_too():
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 65 * 65, 8))
    with torch.no_grad():
        encoder[1].weight.mul_(1000)
    model = jf.JEPA(encoder=encoder, predictor=jf.MLPPredictor(8, 2)).eval()
    world = ModelWorld(model, torch.device("cpu"))
    walked = walk(world, draw_episodes(2), Protocol(4, 4.5), TINY)
    assert walked.path.shape == (2, 5, 2)
    assert walked.steps > 0


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    from jepa_fast import cli, plan
    from jepa_fast.weights import save_weights

    save_weights(build_model(GatedFeaturesConfig()), tmp_path, {})
    flags = ["--episodes", "2", "--no-page", "--protocol", "strict", "--settings.first-iterations", "1"]
    flags += ["--settings.first-samples", "12", "--settings.samples", "12", "--settings.horizon", "8"]
    arguments = cli.parse(plan.Arguments, "", [str(tmp_path), *flags, "--planner", "mppi"], plan.defaults)
    plan.main(arguments)
    printed = capsys.readouterr().out
    for name in ("model", "simulator as model", "straight at the goal", "random"):
        assert name in printed
    assert "solved at the start: 0; paths through a wall: 0" in printed
    (stored,) = json.loads((tmp_path / "planning.json").read_text())
    assert (stored["planner"]["first_samples"], stored["planner"]["method"]) == (12, "mppi")
    assert [one["episodes"] for one in stored["outcomes"]] == [2] * 4


def test_what_an_action_did_replaces_what_the_model_says_nearby_and_nowhere_else():
    surprises = Surprises(
        latents=torch.tensor([[[0.0, 0.0], [torch.nan, torch.nan]]]),
        actions=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
        moves=torch.tensor([[[0.0, 0.25], [9.0, 9.0]]]),
    )
    before = torch.tensor([[[0.1, 0.0], [0.1, 0.0], [3.0, 0.0]]])
    actions = torch.tensor([[[0.5, 0.1], [-0.5, 0.1], [0.5, 0.1]]])
    found = surprises.corrected(before, actions, before + actions, torch.tensor([1.0]))
    expected = torch.tensor([[[0.1, 0.25], [-0.4, 0.1], [3.5, 0.1]]])
    torch.testing.assert_close(found, expected)


class Blind(GatedFeatures):
    """A model that knows nothing of walls."""

    def transition(self, encoded, actions):
        found = super().transition(encoded, actions)
        return found._replace(log_move=torch.zeros_like(found.log_move))


@pytest.mark.parametrize("careful", [True, False])
def test_a_careful_planner_learns_from_what_it_ran_into(careful):
    torch.manual_seed(0)
    model = Blind(GatedFeaturesConfig(dim=6)).eval()
    half = 32
    with torch.no_grad():
        # A step moves the latent as the encoder has it.
        model.predictor.action.weight.copy_(model.lift.columns() / model.spread)
    # A jamb is in the way, the door beside it: the straight way is wrong by some pixels.
    episodes = Episodes(
        np.array([0]), *(np.array([at], np.float32) for at in ([22, 26], [40, 26])), np.array([half]), np.array([20])
    )
    config = PlannerConfig(careful=careful, first_samples=64, samples=32, first_iterations=4, horizon=30)
    walked = walk(ModelWorld(model, torch.device("cpu")), episodes, Protocol(60, 4.5), config)
    assert len(walked.actions[0]) == 60
    left = np.linalg.norm(walked.path[0, -1] - episodes.goals[0])
    assert is_legal(walked.path, episodes.wall_x, episodes.door_y).all()
    assert (left < 4.5) == careful
