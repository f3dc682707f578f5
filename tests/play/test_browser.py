"""The play page in a real browser: models and world equal Python's, and it can be driven on a desk and on a phone."""

import threading

import numpy as np
import pytest
import torch

from jepa_fast.config import GatedConvNeXtConfig, GatedFeaturesConfig, GatedPixelsConfig, JEPAConfig
from jepa_fast.data.two_rooms.world import WORLD, render_dots, render_walls, step
from jepa_fast.models.registry import build_model
from jepa_fast.planning.control import latent_task
from jepa_fast.planning.protocol import LONGEST_ACTION_PX
from jepa_fast.play.__main__ import serve
from jepa_fast.play.page import build
from jepa_fast.play.playable import packed, playable, shipped
from jepa_fast.runs import load
from tests.browsing import wait_until

# Of the largest latent, in float32 on both sides.
TOLERANCE = 1e-5
STEPS = 24
SMALL = {
    "features": GatedFeaturesConfig(dim=8, border_hidden=5, wall_hidden=6),
    "pixels": GatedPixelsConfig(dim=8, channels=3, lattice=3, hidden=10),
    "pixels_wide": GatedPixelsConfig(dim=6, channels=2, kernel=5, lattice=5, hidden=9),
    "convnext": GatedConvNeXtConfig(channels=4, blocks=2, dim=10, hidden=9),
    "jepa": JEPAConfig(channels=4, blocks=2, dim=12),
    "jepa_options": JEPAConfig(
        channels=4, blocks=1, dim=12, residual="state", activation="before_norm", bias=False, head="softargmax",
        fusion=True, norm_before_add=False, norm_after_add=True, history=2, history_decay=0.7, white=0.5,
    ),
}  # fmt: skip
ROLLOUT = """({number, place, room, actions, goal}) => {
  const model = modelAt(number), frame = renderFrame(place, room);
  let state = model.encode(frame);
  const latents = [Array.from(state.latent)], places = [model.position(state.latent)];
  const walked = new Float64Array(2 * actions.length), gaps = new Float64Array(actions.length);
  model.walk(state, actions.flat(), walked, model.encode(renderFrame(goal, room)).latent, gaps);
  const distances = gaps.map((gap) => gap / fullStep(model, state));
  for (const action of actions) {
    state = model.step(state, action);
    latents.push(Array.from(state.latent));
    places.push(model.position(state.latent));
  }
  const shown = frame.map((plane) => Array.from(plane));
  return {latents, places, walked: Array.from(walked), distances: Array.from(distances), frame: shown};
}"""


# Colours on the canvas: something is drawn.
SHADES = """(() => {
  const canvas = document.getElementById("room");
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
})()"""


