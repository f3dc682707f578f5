"""Named studies: which presets are trained over which seeds, on what budget. Started by `python -m research.study`."""

from dataclasses import dataclass

from jepa_fast.config import require
from jepa_fast.presets import PRESETS


@dataclass(frozen=True)
class Study:
    """Presets x seeds, all else equal.

    Attributes:
        purpose: what it answers, in one sentence.
        presets: their names; what is compared stands first.
        seeds: of weights, batch order and dropout; each preset is trained once with each.
        steps: optimiser steps of every run; None for each recipe's own epochs.
        batch_size: trajectories per step; None for each recipe's own.
        data: folder of packed splits, generated if it is absent, some run is missing and no other is named.
        trajectories: of the generated training split, and the most of every other; None for the standard sizes.
    """

    purpose: str
    presets: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    batch_size: int | None = None
    data: str = "data/full"
    trajectories: int | None = None

    def __post_init__(self) -> None:
        require(len(self.presets) > 0, "study.presets", self.presets, "at least one preset")
        for name in self.presets:
            require(name in PRESETS, "study.presets", name, f"one of {', '.join(sorted(PRESETS))}")
        require(len(set(self.presets)) == len(self.presets), "study.presets", self.presets, "each preset once")
        seeds = self.seeds
        require(len(seeds) > 0 and len(set(seeds)) == len(seeds), "--seeds", seeds, "at least one, each once")
        require(min(seeds) >= 0, "--seeds", seeds, "zero or more")


STUDIES: dict[str, Study] = {
    "ideas": Study(
        "Ablations of the baseline, all on 400 steps of 32 trajectories: what helps early in training?",
        (
            "baseline",
            "larger",
            "fusion",
            "softargmax",
            "dense_predictor",
            "no_bias",
            "no_norm_before_add",
            "norm_after_add",
            "flips",
            "infonce",
            "staged",
            "gated_convnext",
        ),
        steps=400,
        batch_size=32,
    ),
    "pareto": Study(
        "Models of different sizes, each trained by its own full recipe: what does an error cost in parameters?",
        ("gated_features", "gated_pixels", "short_rollouts", "gated_convnext", "baseline"),
    ),
    "quick": Study(
        "Two presets for forty steps: whether the study commands work, within minutes. Its errors say nothing.",
        ("baseline", "gated_features"),
        seeds=(0, 1),
        steps=40,
        batch_size=8,
        data="data/study_quick",
        trajectories=320,
    ),
}


def study(name: str) -> Study:
    """The study called `name`.

    Raises:
        InputError: there is none of that name.
    """
    require(name in STUDIES, "NAME", name, f"one of {', '.join(STUDIES)}")
    return STUDIES[name]
