"""Probes for any named targets: what predicted latents know of them, beside an untrained model and a constant guess.

linear   ridge regression on standardised latents; its penalty is the best of a few on a tenth of the trajectories
MLP      D -> 256 -> size with ReLU on standardised latents and targets, Adam at 1e-3 with cosine to zero; the epoch
         best on the same tenth is kept

The model sees frame 0 and the actions. Both probes are fitted on the latents of all steps together. The protocol of the
two-room sets is `jepa_fast.probing.evaluation`.
"""

import base64
import copy
import io
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.image import imsave
from numpy.typing import NDArray
from torch import Tensor, nn

from jepa_fast.data.batches import expand_pixels
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.manifest import MANIFEST_NAME
from jepa_fast.data.shards import Split, open_split, training_split
from jepa_fast.errors import InputError, require
from jepa_fast.models.model import Model
from jepa_fast.models.registry import build_model, is_built_here
from jepa_fast.probing.target_results import (
    Errors,
    LatentErrors,
    Retrieval,
    TargetEvaluation,
    TargetResult,
    shown_steps,
)
from jepa_fast.progress import Progress

logger = logging.getLogger(__name__)

# Trajectories at most, spread over their splits: more change no figure that is shown.
MOST_FITTED, MOST_SCORED = 2000, 1000
ROLLED_OUT = 64  # at a time
PENALTIES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)
HIDDEN, BATCH, LEARNING_RATE = 256, 256, 1e-3
# Passes over the rows; fewer where these are many.
EPOCHS, MOST_STEPS = 100, 4000
RETRIEVALS, RETRIEVED_STEPS = 4, 6
# Pixels of a side of a frame that is shown.
MOST_SHOWN = 128

Probe = Callable[[Tensor], Tensor]  # latents [..., D] -> target [..., size]


class Rolled(NamedTuple):
    """Rollouts of n trajectories, float32 on the CPU."""

    predicted: Tensor  # [n, T, D]; frame 0's is its encoding
    encoded: Tensor  # [n, T, D], or of frame 0 [n, 1, D]


def evaluate_targets(
    model: Model,
    data: str | Path,
    *,
    split: str | None = None,
    probe_seed: int = 0,
    floor: bool = True,
    frames: int | None = None,
    frame_skip: int = 1,
) -> TargetEvaluation:
    """Probe `model` for every target of a validation split; without targets, only its rollouts are looked at.

    Args:
        model: on any device.
        data: folder of splits, one of them called train, or a split's own folder.
        split: that is scored on, by its name in the folder. Default: val, else the only one beside train; without any,
            trajectories of the training split that the probes are not fitted on.
        probe_seed: of the probes and of the untrained floor.
        floor: whether the model is probed untrained as well.
        frames: T of the clips that are rolled out, which share no frame; as the model was trained. Default: whole
            trajectories, or 16 frames where lengths differ.
        frame_skip: frames from one frame of a clip to its next.

    Raises:
        InputError: a split is missing, has another layout than the training split, or is too small.
    """
    data = Path(data)
    fitted_on = open_split(training_split(data)).clips(frames, frame_skip, apart=True)
    scored_on, name = _validation(data, fitted_on, split)
    if scored_on is not fitted_on:
        scored_on = scored_on.clips(fitted_on.spec.frames, frame_skip, apart=True)
    if scored_on.spec.targets != fitted_on.spec.targets:
        found = f"targets {scored_on.spec.targets}, expected {fitted_on.spec.targets} as in {fitted_on.folder}"
        raise InputError(f"{scored_on.folder}: found {found}")
    fit, score = _rows(fitted_on, scored_on)
    targets = [size for _, size in fitted_on.spec.targets]
    untrained = _untrained(model, probe_seed) if floor and targets else None
    rolled = roll_out(model, scored_on, score)
    known = roll_out(model, fitted_on, fit, encodes=False).predicted if targets else None
    others = None
    if untrained is not None:
        others = tuple(
            roll_out(untrained, each, rows, encodes=False).predicted
            for each, rows in ((fitted_on, fit), (scored_on, score))
        )
    results = []
    for target, size in fitted_on.spec.targets:
        assert known is not None
        truth = torch.from_numpy(fitted_on.targets(target, fit)), torch.from_numpy(scored_on.targets(target, score))
        ours = [_probed(fitted, known, truth[0], rolled.predicted, truth[1], probe_seed) for fitted in PROBES]
        floors: list[Errors | None] = [None, None]
        if others is not None:
            floors = [_probed(fitted, others[0], truth[0], others[1], truth[1], probe_seed) for fitted in PROBES]
        constant = errors_of(truth[0].mean(dim=(0, 1)).expand_as(truth[1]), truth[1])
        results.append(TargetResult(target, size, ours[0], ours[1], floors[0], floors[1], constant))
    return TargetEvaluation(
        data=str(data),
        fitted_on=fitted_on.folder.name,
        scored_on=name,
        fitted=len(fit),
        scored=len(score),
        probe_seed=probe_seed,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dim=rolled.predicted.shape[-1],
        targets=results,
        latents=latent_errors(rolled),
        retrievals=retrievals(rolled, scored_on, score),
    )


