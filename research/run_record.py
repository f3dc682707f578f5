"""What is kept of a run that was trained and evaluated: one line of JSON, without paths of the machine."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jepa_fast.config import RunConfig
from jepa_fast.engine.record import Metrics, read_environment, read_metrics, read_spectra
from jepa_fast.errors import InputError
from jepa_fast.presets import canonical
from jepa_fast.probing.results import EVALUATION, Evaluation, Scores
from jepa_fast.runs import CONFIG
from research import jsonl
from research.process import Cost

# Log steps that are kept, spread over the run, the last one among them.
LOG_STEPS = 20


@dataclass(frozen=True)
class SetScores:
    """Squared errors in pixels^2 on a probe set, and the floors'. `untrained` is None where that was left out."""

    trained: Scores
    untrained: Scores | None
    constant: float


@dataclass(frozen=True)
class Collapse:
    """How far the latents of the collapse watch's fixed batch were from collapse when it last looked.

    Attributes:
        step: of the look.
        std_min, std_median: standard deviations over the latent's dimensions.
        size: root mean square of the latents' elements.
        rank: effective rank, of `dim` dimensions.
        rankme: the same of the latents as they are, not centred.
        collapsed: whether the watch finds them collapsed.
    """

    step: int
    std_min: float
    std_median: float
    size: float
    rank: float
    rankme: float
    dim: int
    collapsed: bool


@dataclass(frozen=True)
class RunRecord:
    """A run, measured. The fields' names are those of the stored records.

    Attributes:
        preset, seed: of the run; the preset by the name that it has now.
        probe_seed: of the probes that scored it.
        parameters: of the model; 0 where it was not evaluated.
        steps: that were done.
        trajectories: that were trained on, repetitions counted.
        epochs: over the training set.
        train_wall_s, train_cpu_s: wall-clock and CPU time of the training processes, their start included, evaluation
            not. None where one was killed before it could be measured.
        load_average_after: of the machine over the 15 minutes before this was recorded.
        failure: why it ended early; None where it did not. Such a run has no scores.
        environment: versions and device.
        config: what was asked for.
        probe_sets: by name of the validation split.
        wall_to_agent: `Evaluation.wall_to_agent`.
        collapse: None where no spectrum was recorded.
        metrics: of the log steps, thinned.
    """

    preset: str
    seed: int
    probe_seed: int
    parameters: int
    steps: int
    trajectories: int
    epochs: float
    train_wall_s: float | None
    train_cpu_s: float | None
    load_average_after: float
    failure: str | None
    environment: dict[str, Any]
    config: dict[str, Any]
    probe_sets: dict[str, SetScores]
    wall_to_agent: dict[str, float]
    collapse: Collapse | None
    metrics: list[Metrics]

    def append(self, path: Path) -> None:
        """Add it to the records in `path`, as one line."""
        jsonl.append(path, rounded(asdict(self)))

    @staticmethod
    def parse(fields: dict[str, Any], where: str) -> "RunRecord":
        """A record from a line that `append` wrote, numbers to five digits.

        Raises:
            InputError: not a record; names `where`.
        """
        try:
            fields = fields | {"preset": canonical(fields["preset"])}
            fields["probe_sets"] = {name: _set_scores(found) for name, found in fields["probe_sets"].items()}
            fields["collapse"] = Collapse(**fields["collapse"]) if fields["collapse"] is not None else None
            return RunRecord(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: not a record of a run ({error}); remove the line and measure again") from error


def _set_scores(fields: dict[str, Any]) -> SetScores:
    trained, untrained = fields["trained"], fields["untrained"]
    return SetScores(Scores(**trained), Scores(**untrained) if untrained is not None else None, fields["constant"])


def record_of(run: Path, training: Cost | None, probe_seed: int, failure: str | None = None) -> RunRecord:
    """The record of a run folder: trained at this cost, None if it is unknown, and, unless it failed, evaluated.

    Raises:
        InputError: not a run folder, or not evaluated.
    """
    config = RunConfig.load(run / CONFIG)
    metrics = read_metrics(run)
    asked = json.loads((run / CONFIG).read_text())
    del asked["data"]  # a path of the machine
    evaluation = None if failure is not None else Evaluation.load(run / EVALUATION)
    last: Metrics = metrics[-1] if metrics else {"step": 0, "epoch": 0.0}
    return RunRecord(
        preset=config.preset,
        seed=config.seed,
        probe_seed=probe_seed,
        parameters=0 if evaluation is None else evaluation.parameters,
        steps=int(last["step"]),
        trajectories=int(last["step"]) * config.batch_size,
        epochs=last["epoch"],
        train_wall_s=None if training is None else training.wall_s,
        train_cpu_s=None if training is None else training.cpu_s,
        load_average_after=os.getloadavg()[2],
        failure=failure,
        environment=read_environment(run),
        config=asked,
        probe_sets={}
        if evaluation is None
        else {one.name: SetScores(one.trained, one.untrained, one.constant) for one in evaluation.probe_sets},
        wall_to_agent={} if evaluation is None else evaluation.wall_to_agent,
        collapse=_collapse(run, config),
        metrics=_thinned(metrics),
    )


def _collapse(run: Path, config: RunConfig) -> Collapse | None:
    spectra = read_spectra(run)
    if not spectra:
        return None
    last = spectra[-1]
    std: list[float] = last["std"]
    collapsed = config.recipe.model.is_collapsed(std, last["size"], last["rankme"])
    return Collapse(
        last["step"], min(std), median(std), last["size"], last["rank"], last["rankme"], len(std), collapsed
    )


def _thinned(metrics: list[Metrics]) -> list[Metrics]:
    every = -(-len(metrics) // LOG_STEPS)
    return metrics[::-1][::every][::-1] if metrics else []


def rounded(value: Any) -> Any:
    """A JSON value with its numbers to five digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
