"""What planning came to: success rates with their intervals, what an episode cost, and the table of it all."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_fast.data.writing import write_text
from jepa_fast.errors import InputError, require
from jepa_fast.planning.control import Walk
from jepa_fast.planning.planner_config import Distance, PlannerConfig
from jepa_fast.planning.protocol import Episodes, Protocol, is_legal
from jepa_fast.reading import MALFORMED, decode, described, read_json

PLANNING = "planning.json"
# Of a normal distribution: 95% lie within.
QUANTILE = 1.959964


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95% interval of a success rate.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    rate, z = successes / count, QUANTILE
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Outcome:
    """What one way of acting came to.

    Attributes:
        name: what acted.
        episodes: how many.
        final: of them within the protocol's distance at the end.
        ever: at any moment.
        solved_starts: at the beginning.
        legal: whose path meets no wall and no border.
        median_distance_px: to the goal at the end.
        median_arrival: actions until the first moment within the distance, of those that came to it.
        seconds: per episode, wall-clock.
        predictor_steps: per episode.
        distances_px: to the goal at the end, of each episode.
    """

    name: str
    episodes: int
    final: int
    ever: int
    solved_starts: int
    legal: int
    median_distance_px: float
    median_arrival: float | None
    seconds: float
    predictor_steps: float
    distances_px: tuple[float, ...]

    def __post_init__(self) -> None:
        require(self.episodes >= 1, "episodes", self.episodes, "at least 1")
        for name in ("final", "ever", "solved_starts", "legal"):
            count = getattr(self, name)
            require(0 <= count <= self.episodes, name, count, f"from 0 to the {self.episodes} episodes")


def outcome(name: str, walked: Walk, episodes: Episodes, protocol: Protocol) -> Outcome:
    """What walked episodes came to."""
    gap = walked.path.astype(np.float64) - episodes.goals[:, None]
    distances = np.sqrt((gap**2).sum(axis=-1))  # [N, T]
    near = distances < protocol.success_px
    ever = near.any(axis=1)
    count = len(distances)
    return Outcome(
        name=name,
        episodes=count,
        final=int(near[:, -1].sum()),
        ever=int(ever.sum()),
        solved_starts=int(near[:, 0].sum()),
        legal=int(is_legal(walked.path, episodes.wall_x, episodes.door_y).sum()),
        median_distance_px=float(np.median(distances[:, -1])),
        median_arrival=float(np.median(near.argmax(axis=1)[ever])) if ever.any() else None,
        seconds=walked.seconds / count,
        predictor_steps=walked.steps / count,
        distances_px=tuple(round(float(each), 3) for each in distances[:, -1]),
    )


@dataclass(frozen=True)
class Planning:
    """Everything that `python -m jepa_fast.plan` measured, and under which protocol.

    Attributes:
        protocol: by name.
        held_out: whether walls stood where none stands in training.
        seed: of episodes and planner.
        planner: its settings.
        outcomes: of everything that acted.
        distance: whether distances were those of latents or learned ones.
    """

    protocol: str
    held_out: bool
    seed: int
    planner: PlannerConfig
    outcomes: tuple[Outcome, ...]
    distance: Distance = "latent"

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def save(results: Sequence[Planning], path: Path) -> None:
    """Write results as JSON."""
    write_text(path, json.dumps([result.to_json() for result in results], indent=1) + "\n")


def load(path: Path) -> list[Planning]:
    """What `save` wrote.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    stored = read_json(path, "results of planning")
    try:
        found = decode(list[Planning], stored, "results")
    except MALFORMED as error:
        raise InputError(f"{path}: not results of planning ({described(error)}); plan again") from error
    require(all(result.outcomes for result in found), str(path), "no outcomes", "some of each protocol")
    return found


def table(result: Planning) -> str:
    """The result for people."""
    where = "walls in held-out columns" if result.held_out else "walls as in training"
    head = ("", "final", "95% interval", "ever", "arrival", "distance", "s / episode", "steps / episode")
    rows = [head]
    for one in result.outcomes:
        low, high = wilson(one.final, one.episodes)
        rows.append(
            (
                one.name,
                f"{one.final / one.episodes:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{one.ever / one.episodes:.1%}",
                "-" if one.median_arrival is None else f"{one.median_arrival:.0f}",
                f"{one.median_distance_px:.2f} px",
                f"{one.seconds:.3f}",
                f"{one.predictor_steps:,.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in pairs).rstrip()
        for pairs in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
    solved = sum(one.solved_starts for one in result.outcomes)
    illegal = sum(one.episodes - one.legal for one in result.outcomes)
    episodes = result.outcomes[0].episodes
    learned = ", learned distance" if result.distance == "learned" else ""
    title = f"{result.protocol}, {episodes} episodes of seed {result.seed}, {where}{learned}"
    notes = f"solved at the start: {solved}; paths through a wall: {illegal}"
    return "\n".join([title, *lines, notes])
