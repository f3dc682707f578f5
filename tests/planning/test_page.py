"""The page of planned episodes: failures first, imagined places near the real ones, nothing runs but its own script."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_fast.config import GatedFeaturesConfig
from jepa_fast.models.registry import build_model
from jepa_fast.planning.control import ModelWorld, walk
from jepa_fast.planning.page import FRAME_MS, Places, write_page
from jepa_fast.planning.planner_config import PlannerConfig
from jepa_fast.planning.protocol import Protocol, draw_episodes, frames_of
from jepa_fast.planning.results import Planning, outcome


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(GatedFeaturesConfig(dim=6)).eval()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    config = PlannerConfig(horizon=6, execute=3, samples=12, first_samples=12, iterations=1, first_iterations=1)
    episodes, protocol = draw_episodes(3, seed=1), Protocol(6, 4.5)
    walked = walk(ModelWorld(model, torch.device("cpu")), episodes, protocol, config, keep_imagined=True)
    path = walked.path.copy()
    path[1, -1] = episodes.goals[1]
    walked = walked._replace(path=path)
    result = Planning("cross_room", False, 1, config, (outcome("model", walked, episodes, protocol),))
    return episodes, walked, write_page([(result, episodes, walked)], model, folder, gifs=1)


def test_places_are_read_off_latents(model):
    episodes = draw_episodes(20, seed=2)
    frames = torch.from_numpy(frames_of(episodes.starts, episodes.wall_x, episodes.door_y))
    with torch.no_grad():
        latents = model.latents(model.encode(frames[:, None]))[:, 0].numpy()
    assert abs(Places(model, episodes)(latents) - episodes.starts).max() < 0.1


def test_failures_come_first_and_the_animation_has_what_it_needs(written):
    episodes, walked, (page, _) = written
    text = page.read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    shown = json.loads(data)
    assert [("failed" in one["words"]) for one in shown] == [True, True, False]
    assert len(shown[0]["path"]) == 7
    # The model is untrained: what came of the third action surprises, and after it actions are taken one at a time.
    assert [plan["time"] for plan in shown[0]["plans"]] == [0, 3, 4, 5]
    np.testing.assert_allclose(shown[2]["path"][0], episodes.starts[1], atol=0.01)
    assert len(walked.imagined) == 3


def test_nothing_runs_but_the_pages_own_script(written):
    text = written[2][0].read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_gif_shows_every_step(written):
    with Image.open(written[2][1]) as image:
        assert image.size == (325, 325)
        shown = 0
        # Frames that do not differ are one, and longer.
        for number in range(image.n_frames):
            image.seek(number)
            shown += image.info["duration"]
    assert shown == 7 * FRAME_MS


def test_the_report_of_a_run_begins_with_what_planning_came_to(written, two_rooms, tmp_path):
    from jepa_fast.planning.results import PLANNING, save
    from jepa_fast.report.report import report
    from jepa_fast.report.run import read_run
    from jepa_fast.train import Arguments, DataArguments, start

    folder, _ = start(
        Arguments(
            preset="gated_features", steps=1, out=tmp_path / "run", data=DataArguments(two_rooms, 4), device="cpu"
        )
    )
    assert "Planning" not in report(read_run(folder))
    episodes, walked, _ = written
    found = outcome("model", walked, episodes, Protocol(6, 4.5))
    save([Planning("cross_room", False, 1, PlannerConfig(), (found,))], folder / PLANNING)
    text = report(read_run(folder))
    assert text.index("Planning, cross_room") < text.index("33.3%") < text.index("Training")
    (folder / PLANNING).write_text("[{}]")
    assert "planning.json is damaged" in report(read_run(folder))
