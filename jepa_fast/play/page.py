"""The page as one HTML file: template, style, scripts and models put together."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jepa_fast.data.two_rooms.world import DOT_REACH_PX, WORLD
from jepa_fast.planning.planner_config import PlannerConfig
from jepa_fast.planning.protocol import PROTOCOLS
from jepa_fast.report.page import THEME, templates

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
# What an episode may take, and when it has succeeded: the strict protocol's distance within the longer one's budget.
SUCCESS_PX, BUDGET = PROTOCOLS["strict"].success_px, PROTOCOLS["cross_room"].budget
# Of the planners' defaults, what planner.js goes by: iCEM at the cost "arrival".
PLANNER = (
    "horizon", "execute", "samples", "elites", "iterations", "first_samples", "first_iterations", "sigma",
    "least_sigma", "colour", "keep", "momentum", "haste", "warm_sigma",
)  # fmt: skip


def build(models: Sequence[dict[str, Any]]) -> str:
    """The page with these models, as `playable` gives them, in it."""
    world = dataclasses.asdict(WORLD) | {"scale": WORLD.scale, "dot_reach": DOT_REACH_PX}
    defaults = PlannerConfig()
    assert (defaults.method, defaults.cost, defaults.shrink) == ("icem", "arrival", 1.0), "planner.js knows no other"
    planner = {name: getattr(defaults, name) for name in PLANNER}
    protocol = {"walls": WALL_COLUMNS, "budget": BUDGET, "success": SUCCESS_PX}
    constants = {"MODELS": models, "WORLD": world, "PLANNER": planner, "PROTOCOL": protocol}
    # Names of runs may hold anything: the one thing that must not appear in a script is its end.
    values = {name: json.dumps(value).replace("<", "\\u003c") for name, value in constants.items()}
    lines = [f"const {name} = {value};" for name, value in values.items()]
    lines += [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return (
        templates(FOLDER)
        .get_template("page.html")
        .render(
            policy=POLICY, theme=Markup(THEME), style=Markup(style), script=Markup("\n".join(lines)), size=WORLD.size
        )
    )
