"""What an evaluation finds, as plain values: printed as a table, stored as JSON, read by the report."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from jepa_fast.data.writing import write_text
from jepa_fast.errors import InputError, require
from jepa_fast.reading import MALFORMED, decode, described, read_json

EVALUATION = "evaluation.json"  # in a run folder
# The two sets of the ratio `Evaluation.wall_to_agent`: much blocked, and mostly free.
# No error of float32 is above this.
LARGEST = 3.5e38
BLOCKED, FREE = "probe_wall/val", "probe_normal/val"


# What examples are chosen as, by their error.
KINDS = ("best", "median", "worst")


@dataclass(frozen=True)
class Scores:
    """Errors of one model on one probe set in pixels^2, mean over trajectories, steps and both axes.

    `*_by_step` has one figure for each of the T frames, averaged over trajectories and axes.
    """

    official: float
    converged: float
    official_by_step: list[float]
    converged_by_step: list[float]

    def __post_init__(self) -> None:
        official, converged = self.official_by_step, self.converged_by_step
        require(0 < len(official) == len(converged), "by_step", len(official), "an error of both probes for each frame")
        for value in (self.official, self.converged, *official, *converged):
            _require_error(value, "scores")


@dataclass(frozen=True)
class DistanceBin:
    """Frames in which the agent was at least `low_px` from the nearest solid pixel, and less than the next bin's.

    Errors are squared, in pixels^2, the mean over these frames and both axes.
    """

    low_px: float
    frames: int
    official: float
    converged: float

    def __post_init__(self) -> None:
        require(0 <= self.low_px <= LARGEST, "by_distance.low_px", self.low_px, "zero or more")
        require(self.frames >= 1, "by_distance.frames", self.frames, "at least 1")
        for value in (self.official, self.converged):
            _require_error(value, "by_distance")


@dataclass(frozen=True)
class Example:
    """One trajectory: where the agent was, and where the converged probe locates it from predicted latents alone.

    Attributes:
        kind: among the "best", the "median" or the "worst" of its set.
        trajectory: index in the split.
        error: mean squared error over steps and axes in pixels^2.
        true: T locations (x, y) in pixels.
        located: T locations (x, y) in pixels.
        solid: what is solid in frame 0, as rectangles (x, y, width, height) of whole pixels.
    """

    kind: str
    trajectory: int
    error: float
    true: list[tuple[float, float]]
    located: list[tuple[float, float]]
    solid: list[tuple[int, int, int, int]]

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "examples.kind", self.kind, f"one of {', '.join(KINDS)}")
        _require_error(self.error, "examples.error")
        lengths = len(self.true), len(self.located)
        require(0 < lengths[0] == lengths[1], "examples.located", lengths[1], f"{lengths[0]} locations, at least 1")
        places = [number for place in (*self.true, *self.located, *self.solid) for number in place]
        require(all(abs(number) <= LARGEST for number in places), "examples", "a place", "one in float32's range")


@dataclass(frozen=True)
class ProbeSetResult:
    """One probe set: the trained model beside the floors that anybody reaches.

    Attributes:
        name: validation split.
        trajectories: of the validation split.
        probe_trajectories: of the split that the probe is trained on.
        trained: the model's scores.
        untrained: scores of the same architecture before training; None where this floor was left out.
        constant: error of predicting the mean location of the probe's training split.
        by_distance: errors of the trained model by the distance to the nearest solid pixel, nearest first.
        image_size: width and height of the frames in pixels.
        examples: best, median and worst trajectories of the trained model by the converged probe.
    """

    name: str
    trajectories: int
    probe_trajectories: int
    trained: Scores
    untrained: Scores | None
    constant: float
    by_distance: list[DistanceBin]
    image_size: tuple[int, int]
    examples: list[Example]

    def __post_init__(self) -> None:
        require(min(self.trajectories, self.probe_trajectories) >= 1, "trajectories", self.trajectories, "at least 1")
        require(min(self.image_size) >= 1, "image_size", self.image_size, "a width and a height")
        _require_error(self.constant, "constant")
        of_each = [sum(example.kind == kind for example in self.examples) for kind in KINDS]
        require(len(set(of_each)) == 1, "examples", of_each, f"as many {', '.join(KINDS)} ones")


@dataclass(frozen=True)
class Evaluation:
    """All probe sets of a data folder."""

    data: str
    probe_seed: int
    parameters: int
    state_dim: int
    state_norm: float  # mean Euclidean norm of the predicted latents of the first probe set
    probe_sets: list[ProbeSetResult]

    @property
    def wall_to_agent(self) -> dict[str, float]:
        """Under each probe the error on probe_wall/val over that on probe_normal/val.

        On probe_normal the agent mostly walks freely, on probe_wall it is often blocked: the ratio tells how much worse
        what blocks it is known than how it moves. Always guessing the middle gives about 0.7, for where agents are
        blocked they lie closer together. Empty where one of the two sets is missing, or without
        an error on the second.
        """
        found = {result.name: result.trained for result in self.probe_sets}
        if not {BLOCKED, FREE} <= found.keys():
            return {}
        blocked, free = found[BLOCKED], found[FREE]
        if min(free.official, free.converged) == 0:
            return {}
        return {"official": blocked.official / free.official, "converged": blocked.converged / free.converged}

    def save(self, path: Path) -> None:
        """Write the evaluation as JSON, with the ratio for who reads it there."""
        write_text(path, json.dumps(asdict(self) | {"wall_to_agent": self.wall_to_agent}) + "\n")

    @staticmethod
    def load(path: Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            InputError: not an evaluation, or one of an earlier version.
        """
        fields = read_json(path, "an evaluation of this version", remedy="; evaluate again")
        try:
            stored = {name: value for name, value in fields.items() if name != "wall_to_agent"}
            return decode(Evaluation, stored, "evaluation")
        except MALFORMED as error:
            why = described(error)
            raise InputError(f"{path}: not an evaluation of this version ({why}); evaluate again") from error

    def table(self) -> str:
        """The evaluation for people."""
        head = (
            f"Squared error in pixels^2 of the agent's location, read off predicted latents "
            f"({self.parameters:,} parameters, latents of {self.state_dim}, mean norm {self.state_norm:.2f})\n"
        )
        columns = (
            f"{'probe set':<22}{'official':>10}{'converged':>11}{'untrained':>11}{'(converged)':>13}{'constant':>10}"
        )
        rows = [
            f"{result.name:<22}{result.trained.official:>10.3f}{result.trained.converged:>11.3f}"
            f"{_floor(result.untrained)}{result.constant:>10.1f}"
            for result in self.probe_sets
        ]
        steps = [f"{result.name:<22}{_some(result.trained.official_by_step)}" for result in self.probe_sets]
        ratios = ", ".join(f"{probe} {ratio:.2f}" for probe, ratio in self.wall_to_agent.items())
        ratio = [f"\nWall-to-agent error ratio: {ratios}"] if ratios else []
        return "\n".join([head, columns, *rows, *ratio, "\nOfficial error by step:", *steps])


def _require_error(value: float, name: str) -> None:
    """Raise InputError unless `value` can be a squared error in pixels^2."""
    require(0 <= value <= LARGEST, name, value, "an error from 0 up to float32's largest")


def _floor(untrained: Scores | None) -> str:
    return f"{'-':>11}{'-':>13}" if untrained is None else f"{untrained.official:>11.3f}{untrained.converged:>13.3f}"


def _some(by_step: list[float]) -> str:
    """The error at steps 0, 1, 2, 4, 8, ... and at the last."""
    last = len(by_step) - 1
    shown = [0] + [2**i for i in range(last.bit_length()) if 2**i < last] + [last]
    return "  ".join(f"{step}: {by_step[step]:.2f}" for step in shown)
