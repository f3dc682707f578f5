"""Settings of planners, by name for the command line; no torch import."""

from dataclasses import dataclass
from typing import Literal

from jepa_fast.errors import require
from jepa_fast.planning.protocol import LONGEST_ACTION_PX

Method = Literal["cem", "icem", "mppi", "gradient"]
Cost = Literal["last", "summed", "arrival"]
Distance = Literal["latent", "learned"]


@dataclass(frozen=True)
class PlannerConfig:
    """Settings of a planner.

    Attributes:
        method: how sequences are improved.
        cost: of the distances to the goal.
        horizon: actions of a sequence, at most what is left of the budget.
        execute: actions taken of a plan before the next one is made.
        samples: sequences per iteration; with "gradient" sequences in all.
        elites: the best of them, which the next iteration learns from.
        iterations: of every plan.
        first_samples, first_iterations: in the first plan of an episode and wherever the last one failed.
        sigma: standard deviation of the first iteration's noise, in pixels per step and axis.
        least_sigma: the deviation does not shrink below this.
        colour: its power falls with frequency^-colour; 0 is white noise.
        keep: share of the elites that the next iteration sees again.
        shrink: each iteration has so many times fewer samples than the one before, at least twice the elites.
        momentum: share of the old mean and deviation in the new ones.
        temperature: of "mppi", in the cost's unit.
        haste: of the cost "arrival": what a step costs, in full steps of distance.
        learning_rate: of "gradient", in pixels.
        warm_start: begin a plan with what is left of the last one, at `warm_sigma`.
        warm_sigma: the noise around it.
        patience: iterations that are made, at least, after one that found a way.
        random_elite: take an elite by its weight in place of the best sequence.
        careful: keep what actions did where the model said something else, and plan with it.
        longest: length that actions are shortened to.
    """

    method: Method = "icem"
    cost: Cost = "arrival"
    horizon: int = 80
    execute: int = 10
    samples: int = 64
    elites: int = 10
    iterations: int = 3
    first_samples: int = 300
    first_iterations: int = 12
    sigma: float = 1.5
    least_sigma: float = 0.05
    colour: float = 2.5
    keep: float = 0.5
    shrink: float = 1.0
    momentum: float = 0.1
    temperature: float = 1.0
    haste: float = 0.02
    learning_rate: float = 0.1
    warm_start: bool = True
    warm_sigma: float = 0.4
    patience: int = 2
    random_elite: bool = False
    careful: bool = True
    longest: float = LONGEST_ACTION_PX

    def __post_init__(self) -> None:
        for name in (
            "horizon",
            "execute",
            "samples",
            "elites",
            "iterations",
            "first_samples",
            "first_iterations",
            "patience",
        ):
            require(getattr(self, name) >= 1, f"planner.{name}", getattr(self, name), "at least 1")
        fewest = min(self.samples, self.first_samples)
        require(self.elites <= fewest, "planner.elites", self.elites, f"at most the {fewest} samples")
        for name in ("sigma", "least_sigma", "warm_sigma", "temperature", "learning_rate", "longest"):
            require(getattr(self, name) > 0, f"planner.{name}", getattr(self, name), "a positive number")
        for name in ("keep", "momentum"):
            require(0 <= getattr(self, name) <= 1, f"planner.{name}", getattr(self, name), "a share from 0 to 1")
        require(self.shrink >= 1, "planner.shrink", self.shrink, "1 or more")
        for name in ("colour", "haste"):
            require(getattr(self, name) >= 0, f"planner.{name}", getattr(self, name), "zero or more")


# By name, for the command line. "peer" has the settings that eb_jepa publishes for its own two rooms.
PLANNERS = {
    "icem": PlannerConfig(),
    "cem": PlannerConfig(method="cem", colour=0.0),
    "mppi": PlannerConfig(method="mppi", colour=0.0, temperature=0.5),
    "gradient": PlannerConfig(method="gradient", samples=16, first_samples=128, iterations=10, first_iterations=60),
    "peer": PlannerConfig(
        method="mppi", cost="summed", horizon=90, execute=1, samples=200, first_samples=200, elites=20, iterations=20,
        first_iterations=20, patience=20, sigma=2.0, least_sigma=1e-6, colour=0.0, keep=0.0, momentum=0.0,
        temperature=200.0, warm_start=False, random_elite=True, careful=False,
    ),
}  # fmt: skip
