"""The probing protocol: both probes, the floors and the error at every step, for every probe set of a data folder."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_fast.data.manifest import MANIFEST_NAME
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.model.world import World
from jepa_fast.probing.prober import Probe, converged_probe, official_probe
from jepa_fast.probing.rollouts import Rollouts, all_locations, rollout_split

logger = logging.getLogger(__name__)

# Validation split -> the split that its probe is trained on.
PROBE_SETS = {
    "probe_normal/val": "probe_normal/train",
    "probe_wall/val": "probe_normal/train",
    "probe_wall_other/val": "probe_normal/train",
    "probe_expert/val": "probe_expert/train",
}


@dataclass(frozen=True)
class Scores:
    """Errors of one world on one probe set in pixels^2, mean over trajectories, steps and both axes.

    `*_by_step` has one figure for each of the T frames, averaged over trajectories and axes.
    """

    official: float
    converged: float
    official_by_step: list[float]
    converged_by_step: list[float]


@dataclass(frozen=True)
class ProbeSetResult:
    """One probe set: the trained world beside the floors that anybody reaches.

    Attributes:
        name: validation split.
        trajectories: of the validation split.
        probe_trajectories: of the split that the probe is trained on.
        trained: the world's scores.
        untrained: scores of the same architecture before training.
        constant: error of predicting the mean location of the probe's training split.
    """

    name: str
    trajectories: int
    probe_trajectories: int
    trained: Scores
    untrained: Scores
    constant: float


@dataclass(frozen=True)
class Evaluation:
    """All probe sets of a data folder."""

    data: str
    probe_seed: int
    parameters: int
    state_dim: int
    state_norm: float  # mean Euclidean norm of the predicted states of the first probe set
    probe_sets: list[ProbeSetResult]

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain values."""
        return asdict(self)

    def table(self) -> str:
        """The evaluation for people."""
        head = (
            f"Squared error in pixels^2 of the agent's location, read off predicted states "
            f"({self.parameters:,} parameters, state of {self.state_dim}, mean norm {self.state_norm:.2f})\n"
        )
        columns = (
            f"{'probe set':<22}{'official':>10}{'converged':>11}{'untrained':>11}{'(converged)':>13}{'constant':>10}"
        )
        rows = [
            f"{result.name:<22}{result.trained.official:>10.3f}{result.trained.converged:>11.3f}"
            f"{result.untrained.official:>11.3f}{result.untrained.converged:>13.3f}{result.constant:>10.1f}"
            for result in self.probe_sets
        ]
        steps = [f"{result.name:<22}{_some(result.trained.official_by_step)}" for result in self.probe_sets]
        return "\n".join([head, columns, *rows, "\nOfficial error by step:", *steps])


def _some(by_step: list[float]) -> str:
    """The error at steps 0, 1, 2, 4, 8, ... and at the last."""
    last = len(by_step) - 1
    shown = [0] + [2**i for i in range(last.bit_length()) if 2**i < last] + [last]
    return "  ".join(f"{step}: {by_step[step]:.2f}" for step in shown)


class _Probed:
    """A world and the probes trained on its rollouts, one pair for each probe training split, made when first used."""

    def __init__(self, world: World, data: Path, seed: int) -> None:
        self.world, self.data, self.seed = world, data, seed
        self.probes: dict[str, tuple[Probe, Probe]] = {}

    def scores(self, name: str) -> tuple[Scores, Rollouts]:
        """Scores on the validation split `name`, and its rollouts."""
        source = PROBE_SETS[name]
        if source not in self.probes:
            rollouts = rollout_split(self.world, open_split(self.data / source), source)
            self.probes[source] = official_probe(rollouts, self.seed), converged_probe(rollouts, self.seed)
        rollouts = rollout_split(self.world, open_split(self.data / name), name)
        official, converged = (probe.squared_errors(rollouts) for probe in self.probes[source])
        scores = Scores(
            official.mean().item(), converged.mean().item(), official.mean(0).tolist(), converged.mean(0).tolist()
        )
        return scores, rollouts


def evaluate(world: World, data: Path, probe_seed: int = 0) -> Evaluation:
    """Score `world` on every probe set under `data` whose two splits are there.

    Raises:
        InputError: there is no complete probe set, or a split is damaged.
    """
    names = []
    for name, source in PROBE_SETS.items():
        missing = [split for split in (name, source) if not (data / split / MANIFEST_NAME).is_file()]
        if missing:
            logger.info("%s: left out, %s has no %s", name, data, " and no ".join(missing))
        else:
            names.append(name)
    if not names:
        raise InputError(f"{data}: no probe set; expected {' or '.join(PROBE_SETS)} with their training splits")
    with torch.random.fork_rng():
        torch.manual_seed(probe_seed)
        fresh = World(world.config).to(next(world.parameters()).device)
    trained, untrained = _Probed(world, data, probe_seed), _Probed(fresh, data, probe_seed)
    results, norm = [], None
    for name in names:
        scores, rollouts = trained.scores(name)
        if norm is None:
            norm = rollouts.states[:, 1:].norm(dim=2).mean().item()
        probe_split = open_split(data / PROBE_SETS[name])
        floor = constant_error(all_locations(probe_split), rollouts.locations)
        results.append(
            ProbeSetResult(name, len(rollouts.states), probe_split.count, scores, untrained.scores(name)[0], floor)
        )
    parameters = sum(parameter.numel() for parameter in world.parameters())
    return Evaluation(str(data), probe_seed, parameters, world.config.dim, norm or 0.0, results)


def constant_error(train: Tensor, val: Tensor) -> float:
    """Squared error in pixels^2 of predicting the mean of `train` [N, T, 2] for all of `val` [M, T, 2]."""
    return (val - train.mean(dim=(0, 1))).square().mean().item()
