"""The probing protocol: both probes, the floors and the error at every step, for every probe set of a data folder."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.manifest import MANIFEST_NAME
from jepa_fast.data.shards import Split, open_split
from jepa_fast.data.two_rooms.rooms import solid_images
from jepa_fast.errors import InputError
from jepa_fast.models.model import Model
from jepa_fast.models.registry import build_model, is_built_here
from jepa_fast.probing.distance import distances_to_solid, errors_by_distance
from jepa_fast.probing.prober import Probe, converged_probe, official_probe
from jepa_fast.probing.results import Evaluation, Example, ProbeSetResult, Scores
from jepa_fast.probing.rollouts import Rollouts, all_locations, rollout_split

logger = logging.getLogger(__name__)

# Validation split -> the split that its probe is trained on.
PROBE_SETS = {
    "probe_normal/val": "probe_normal/train",
    "probe_wall/val": "probe_normal/train",
    "probe_wall_other/val": "probe_normal/train",
    "probe_expert/val": "probe_expert/train",
}


# Trajectories shown of each kind: the best, the ones around the median, the worst.
EXAMPLES = 2


class _Probed:
    """A model and the probes trained on its rollouts, one pair for each probe training split, made when first used."""

    def __init__(self, model: Model, data: Path, seed: int, most: int | None = None) -> None:
        self.model, self.data, self.seed, self.most = model, data, seed, most
        self.probes: dict[str, tuple[Probe, Probe]] = {}

    def rollouts(self, name: str) -> Rollouts:
        """The model's rollouts of the split `name`."""
        return rollout_split(self.model, self.split(name), name)

    def split(self, name: str) -> Split:
        """The split `name`, or its first `most` trajectories."""
        split = open_split(self.data / name)
        return split if self.most is None else split.first(self.most)

    def probes_for(self, name: str) -> tuple[Probe, Probe]:
        """The official and the converged probe for the validation split `name`."""
        source = PROBE_SETS[name]
        if source not in self.probes:
            rollouts = self.rollouts(source)
            self.probes[source] = official_probe(rollouts, self.seed), converged_probe(rollouts, self.seed)
        return self.probes[source]

    def errors(self, name: str, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """Both probes' squared errors [N, T] on the rollouts of the validation split `name`."""
        official, converged = self.probes_for(name)
        return official.squared_errors(rollouts), converged.squared_errors(rollouts)


def score(model: Model, data: Path, names: Sequence[str], probe_seed: int) -> dict[str, Scores]:
    """The scores of `model` on these validation splits under `data`: as `evaluate` gives them, and nothing else.

    Raises:
        InputError: a split is missing or damaged.
    """
    probed = _Probed(model, data, probe_seed)
    return {name: scores(*probed.errors(name, probed.rollouts(name))) for name in names}


def evaluate(model: Model, data: Path, probe_seed: int = 0, floor: bool = True, most: int | None = None) -> Evaluation:
    """Score `model` on every probe set under `data` whose two splits are there.

    Without `floor` the untrained model beside it, half of the work, is left out. With `most` no more than so many
    trajectories of a split are taken: a first look, whose errors do not compare with those of a whole evaluation.

    Raises:
        InputError: there is no complete probe set, or a split is damaged.
    """
    names = []
    for name in PROBE_SETS:
        missing = _missing(data, name)
        if missing:
            logger.info("%s: left out, %s has no %s", name, data, " and no ".join(missing))
        else:
            names.append(name)
    if not names:
        raise InputError(f"{data}: no probe set; expected {' or '.join(PROBE_SETS)} with their training splits")
    trained, untrained = _Probed(model, data, probe_seed, most), None
    if floor and not is_built_here(model.config):
        logger.info("no untrained floor: only the code that made a %s model can build another", model.config.kind)
    elif floor:
        with torch.random.fork_rng():
            torch.manual_seed(probe_seed)
            fresh = build_model(model.config, kernels=model.kernels).to(next(model.parameters()).device)
        untrained = _Probed(fresh, data, probe_seed, most)
    results, norm, dim = [], None, 0
    for name in names:
        rollouts = trained.rollouts(name)
        if norm is None:
            norm, dim = rollouts.latents[:, 1:].norm(dim=2).mean().item(), rollouts.latents.shape[2]
        split, probe_split = trained.split(name), trained.split(PROBE_SETS[name])
        errors = trained.errors(name, rollouts)
        result = ProbeSetResult(
            name=name,
            trajectories=split.count,
            probe_trajectories=probe_split.count,
            trained=scores(*errors),
            untrained=scores(*untrained.errors(name, untrained.rollouts(name))) if untrained is not None else None,
            constant=constant_error(all_locations(probe_split), rollouts.locations),
            by_distance=errors_by_distance(distances_to_solid(split), *errors),
            image_size=(split.spec.width, split.spec.height),
            examples=choose_examples(trained.probes_for(name)[1], errors[1], rollouts, split),
        )
        results.append(result)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Evaluation(str(data), probe_seed, parameters, dim, norm or 0.0, results)


def probe_sets(data: Path) -> list[str]:
    """The probe sets of two rooms under `data` whose two splits are there."""
    return [name for name in PROBE_SETS if not _missing(data, name)]


def _missing(data: Path, name: str) -> list[str]:
    """The splits of a probe set that are not there."""
    return [split for split in (name, PROBE_SETS[name]) if not (data / split / MANIFEST_NAME).is_file()]


def scores(official: Tensor, converged: Tensor) -> Scores:
    """The scores of squared errors [N, T]."""
    return Scores(
        official.mean().item(), converged.mean().item(), official.mean(0).tolist(), converged.mean(0).tolist()
    )


def choose_examples(probe: Probe, squared_errors: Tensor, rollouts: Rollouts, split: Split) -> list[Example]:
    """The best, median and worst trajectories of `split`, by the means of the probe's squared errors [N, T]."""
    errors = squared_errors.mean(dim=1)
    order = errors.argsort()
    shown = min(EXAMPLES, len(order))
    middle = (len(order) - shown) // 2
    places = {"best": range(shown), "median": range(middle, middle + shown), "worst": range(-1, -1 - shown, -1)}
    examples = []
    for kind, positions in places.items():
        for position in positions:
            row = int(order[position])
            solid = solid_images(gather(split, np.array([row])), split.spec, group_bases(split))[0].numpy()
            located = probe.locate(rollouts.latents[row])
            example = Example(
                kind=kind,
                trajectory=row,
                error=errors[row].item(),
                true=_rounded(rollouts.locations[row]),
                located=_rounded(located),
                solid=rectangles(solid),
            )
            examples.append(example)
    return examples


def _rounded(path: Tensor) -> list[tuple[float, float]]:
    """A path [T, 2] to hundredths of a pixel."""
    return [(round(x, 2), round(y, 2)) for x, y in path.tolist()]


def rectangles(image: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Rectangles (x, y, width, height) that cover exactly the non-zero pixels of an image [H, W], each pixel once."""
    found: list[tuple[int, int, int, int]] = []
    # Spans (first column, last column + 1) of the rows above that may still grow, and where they began.
    open_spans: dict[tuple[int, int], int] = {}
    for y, row in enumerate([*(image != 0), np.zeros(image.shape[1], np.bool_)]):
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False))
        spans = set(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        for span in open_spans.keys() - spans:
            top = open_spans.pop(span)
            found.append((span[0], top, span[1] - span[0], y - top))
        for span in spans - open_spans.keys():
            open_spans[span] = y
    return sorted(found)


def constant_error(train: Tensor, val: Tensor) -> float:
    """Squared error in pixels^2 of predicting the mean of `train` [N, T, 2] for all of `val` [M, T, 2]."""
    return (val - train.mean(dim=(0, 1))).square().mean().item()