def small_model(name):
    """A model with fresh weights, none of them zero."""
    torch.manual_seed(0)
    model = build_model(SMALL[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def as_entry(name, model):
    tensors, config = dict(model.state_dict()), vars(model.config) | {"groups": ()}
    if model.config.kind == "jepa":
        config["frame"], dim = WORLD.size, model.config.dim
        tensors |= {
            "probe.0.weight": torch.randn(5, dim),
            "probe.0.bias": torch.randn(5),
            "probe.mean": torch.zeros(dim),
        }
        tensors |= {"probe.2.weight": torch.randn(2, 5), "probe.2.bias": torch.randn(2), "probe.std": torch.ones(dim)}
        tensors |= {"probe.location_mean": torch.zeros(2), "probe.location_std": torch.ones(2)}
    table, weights = packed(tensors)
    return {"name": name, "record": "", "kind": model.config.kind, "config": config, "table": table, "weights": weights}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page with the small models after those that come with the package."""
    path = tmp_path_factory.mktemp("play") / "play.html"
    entries = [playable(folder) for folder in shipped()]
    path.write_text(build(entries + [as_entry(name, small_model(name)) for name in SMALL]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def scene():
    generator = np.random.default_rng(0)
    return {
        "place": [27.3125, 30.6875],
        "goal": [40.5, 12.25],
        "room": {"wallX": 31, "doorY": 20},
        "actions": generator.uniform(-1.2, 1.4, (STEPS, 2)).astype(np.float32).tolist(),
    }


def frame_of(scene, at="place"):
    """The scene's frame as the data have it, float32 [1, 2, 65, 65], with the agent at its place or at the goal."""
    agent = render_dots(np.array([[scene[at]]], np.float32))[0]
    wall = render_walls(np.array([scene["room"]["wallX"]]), np.array([scene["room"]["doorY"]]))
    return torch.from_numpy(np.stack([agent, wall], axis=1)).float() * WORLD.scale


def test_imagined_paths_are_those_of_pytorch(visit, page_file, scene):
    page = visit(page_file)
    known = [load(folder) for folder in shipped()] + [small_model(name) for name in SMALL]
    for number, model in enumerate(known):
        found = page.evaluate(ROLLOUT, scene | {"number": number})
        frame = frame_of(scene)
        torch.testing.assert_close(torch.tensor(found["frame"]).view(1, 2, 65, 65), frame, rtol=1e-6, atol=0)
        with torch.no_grad():
            expected = model.rollout(frame, torch.tensor([scene["actions"]]))[0]
        error = (torch.tensor(found["latents"]) - expected).abs().max()
        assert error < TOLERANCE * expected.abs().max(), model.config
        if model.config.kind != "jepa":
            places = 32 + 32 * model.lift.positions(expected)
            np.testing.assert_allclose(found["places"], places.detach(), atol=TOLERANCE * WORLD.size)
        # What the planner goes by is the same rollout, and distances are those of Python's planner.
        np.testing.assert_allclose(np.reshape(found["walked"], (-1, 2)), found["places"][1:], rtol=1e-9, atol=1e-9)
        task = latent_task(model, frame, frame_of(scene, "goal"), 2, LONGEST_ACTION_PX)
        with torch.no_grad():
            distances = task.distances(torch.tensor([[scene["actions"]]]))[0, 0]
        np.testing.assert_allclose(found["distances"], distances, rtol=10 * TOLERANCE)


def test_the_world_moves_and_blocks_as_the_simulator(visit, page_file):
    generator = np.random.default_rng(1)
    count = 4000
    wall_x, door_y = generator.integers(20, 45, count), generator.integers(10, 55, count)
    places = generator.uniform(4, 60, (count, 2)).astype(np.float32)
    # Half of them at the wall.
    near = generator.random(count) < 0.5
    places[near, 0] = wall_x[near] + generator.uniform(-3, 3, near.sum())
    actions = generator.uniform(-1.8, 1.8, (count, 2)).astype(np.float32)
    page = visit(page_file)
    found = page.evaluate(
        "moves => moves.map(([x, y, ax, ay, wallX, doorY]) => stepWorld([x, y], [ax, ay], {wallX, doorY}))",
        np.column_stack([places, actions, wall_x, door_y]).tolist(),
    )
    np.testing.assert_array_equal(np.array(found, np.float32), step(places, actions, wall_x, door_y))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_driven_by_keys_and_pointer_and_walks_to_a_goal(visit, page_file, width, scheme):
    page = visit(page_file, width, scheme)
    page.keyboard.down("ArrowRight")
    wait_until(page, "game.truth.length > 2")
    page.keyboard.up("ArrowRight")
    # At one moment: a step may still be under way.
    steps, place, shown = page.evaluate("[game.truth.length - 1, game.place, element('steps').textContent]")
    assert place[0] > 14
    assert place[1] == 44
    assert shown == str(steps)

    box = page.locator("#room").bounding_box()
    at = lambda x, y: (box["x"] + (x + 0.5) / 65 * box["width"], box["y"] + (y + 0.5) / 65 * box["height"])  # noqa: E731
    page.mouse.move(*at(14, 12))
    page.mouse.down()
    wait_until(page, "game.place[1] < 44")
    page.mouse.up()
    page.get_by_label("put the agent").check()
    page.mouse.click(*at(20, 50))
    assert np.allclose(page.evaluate("game.place"), [20, 50], atol=0.2)
    page.get_by_label("draw wall and door").check()
    page.mouse.click(*at(40, 30))
    assert page.evaluate("game.room") == {"wallX": 40, "doorY": 30}
    assert "No wall stood in this column" in page.locator("#novel").text_content()

    # Enough for a goal in the same room. What is said of an iteration may be gone at once: all of it is kept.
    page.evaluate("Object.assign(PLANNER, {horizon: 30, first_samples: 80, first_iterations: 5})")
    page.evaluate("() => { const tell = say; globalThis.said = []; say = (text) => { said.push(text); tell(text); }; }")
    page.get_by_label("set a goal").check()
    page.mouse.click(*at(24, 44))
    page.get_by_text("Reached after").wait_for(timeout=120_000)
    assert page.evaluate("said.some((text) => text.startsWith('Planning: iteration 5 of 5'))")
    assert page.evaluate("said.some((text) => text.startsWith('Walking: step 1,'))")
    assert np.hypot(*np.subtract(page.evaluate("game.place"), [24, 44])) < 1.6
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SHADES) > 10

    # A key takes over from the planner.
    page.mouse.click(*at(12, 12))
    assert page.evaluate("game.isPlanning") is True
    below = page.evaluate("game.place[1]")
    page.keyboard.down("ArrowDown")
    wait_until(page, "!game.isPlanning")
    wait_until(page, f"game.place[1] > {below}")
    page.keyboard.up("ArrowDown")


def test_every_model_can_be_chosen(visit, page_file):
    page = visit(page_file)
    for number in range(len(shipped()) + len(SMALL)):
        page.get_by_role("combobox").select_option(str(number))
        assert page.evaluate("game.truth.length") == 1
        assert np.isfinite(page.evaluate("game.imagined[0]")).all()


def test_it_is_served_on_this_machine_alone(visit):
    with serve(build([playable(shipped()[0])])) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            page = visit(f"http://127.0.0.1:{server.server_address[1]}/")
            assert "parameters" in page.locator("#record").text_content()
        finally:
            server.shutdown()
            thread.join()
