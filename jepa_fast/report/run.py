"""A run folder as the report reads it. Whatever is missing is missing from the report, and said there."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jepa_fast.config import RunConfig
from jepa_fast.engine.guards import find_divergence
from jepa_fast.engine.record import ENVIRONMENT, METRICS, Metrics, load_environment, read_metrics, read_spectra
from jepa_fast.errors import InputError, require
from jepa_fast.probing.results import EVALUATION, Evaluation
from jepa_fast.probing.target_results import TARGETS, TargetEvaluation
from jepa_fast.runs import CONFIG

logger = logging.getLogger(__name__)

# Points of a curve: more are not told apart on a screen.
POINTS = 250


@dataclass(frozen=True)
class Run:
    """A run folder's content.

    Attributes:
        folder: where it lies.
        config: what was asked for.
        environment: environment.json; empty where there is none.
        metrics: of the log steps, in order of steps; may be empty.
        spectra: lines of spectra.jsonl, in order of steps; may be empty.
        evaluation: the probes' results on two rooms, or none.
        targets: the probes' results on any other data, or none.
        no_evaluation: why there is none, and what to do, in one sentence.
        divergence: where the run ended because a step was not finite, in one sentence; empty where it did not.
    """

    folder: Path
    config: RunConfig
    environment: dict[str, Any]
    metrics: list[Metrics]
    spectra: list[dict[str, Any]]
    evaluation: Evaluation | None
    targets: TargetEvaluation | None
    no_evaluation: str
    divergence: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def steps(self) -> int:
        """Steps done at the last log step."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def column(self, key: str) -> list[float]:
        """A metric at every log step."""
        return [line[key] for line in self.metrics]

    def training_s(self) -> float:
        """Seconds spent in steps, from the throughput between log steps."""
        seconds, before = 0.0, 0.0
        for line in self.metrics:
            if line["trajectories_per_s"] > 0:
                seconds += (line["step"] - before) * self.config.batch_size / line["trajectories_per_s"]
            before = line["step"]
        return seconds


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: not a run folder, or a damaged file in it.
    """
    config = RunConfig.load(folder / CONFIG)
    environment = load_environment(folder) if (folder / ENVIRONMENT).exists() else {}
    metrics, spectra = read_metrics(folder), read_spectra(folder)
    for number, line in enumerate(metrics, 1):
        for name in ("learning_rate", "gradient_norm", "trajectories_per_s", *config.recipe.terms):
            require(name in line, f"{folder / METRICS}, line {number}", sorted(line), f"{name} among the names")
    evaluation, targets, no_evaluation = None, None, ""
    try:
        evaluation = Evaluation.load(folder / EVALUATION) if (folder / EVALUATION).exists() else None
    except InputError as error:
        logger.warning("%s", error)
        no_evaluation = f"{EVALUATION} is damaged or was written by another version."
    try:
        targets = TargetEvaluation.load(folder / TARGETS) if (folder / TARGETS).exists() else None
    except InputError as error:
        logger.warning("%s", error)
        no_evaluation = f"{TARGETS} is damaged or was written by another version."
    if evaluation is None and targets is None and not no_evaluation:
        no_evaluation = "This run has not been evaluated."
    if no_evaluation:
        no_evaluation += f" Run: python -m jepa_fast.evaluate {folder}"
    found, divergence = find_divergence(folder, int(metrics[-1]["step"]) if metrics else 0), ""
    if found is not None:
        divergence = (
            f"It diverged: at step {found.step:,} {found.term} was {found.value}, and the run stopped. {found.path} "
            "keeps the batch and the state before it; checkpoints are of earlier steps."
        )
    return Run(folder, config, environment, metrics, spectra, evaluation, targets, no_evaluation, divergence)


def thinned(values: Sequence[float]) -> list[float]:
    """At most POINTS values: means of equally many neighbours, the last mean perhaps of fewer."""
    width = -(-len(values) // POINTS)
    return [fmean(values[first : first + width]) for first in range(0, len(values), width)] if values else []
