"""The page as one HTML file: template, style, scripts and models put together."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jepa_fast.data.two_rooms.world import DOT_REACH_PX, WORLD
from jepa_fast.report.page import THEME

# In the order in which they need each other.
SCRIPTS = ("tensors", "models", "world", "planner", "draw", "page")
# What is in the page may run; nothing is fetched, sent or framed.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
FOLDER = Path(__file__).parent
# Columns that a wall can be drawn in: more than it ever stands in, with room for an agent on either side.
WALL_COLUMNS = (10, 54)
# When an episode of planning has succeeded and when it is given up, and the planner that is watched.
SUCCESS_PX, BUDGET = 1.41, 200
PLANNER = {
    "horizon": 80, "execute": 10, "samples": 64, "elites": 10, "iterations": 3, "first_samples": 400,
    "first_iterations": 12, "sigma": 1.5, "least_sigma": 0.05, "colour": 2.5, "keep": 0.5, "momentum": 0.1,
    "haste": 0.05, "warm_sigma": 0.4,
}  # fmt: skip


def build(models: Sequence[dict[str, Any]]) -> str:
    """The page with these models, as `playable` gives them, in it."""
    world = dataclasses.asdict(WORLD) | {"scale": WORLD.scale, "dot_reach": DOT_REACH_PX}
    protocol = {"walls": WALL_COLUMNS, "budget": BUDGET, "success": SUCCESS_PX}
    constants = {"MODELS": models, "WORLD": world, "PLANNER": PLANNER, "PROTOCOL": protocol}
    # Names of runs may hold anything: the one thing that must not appear in a script is its end.
    values = {name: json.dumps(value).replace("<", "\\u003c") for name, value in constants.items()}
    lines = [f"const {name} = {value};" for name, value in values.items()]
    lines += [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(
        policy=POLICY, theme=Markup(THEME), style=Markup(style), script=Markup("\n".join(lines)), size=WORLD.size
    )
