"""What probes for any named targets find, as plain values: printed as a table, stored as JSON, read by the report."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jepa_fast.data.writing import write_text
from jepa_fast.errors import InputError, require
from jepa_fast.probing.results import LARGEST
from jepa_fast.reading import MALFORMED, decode, described, read_json

TARGETS = "targets.json"  # in a run folder
# Validation trajectories below which the table says how well its figures are known.
FEW = 500


@dataclass(frozen=True)
class Errors:
    """Of a probe, or of a guess.

    Attributes:
        mse: squared error in the target's own units, mean over trajectories, steps and the target's numbers.
        deviation: standard error of `mse`, from how it differs between trajectories; NaN for a single one.
        r2: 1 - mse / variance of the target; NaN where it does not vary.
        mse_by_step, r2_by_step: the same at each of the T frames.
    """

    mse: float
    deviation: float
    r2: float
    mse_by_step: list[float]
    r2_by_step: list[float]

    def __post_init__(self) -> None:
        lengths = len(self.mse_by_step), len(self.r2_by_step)
        require(0 < lengths[0] == lengths[1], "r2_by_step", lengths[1], f"as many as errors by step, {lengths[0]}")
        for value in (self.mse, *self.mse_by_step):
            require(0 <= value <= LARGEST, "mse", value, "an error from 0 up to float32's largest")


@dataclass(frozen=True)
class TargetResult:
    """One target: probes of the trained model beside the floors that anybody reaches.

    Attributes:
        name: of the target.
        size: its numbers.
        linear, mlp: read off predicted latents by a linear probe and by one with a hidden layer.
        untrained_linear, untrained_mlp: the same of the model before training; None where this floor was left out.
        constant: the mean of the target where the probes are fitted, as a guess.
    """

    name: str
    size: int
    linear: Errors
    mlp: Errors
    untrained_linear: Errors | None
    untrained_mlp: Errors | None
    constant: Errors

    def __post_init__(self) -> None:
        require(self.size >= 1, "targets.size", self.size, "at least 1")
        lengths = {len(errors.mse_by_step) for _, errors in self.rows()}
        require(len(lengths) == 1, "targets", sorted(lengths), "errors at as many steps everywhere")

    def rows(self) -> list[tuple[str, Errors]]:
        """What is compared, by name."""
        rows = [("linear probe", self.linear), ("MLP probe", self.mlp)]
        if self.untrained_linear is not None and self.untrained_mlp is not None:
            rows += [("untrained, linear", self.untrained_linear), ("untrained, MLP", self.untrained_mlp)]
        return [*rows, ("constant guess", self.constant)]


@dataclass(frozen=True)
class LatentErrors:
    """How far predicted latents are from the encodings of their frames, at each of the T frames.

    Attributes:
        error: mean squared distance, as a share of the encodings' variance: 1 is that of their mean.
        still: the same of frame 0's encoding, as if nothing moved.
        top1: share of trajectories whose own encoding is the nearest of all trajectories' at that step.
    """

    error: list[float]
    still: list[float]
    top1: list[float]

    def __post_init__(self) -> None:
        lengths = [len(self.error), len(self.still), len(self.top1)]
        require(0 < min(lengths) == max(lengths), "latents", lengths, "errors at as many steps each")
        values = [*self.error, *self.still, *self.top1]
        require(
            all(0 <= value <= LARGEST for value in values), "latents", values, "errors from 0 up to float32's largest"
        )


@dataclass(frozen=True)
class Retrieval:
    """A rollout seen through frames: at some steps the true frame, and the one whose encoding is nearest.

    Attributes:
        trajectory: index in the split.
        steps: that are shown.
        true, found: PNG in base64, one for each step.
        found_at: trajectory and step of what was found.
    """

    trajectory: int
    steps: list[int]
    true: list[str]
    found: list[str]
    found_at: list[tuple[int, int]]

    def __post_init__(self) -> None:
        lengths = [len(self.steps), len(self.true), len(self.found), len(self.found_at)]
        require(0 < min(lengths) == max(lengths), "retrievals", lengths, "as many frames as steps")


@dataclass(frozen=True)
class TargetEvaluation:
    """Probes for all targets of a validation split, and what its rollouts look like.

    Attributes:
        data: folder of splits.
        fitted_on: split that the probes are fitted on.
        scored_on: split that they are scored on; the same where the folder has no other.
        fitted: trajectories that the probes saw.
        scored: trajectories that the errors are means over.
        probe_seed: of the probes and of the untrained floor.
        parameters: of the model.
        dim: numbers of a latent.
        targets: by name.
        latents: errors of the predicted latents themselves.
        retrievals: some rollouts as frames.
    """

    data: str
    fitted_on: str
    scored_on: str
    fitted: int
    scored: int
    probe_seed: int
    parameters: int
    dim: int
    targets: list[TargetResult]
    latents: LatentErrors
    retrievals: list[Retrieval]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, json.dumps(_known(asdict(self)), allow_nan=False) + "\n")

    @staticmethod
    def load(path: Path) -> "TargetEvaluation":
        """Read what `save` wrote.

        Raises:
            InputError: not such a file, or one of another version.
        """
        stored = read_json(path, "probes of this version", remedy="; evaluate again")
        try:
            return decode(TargetEvaluation, _unknown(stored), "targets")
        except MALFORMED as error:
            raise InputError(f"{path}: not probes of this version ({described(error)}); evaluate again") from error

    def words(self) -> list[str]:
        """What the figures rest on, and how far they can be trusted."""
        where = f"of {self.scored_on}"
        if self.fitted_on == self.scored_on:
            where = "of the same split that the probes were not fitted on, but the model may have been trained on"
        sentences = [
            f"Probes read the targets off latents that were predicted from frame 0 and the actions alone. They are "
            f"fitted on {self.fitted:,} trajectories of {self.fitted_on} and scored on {self.scored:,} {where}."
        ]
        if self.scored < FEW and self.targets:
            known = [target.mlp.deviation / target.mlp.mse for target in self.targets if target.mlp.mse > 0]
            known = [share for share in known if math.isfinite(share)]
            if known:
                sentences.append(
                    f"On {self.scored:,} trajectories an error has a standard error of up to {100 * max(known):.0f}% "
                    "of itself: smaller differences between models mean nothing."
                )
        if self.fitted < FEW and self.targets:
            sentences.append(
                f"{self.fitted:,} trajectories are few for an MLP probe; where the linear probe has the lower error, "
                "the latents are better than the MLP says."
            )
        return sentences

    def table(self) -> str:
        """All of it for people."""
        head = f"{self.parameters:,} parameters, latents of {self.dim}. {' '.join(self.words())}"
        parts = [head]
        for target in self.targets:
            steps = shown_steps(len(target.mlp.mse_by_step))
            numbers = "1 number" if target.size == 1 else f"mean over {target.size} numbers"
            title = f"\n{target.name}: squared error, {numbers}, and R^2"
            columns = f"{'':<18}{'all steps':>18}" + "".join(f"{f'step {step}':>18}" for step in steps)
            parts += [title, columns]
            for name, errors in target.rows():
                cells = [_cell(errors.mse, errors.r2)]
                cells += [_cell(errors.mse_by_step[step], errors.r2_by_step[step]) for step in steps]
                parts.append(f"{name:<18}" + "".join(f"{cell:>18}" for cell in cells))
        steps = shown_steps(len(self.latents.error))
        parts.append("\nPredicted latents against encodings, squared distance as a share of the encodings' variance")
        parts.append(f"{'':<18}" + "".join(f"{f'step {step}':>12}" for step in steps))
        rows = {"predicted": self.latents.error, "nothing moves": self.latents.still, "found again": self.latents.top1}
        for name, values in rows.items():
            parts.append(f"{name:<18}" + "".join(f"{values[step]:>12.4f}" for step in steps))
        return "\n".join(parts)


def shown_steps(count: int) -> list[int]:
    """Steps 0, 1, 2, 4, 8, ... and the last."""
    last = count - 1
    return sorted({0, *(2**power for power in range(last.bit_length()) if 2**power < last), last})


def _cell(mse: float, r2: float) -> str:
    return f"{mse:.4g} ({r2:.3f})" if math.isfinite(r2) else f"{mse:.4g} (-)"


def _known(value: Any) -> Any:
    """Plain values whose NaNs are None: JSON has no other way to say that a number is not known."""
    if isinstance(value, dict):
        return {name: _known(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _unknown(stored: Any) -> Any:
    """What `_known` made of an evaluation, with its NaNs, which errors of a target alone can have."""
    names = ("deviation", "r2")
    for target in stored["targets"]:
        for errors in target.values():
            if isinstance(errors, dict):
                errors.update({name: math.nan for name in names if errors.get(name, 0) is None})
                errors["r2_by_step"] = [math.nan if one is None else one for one in errors.get("r2_by_step", ())]
    return stored
