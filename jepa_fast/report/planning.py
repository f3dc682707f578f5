"""How often a run's model found its way, as `python -m jepa_fast.plan` measured it."""

import logging

from jepa_fast.errors import InputError
from jepa_fast.planning.results import PLANNING, Planning, load, wilson
from jepa_fast.report.page import Section, bullets, table
from jepa_fast.report.run import Run

logger = logging.getLogger(__name__)

HEAD = ("what acted", "arrived", "95% interval", "ever", "off at the end", "s / episode")


def planning_sections(run: Run) -> list[Section]:
    """A section if there are results in the run's folder."""
    path = run.folder / PLANNING
    if not path.exists():
        return []
    try:
        return [_section(result) for result in load(path)]
    except InputError as error:
        logger.warning("%s", error)
        words = f"{PLANNING} is damaged or was written by another version. Run: python -m jepa_fast.plan {run.folder}"
        return [Section("Planning", [words])]


def _section(result: Planning) -> Section:
    rows = []
    for one in result.outcomes:
        low, high = wilson(one.final, one.episodes)
        rows.append(
            (
                one.name,
                f"{one.final / one.episodes:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{one.ever / one.episodes:.1%}",
                f"{one.median_distance_px:.2f} px",
                f"{one.seconds:.2f}",
            )
        )
    where = "where none stand in training" if result.held_out else "where they stand in training"
    words = [
        f"{result.outcomes[0].episodes} episodes from one room to the other, walls {where}. "
        "The model sees a frame of the start and one of the goal.",
    ]
    more = bullets(["Episodes are drawn step by step in planning.html, in the same folder."])
    return Section(f"Planning, {result.protocol}", words, table(HEAD, rows) + more)
