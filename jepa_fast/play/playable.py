"""Models as the page takes them: which ones it knows, their weights as text, a probe where positions need one."""

import base64
import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_fast.config import ModelConfig
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import CHANNEL_GROUPS, WORLD
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.engine.checkpoint import checkpoint_folder
from jepa_fast.errors import InputError, require
from jepa_fast.models.model import Model
from jepa_fast.probing.prober import LOCATION_MEAN, LOCATION_STD, converged_probe
from jepa_fast.probing.results import EVALUATION, Evaluation
from jepa_fast.probing.rollouts import rollout_split
from jepa_fast.reading import is_finite, read_json
from jepa_fast.runs import describe_run, load
from jepa_fast.weights import WEIGHTS, WEIGHTS_CONFIG

logger = logging.getLogger(__name__)

# Fields of each kind's configuration that models.js goes by, or that change nothing once a model is trained.
KNOWN = {
    "gated_features": {"dim", "frame", "spread", "border_hidden", "wall_hidden", "reach"},
    "gated_pixels": {"dim", "frame", "white", "spread", "channels", "kernel", "lattice", "hidden"},
    "gated_convnext": {"channels", "blocks", "dim", "frame", "spread", "hidden"},
    "jepa": {
        "channels", "blocks", "dim", "dropout", "residual", "activation", "bias", "head", "fusion", "norm_before_add",
        "norm_after_add", "white", "history", "history_decay", "groups", "action_size",
    },
}  # fmt: skip
# Walks that a probe of positions is trained on.
PROBE_WALKS = 1024
SHIPPED = Path(__file__).parent / "weights"


def shipped() -> list[Path]:
    """Folders of the trained models that come with the package, the smallest first."""
    return sorted(SHIPPED.iterdir(), key=lambda folder: (folder / WEIGHTS).stat().st_size)


def playable(folder: Path, name: str | None = None) -> dict[str, Any]:
    """What the page holds of a run or an export: name, record, kind, config, table and weights.

    Raises:
        InputError: there is no model, or one that the page does not know.
    """
    model = load(folder)
    check(model.config, str(folder))
    tensors = dict(model.state_dict())
    config = dataclasses.asdict(model.config)
    if model.config.kind == "jepa":
        config["frame"] = WORLD.size
        tensors |= probe_tensors(model)
    table, weights = packed(tensors)
    return {
        "name": name or folder.resolve().name,
        "record": record(folder, model),
        "kind": model.config.kind,
        "config": config,
        "table": table,
        "weights": weights,
    }


def check(config: ModelConfig, where: str) -> None:
    """Raise InputError unless the page knows such a model."""
    if config.kind not in KNOWN:
        raise InputError(f"{where}: its model is a {config.kind}, the page knows {', '.join(KNOWN)}")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in {"kind", *KNOWN[config.kind]} and value != field.default:
            raise InputError(f"{where}: model.{field.name} is {value!r}, the page knows {field.default!r} alone")
    if getattr(config, "head", "pool") == "spatial":
        raise InputError(f"{where}: model.head is 'spatial', the page knows 'pool' and 'softargmax' alone")
    groups = tuple((group.name, group.channels) for group in getattr(config, "groups", ()))
    if getattr(config, "frame", WORLD.size) != WORLD.size or groups not in ((), CHANNEL_GROUPS):
        raise InputError(f"{where}: its frames are not those of the two-room world, which the page shows")
    if getattr(config, "action_size", 2) != 2:
        raise InputError(f"{where}: its actions are not those of the two-room world, which the page shows")


def packed(tensors: Mapping[str, Tensor]) -> tuple[list[tuple[str, list[int]]], str]:
    """Names and shapes in order, and all values one after the other as little-endian float32 in base64."""
    table = [(name, list(tensor.shape)) for name, tensor in tensors.items()]
    values = np.concatenate([tensor.detach().cpu().numpy().astype("<f4").ravel() for tensor in tensors.values()])
    return table, base64.b64encode(values.tobytes()).decode("ascii")


def probe_tensors(model: Model) -> dict[str, Tensor]:
    """The converged probe of `jepa_fast.probing`, which reads positions off latents, trained on simulated walks."""
    logger.info("training a probe that reads positions off latents, on %d simulated walks", PROBE_WALKS)
    with tempfile.TemporaryDirectory() as folder:
        pack(TwoRoomsSource("probe_normal/train", PROBE_WALKS, seed=0), Path(folder), label="walks")
        rollouts = rollout_split(model, open_split(Path(folder)), "walks")
    probe = converged_probe(rollouts, seed=0)
    found = {f"probe.{name}": tensor for name, tensor in probe.network.state_dict().items()}
    return found | {
        "probe.mean": probe.mean,
        "probe.std": probe.std,
        "probe.location_mean": torch.tensor(LOCATION_MEAN),
        "probe.location_std": torch.tensor(LOCATION_STD),
    }


def record(folder: Path, model: Model) -> str:
    """One paragraph on where a model comes from and how far off its predictions are."""
    is_run = checkpoint_folder(folder).exists()
    # The model has been read by now; what else stands in the file is for people, and may be anything.
    stored = {} if is_run else read_json(folder / WEIGHTS_CONFIG, "exported weights")
    origin = describe_run(folder) if is_run else stored.get("origin", {})
    require(isinstance(origin, dict), f"{folder / WEIGHTS_CONFIG}: origin", origin, "a JSON object")
    errors = origin.get("errors_px2", {})
    right = isinstance(errors, dict) and all(is_finite(error) for error in errors.values())
    require(right, f"{folder / WEIGHTS_CONFIG}: errors_px2", errors, "numbers")
    for name in ("steps", "batch_size", "seed"):
        value = origin.get(name, 0)
        require(isinstance(value, int), f"{folder / WEIGHTS_CONFIG}: {name}", value, "a number")
    if (folder / EVALUATION).is_file():
        errors = errors_px2(Evaluation.load(folder / EVALUATION))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    known = {"preset": "{}", "steps": "{:,} steps", "batch_size": "batches of {}", "seed": "seed {}"}
    words = [text.format(origin[key]) for key, text in known.items() if key in origin]
    sentences = [", ".join([f"{parameters:,} parameters", *words]) + "."]
    if errors:
        listed = ", ".join(f"{name.split('/')[0].removeprefix('probe_')} {error:.2g}" for name, error in errors.items())
        sentences.append(f"Mean squared errors of probed predictions in px²: {listed}.")
    return " ".join(sentences)


def errors_px2(evaluation: Evaluation) -> dict[str, float]:
    """The converged probe's error on every probe set."""
    return {result.name: result.trained.converged for result in evaluation.probe_sets}


def folders_of(paths: Sequence[Path]) -> list[Path]:
    """Runs and exports among these folders and, where one is neither, right inside it, the newest first.

    Raises:
        InputError: there is none.
    """
    found = []
    for path in paths:
        inside = sorted(path.glob("*/config.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        some = [path] if (path / "config.json").is_file() else [file.parent for file in inside]
        if not some:
            raise InputError(f"{path}: neither a run nor a folder of runs")
        found += some
    return found
