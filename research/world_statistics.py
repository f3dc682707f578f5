"""Checks the simulated world against its known statistics, on 100,000 trajectories of each of two splits.

    python -m research.world_statistics --seed 0

Prints each statistic beside what is expected of it. Exit status 1 if one misses.
"""

import sys
from dataclasses import dataclass

import numpy as np

from jepa_fast import cli
from jepa_fast.data.two_rooms import Trajectories, simulate

COUNT = 100_000


@dataclass(frozen=True)
class Arguments:
    """What to simulate.

    Attributes:
        seed: seed of the data set.
    """

    seed: int = 0


@dataclass(frozen=True)
class Statistic:
    """A measured number, and what it must be where that is known."""

    name: str
    value: float
    expected: float | None = None
    tolerance: float = 0.0

    @property
    def missed(self) -> bool:
        """Whether the value is further from the expected one than allowed."""
        return self.expected is not None and not abs(self.value - self.expected) <= self.tolerance

    def __str__(self) -> str:
        line = f"{self.name:<48}{self.value:>9.3f}"
        if self.expected is None:
            return line
        return f"{line}   {self.expected:g} +- {self.tolerance:g}   {'MISSED' if self.missed else 'ok'}"


def blocked_percent(trajectories: Trajectories) -> float:
    """Share of steps that left the agent where it was, in percent."""
    locations = trajectories.locations
    return 100 * float((locations[:, 1:] == locations[:, :-1]).all(axis=-1).mean())


def crossed_percent(trajectories: Trajectories) -> float:
    """Share of trajectories that end on the other side of the wall's middle than they started, in percent."""
    is_left = trajectories.locations[:, [0, -1], 0] < trajectories.wall_x[:, None]
    return 100 * float((is_left[:, 0] != is_left[:, 1]).mean())


def measure(seed: int) -> list[Statistic]:
    """All statistics of the world with this seed; lengths in pixels."""
    normal = simulate("probe_normal/train", 0, COUNT, seed)
    wall = simulate("probe_wall/val", 0, COUNT, seed)
    variances = normal.locations.var(axis=(0, 1), dtype=np.float64)
    return [
        Statistic("probe_normal: location std x", float(variances[0] ** 0.5), 16.08, 0.1),
        Statistic("probe_normal: location std y", float(variances[1] ** 0.5), 16.25, 0.1),
        Statistic("probe_normal: mean variance of a location", float(variances.mean()), 261.3, 2.5),
        Statistic("probe_normal: blocked steps, %", blocked_percent(normal)),
        Statistic("probe_normal: ends in the other room, %", crossed_percent(normal)),
        Statistic("probe_wall: ends in the other room, %", crossed_percent(wall), 33.5, 2.0),
        Statistic("probe_wall: blocked steps, %", blocked_percent(wall)),
    ]


def main(arguments: Arguments) -> None:
    """Print every statistic; exit with status 1 if one misses."""
    statistics = measure(arguments.seed)
    print(*statistics, sep="\n")
    if any(statistic.missed for statistic in statistics):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, Arguments, "Check the simulated world against its known statistics.")