def validation_splits(data: Path) -> list[str]:
    """Names of the splits under `data` beside the training split, those called val first."""
    own = training_split(data)
    found = [path.parent.relative_to(data) for path in sorted(data.rglob(MANIFEST_NAME)) if path.parent != own]
    return sorted((path.as_posix() for path in found), key=lambda name: (name.rpartition("/")[2] != "val", name))


def _validation(data: Path, fitted_on: Split, name: str | None) -> tuple[Split, str]:
    """The split that is scored on and its name; the training split's where there is no other."""
    known = validation_splits(data) if training_split(data) != data else []
    if name is None:
        if not known:
            return fitted_on, fitted_on.folder.name
        name = known[0]
        if len(known) > 1:
            logger.info("scored on %s; --split names another of %s", name, ", ".join(known))
    require(name in known, "--split", name, f"one of {', '.join(known) or 'none: there is only the training split'}")
    return open_split(data / name), name


def _rows(fitted_on: Split, scored_on: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Trajectories that probes are fitted on and scored on; of one split a fifth for the score."""
    least = 3 if fitted_on is scored_on else 2
    if fitted_on.count < least:
        raise InputError(
            f"{fitted_on.folder}: found {_counted(fitted_on)}, expected {least} or more to fit and score probes: more "
            "episodes, or clips of fewer frames"
        )
    if fitted_on is not scored_on:
        return _spread(fitted_on.count, MOST_FITTED), _spread(scored_on.count, MOST_SCORED)
    rows = _spread(fitted_on.count, MOST_FITTED)
    is_scored = np.arange(len(rows)) % 5 == 2
    return rows[~is_scored], rows[is_scored]


def _counted(split: Split) -> str:
    """What there is to draw from, for people."""
    total = split.manifest.trajectories
    whole = f"{total} {'trajectory' if total == 1 else 'trajectories'}"
    if split.drawn is None:
        return whole
    clips = "clip" if split.count == 1 else "clips that share no frame"
    return f"{split.count} {clips}, {split.spec.frames} frames each, in {whole}"


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` numbers, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _untrained(model: Model, seed: int) -> Model | None:
    if not is_built_here(model.config):
        logger.info("no untrained floor: only the code that made a %s model can build another", model.config.kind)
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = build_model(model.config, kernels=model.kernels)
    return fresh.to(next(model.parameters()).device)


@torch.no_grad()
def roll_out(model: Model, split: Split, rows: NDArray[np.int64], encodes: bool = True) -> Rolled:
    """Latents of some trajectories of a split, in evaluation mode; encoded ones of frame 0 alone without `encodes`."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    encode = model.batch_encoder(split.spec, group_bases(split, device))
    predicted, encoded = [], []
    with Progress(f"rollout {split.folder.name}", len(rows), "trajectories") as progress:
        for first in range(0, len(rows), ROLLED_OUT):
            batch = gather(split, rows[first : first + ROLLED_OUT]).to(device)
            seen = encode(batch if encodes else batch.frames(slice(1)), model.dropout_clock)
            predicted.append(model.unroll(model.frame(seen, 0), batch.actions).float().cpu())
            encoded.append(model.latents(seen).float().cpu())
            progress.update(len(batch.indices))
    model.train(training)
    return Rolled(torch.cat(predicted), torch.cat(encoded))


def _probed(
    fit: "Callable[[Tensor, Tensor, Tensor, Tensor, int], Probe]",
    latents: Tensor,
    values: Tensor,
    unseen: Tensor,
    truth: Tensor,
    seed: int,
) -> Errors:
    """Errors on latents [m, T, D] of targets [m, T, size] by a probe fitted on other trajectories."""
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))
    held = order[: max(1, len(order) // 10)]
    rest = order[len(held) :]
    std, mean = torch.std_mean(latents[rest].flatten(0, 1), dim=0)
    value_std, value_mean = torch.std_mean(values[rest].flatten(0, 1), dim=0)
    # Of latents and targets that do not vary nothing is to be told.
    std, value_std = (torch.where(own > 1e-6, own, 1.0) for own in (std, value_std))

    def rows(those: Tensor) -> tuple[Tensor, Tensor]:
        inputs, outputs = (latents[those] - mean) / std, (values[those] - value_mean) / value_std
        return inputs.flatten(0, 1), outputs.flatten(0, 1)

    probe = fit(*rows(rest), *rows(held), seed)
    with torch.no_grad():
        return errors_of(probe((unseen - mean) / std) * value_std + value_mean, truth)


def fit_linear(inputs: Tensor, outputs: Tensor, held_inputs: Tensor, held_outputs: Tensor, seed: int) -> Probe:
    """Ridge regression of outputs [n, size] on inputs [n, D], float64 inside; the penalty goes by held-out rows."""

    def widened(rows: Tensor) -> Tensor:
        ones = torch.ones(*rows.shape[:-1], 1, dtype=torch.float64)
        return torch.cat([rows.double(), ones], dim=-1)

    def solved(rows: Tensor, values: Tensor, penalty: float) -> Tensor:
        wide = widened(rows)
        diagonal = torch.full((wide.shape[1],), penalty * len(wide), dtype=torch.float64)
        solution: Tensor = torch.linalg.solve(wide.T @ wide + diagonal.diag(), wide.T @ values.double())
        return solution

    errors = {
        penalty: float((widened(held_inputs) @ solved(inputs, outputs, penalty) - held_outputs).square().mean())
        for penalty in PENALTIES
    }
    best = min(errors, key=errors.__getitem__)
    weights = solved(torch.cat([inputs, held_inputs]), torch.cat([outputs, held_outputs]), best)

    def probe(latents: Tensor) -> Tensor:
        found: Tensor = widened(latents) @ weights
        return found.to(latents.dtype)

    return probe


def fit_mlp(inputs: Tensor, outputs: Tensor, held_inputs: Tensor, held_outputs: Tensor, seed: int) -> Probe:
    """A network with a hidden layer from inputs [n, D] to outputs [n, size], of the epoch best on held-out rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs.shape[1]))
    generator = torch.Generator().manual_seed(seed)
    batches = -(-len(inputs) // BATCH)
    epochs = max(1, min(EPOCHS, MOST_STEPS // batches))
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    best, weights = math.inf, copy.deepcopy(network.state_dict())
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.mse_loss(network(inputs[rows]), outputs[rows]))
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            error = float(nn.functional.mse_loss(network(held_inputs), held_outputs))
        if error < best:
            best, weights = error, copy.deepcopy(network.state_dict())
    network.load_state_dict(weights)
    network.requires_grad_(False)
    return network


PROBES = (fit_linear, fit_mlp)


def errors_of(found: Tensor, truth: Tensor) -> Errors:
    """Errors of found targets [m, T, size]."""
    squared = (found - truth).double().square().mean(dim=2)  # [m, T]
    spread = (truth - truth.mean(dim=(0, 1))).double().square().mean(dim=2)
    by_step, of_step = squared.mean(dim=0), (truth - truth.mean(dim=0)).double().square().mean(dim=(0, 2))
    deviation = float(squared.mean(dim=1).std() / math.sqrt(len(squared))) if len(squared) > 1 else math.nan
    return Errors(
        mse=float(squared.mean()),
        deviation=deviation,
        r2=_r2(float(squared.mean()), float(spread.mean())),
        mse_by_step=by_step.tolist(),
        r2_by_step=[_r2(error, variance) for error, variance in zip(by_step.tolist(), of_step.tolist(), strict=True)],
    )


def _r2(error: float, variance: float) -> float:
    return 1 - error / variance if variance > 0 else math.nan


def latent_errors(rolled: Rolled) -> LatentErrors:
    """How far predicted latents are from the encodings of their frames."""
    predicted, encoded = rolled
    variance = (encoded - encoded.mean(dim=(0, 1))).square().sum(dim=2).mean()
    error, still, top1 = [], [], []
    for step in range(encoded.shape[1]):
        truth = encoded[:, step]
        error.append(float((predicted[:, step] - truth).square().sum(dim=1).mean() / variance))
        still.append(float((encoded[:, 0] - truth).square().sum(dim=1).mean() / variance))
        distances = _distances(predicted[:, step], truth)
        # Where frames look the same, either is the own.
        top1.append(float((distances.diagonal() <= distances.min(dim=1).values).double().mean()))
    return LatentErrors(error, still, top1)


def _distances(found: Tensor, known: Tensor) -> Tensor:
    """From each of [n, D] to each of [m, D], [n, m]: differences, not products, which round equal ones apart."""
    return torch.cdist(found, known, compute_mode="donot_use_mm_for_euclid_dist")


def retrievals(rolled: Rolled, split: Split, rows: NDArray[np.int64]) -> list[Retrieval]:
    """Some rollouts as frames: the true ones, and those of the whole split whose encodings are nearest."""
    count, length, _ = rolled.encoded.shape
    steps = shown_steps(length)
    steps = [*steps[: RETRIEVED_STEPS - 1], steps[-1]] if len(steps) > RETRIEVED_STEPS else steps
    flat = rolled.encoded.flatten(0, 1)
    found = []
    for place in np.unique(np.linspace(0, count - 1, min(count, RETRIEVALS)).astype(np.int64)).tolist():
        nearest = _distances(rolled.predicted[place, steps], flat).argmin(dim=1).tolist()
        where = [divmod(each, length) for each in nearest]
        found.append(
            Retrieval(
                trajectory=int(rows[place]),
                steps=steps,
                true=[picture(split, int(rows[place]), step) for step in steps],
                found=[picture(split, int(rows[other]), step) for other, step in where],
                found_at=[(int(rows[other]), step) for other, step in where],
            )
        )
    return found


def picture(split: Split, row: int, step: int) -> str:
    """A frame as PNG in base64: RGB, or grey of one channel; of others the first three, a missing one black."""
    batch = gather(split, np.array([row])).frames(slice(step, step + 1))
    pixels = expand_pixels(batch, split.spec, group_bases(split))[0, 0]
    channels, height, width = pixels.shape
    if channels == 1:
        pixels = pixels.expand(3, -1, -1)
    elif channels == 2:
        pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])
    apart = -(-max(height, width) // MOST_SHOWN)
    image = pixels[:3, ::apart, ::apart].permute(1, 2, 0).contiguous().numpy()
    written = io.BytesIO()
    imsave(written, image, format="png")
    return base64.b64encode(written.getvalue()).decode()
