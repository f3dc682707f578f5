"""Weights of the original ExploreJEPA code as weights of ours: the same function, other names.

The original calls its wall branch "env". 1x1 convolutions and linear layers are one thing: both shapes are taken.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from jepa_fast.config import JEPAConfig
from jepa_fast.errors import InputError
from jepa_fast.models.convnext import POOLED_SIDE

ENCODER = "state_encoder."
PREDICTOR = "state_predictor."
LISTED = 4  # names in an error message


def convert(state_dict: Mapping[str, Tensor], gelu_first: bool) -> tuple[JEPAConfig, dict[str, Tensor]]:
    """The configuration that a state dict implies, and the same weights under our names, in float32.

    Raises:
        InputError: keys are missing or unknown, or a tensor has another shape than the rest implies.
    """
    wrong = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"weights: {_some(wrong)}: expected tensors, found {type(state_dict[wrong[0]]).__name__}")
    config = _read_config(state_dict, gelu_first)
    layout = _layout(config)
    missing = [key for key in layout if key not in state_dict]
    extra = [key for key in state_dict if key not in layout]
    if missing or extra:
        found = [f"missing {_some(missing)}"] * bool(missing) + [f"unknown {_some(extra)}"] * bool(extra)
        raise InputError(f"weights: {', '.join(found)}; expected the {len(layout)} tensors of an ExploreJEPA model")
    weights = {}
    for theirs, (ours, shape) in layout.items():
        tensor = state_dict[theirs]
        if tensor.shape != shape and not _same_map(tuple(tensor.shape), shape):
            raise InputError(f"weights: {theirs}: found shape {list(tensor.shape)}, expected {list(shape)}")
        weights[ours] = tensor.to(torch.float32).reshape(shape)
    return config, weights


def _read_config(state_dict: Mapping[str, Tensor], gelu_first: bool) -> JEPAConfig:
    """Width, depth and latent size, off the agent branch."""
    stem, head = f"{ENCODER}agent_pwConv.weight", f"{ENCODER}agent_fc.weight"
    for key in (stem, head):
        if key not in state_dict or state_dict[key].dim() < 2:
            raise InputError(f"weights: missing {key}; expected the tensors of an ExploreJEPA model")
    prefix = f"{ENCODER}agent_blocks."
    blocks = {key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)}
    return JEPAConfig(
        channels=state_dict[stem].shape[0],
        blocks=max(1, len(blocks)),
        dim=state_dict[head].shape[0],
        residual="sum",
        activation="before_norm" if gelu_first else "after_norm",
    )


def _layout(config: JEPAConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every key of the original: our name for it and its shape here."""
    channels, dim = config.channels, config.dim
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for theirs, ours in (("agent", "agent"), ("env", "wall")):
        source, target = f"{ENCODER}{theirs}_", f"encoder.{ours}."
        layout[f"{source}pwConv.weight"] = f"{target}stem.weight", (channels, 1, 1, 1)
        for block in range(config.blocks):
            old, new = f"{source}blocks.{block}.", f"{target}blocks.{block}."
            layout[f"{old}dwConv.weight"] = f"{new}dwconv.weight", (channels, 1, 7, 7)
            layout[f"{old}ln.weight"] = f"{new}norm.weight", (channels,)
            layout[f"{old}ln.bias"] = f"{new}norm.bias", (channels,)
            layout[f"{old}pwConv4.weight"] = f"{new}expand.weight", (4 * channels, channels)
            layout[f"{old}pwConv.weight"] = f"{new}project.weight", (channels, 4 * channels)
        layout[f"{source}fc.weight"] = f"{target}fc.weight", (dim, channels * POOLED_SIDE**2)
        layout[f"{source}fc.bias"] = f"{target}fc.bias", (dim,)
        layout[f"{source}ln.weight"] = f"{target}norm.weight", (dim,)
        layout[f"{source}ln.bias"] = f"{target}norm.bias", (dim,)
    for theirs, ours, rows, columns in (
        ("state_ln", "state_norm", dim, None),
        ("action_linear", "action", dim, 2),
        ("action_ln", "action_norm", dim, None),
        ("fusion_linear_1", "expand", 4 * dim, dim),
        ("fusion_ln", "norm", 4 * dim, None),
        ("fusion_linear_2", "project", dim, 4 * dim),
    ):
        shape = (rows,) if columns is None else (rows, columns)
        layout[f"{PREDICTOR}{theirs}.weight"] = f"predictor.{ours}.weight", shape
        layout[f"{PREDICTOR}{theirs}.bias"] = f"predictor.{ours}.bias", (rows,)
    return layout


def _same_map(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether the shapes are those of one linear map, written as a matrix and as a 1x1 convolution."""
    short, long = sorted((found, expected), key=len)
    return len(short) == 2 and len(long) == 4 and long == (*short, 1, 1)


def _some(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(sorted(keys)[:LISTED]) + more
