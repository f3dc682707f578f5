"""Weights outside a run: model.safetensors beside config.json, and files of other codes. No pickled code is run."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa_fast.backends import choose_kernels
from jepa_fast.config import InputSpec, Kernels, read_model_config
from jepa_fast.data.writing import write_text
from jepa_fast.errors import InputError
from jepa_fast.models.model import Model
from jepa_fast.models.registry import build_model
from jepa_fast.reading import MALFORMED, decode, described, read_json

WEIGHTS = "model.safetensors"
WEIGHTS_CONFIG = "config.json"


def save_weights(model: Model, folder: Path, origin: dict[str, Any]) -> None:
    """Write `model` into `folder`, which is made if need be: what `load_weights` reads.

    Args:
        model: its float tensors are written as they are.
        folder: gets model.safetensors and config.json.
        origin: where the weights come from, for people; any JSON object.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
        config = {"model": dataclasses.asdict(model.config), "origin": origin}
        if model.inputs is not None:
            config["inputs"] = dataclasses.asdict(model.inputs)
        write_text(folder / WEIGHTS_CONFIG, json.dumps(config, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be written ({error})") from error


def load_weights(
    folder: Path,
    kernels: Literal["auto", Kernels] = "auto",
    model: Model | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Model:
    """The model that `save_weights` wrote, in evaluation mode, on the CPU; a `model` that is given takes the weights.

    Args:
        folder: holds model.safetensors and config.json.
        kernels: what the model is to run on; "auto" is the fastest that `device` has.
        model: takes the weights, in place of one that is built from the configuration.
        device: where the model is to run.

    Raises:
        InputError: a file is missing or damaged, the two do not fit, or kernels are not there.
    """
    try:
        stored = read_json(folder / WEIGHTS_CONFIG, "the configuration of the weights")
        config = read_model_config(stored["model"])
        inputs = decode(InputSpec, stored["inputs"], "inputs") if "inputs" in stored else None
    except MALFORMED as error:
        why = described(error)
        raise InputError(f"{folder / WEIGHTS_CONFIG}: not the configuration of exported weights ({why})") from error
    if model is None:
        model = build_model(config, kernels=choose_kernels(kernels, device, config.dim))
    try:
        model.load_state_dict(read_tensors(folder / WEIGHTS))
    except (TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS}: not of the model in {WEIGHTS_CONFIG} ({error})") from error
    model.inputs = inputs
    return model.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or in one of torch.save, on the CPU.

    Raises:
        InputError: no such file, or it holds anything but a dict of tensors under names.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected weights (.safetensors, or a state dict of torch.save)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged file makes torch's unpickler raise can be anything.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a file of plain tensors ({reason})") from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise InputError(f"{path}: found a {type(tensors).__name__}, expected a dict of tensors under names")
    return tensors
