"""Encoder and predictor of a trained model as ONNX files, compared with the model before they are kept.

    encoder.onnx    frames [N, C, H, W] -> latents [N, D], of gated models also room [N, ...], of glimpse context
    predictor.onnx  latents [N, D], room or context where there is one, actions [N, A] -> next latents [N, D]

N is free. Frames are in the range of the data that the model was trained on.
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.errors import InputError, RunError
from jepa_fast.models.model import Model

logger = logging.getLogger(__name__)

ENCODER, PREDICTOR = "encoder.onnx", "predictor.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'jepa_fast[onnx]'"
# Largest difference to PyTorch that is kept, of the largest latent.
TOLERANCE = 1e-5


class OneFrame(nn.Module):
    """Frames [N, C, H, W] to latents [N, D], and what the model carries beside them, if anything."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The encodings of single frames."""
        encoded = self.model.encode(frames[:, None])
        latents = self.model.latents(encoded)[:, 0]
        return latents if isinstance(encoded, Tensor) else (latents, encoded[1])


class OneStep(nn.Module):
    """Latents [N, D], what the model carries beside them, and actions [N, A] to the next latents [N, D]."""

    def __init__(self, model: Model, encodings: type) -> None:
        """`encodings` are what the model's `encode` gives: a tensor, or a named tuple of two."""
        super().__init__()
        self.model, self.encodings = model, encodings

    def forward(self, *inputs: Tensor) -> Tensor:
        """One step of a rollout."""
        latents, *carried, actions = inputs
        first: Any = latents[:, None]
        if carried:
            first = self.encodings(first, *carried)
        return self.model.predict(first, actions[:, None])[:, 0]


def export_onnx(model: Model, folder: Path) -> None:
    """Write both files into `folder`, which is there already, compared with the model by onnxruntime.

    The model is in evaluation mode, on the CPU, with plain PyTorch kernels.

    Raises:
        InputError: a package is missing, the model was not told the size of its frames, or its predictor reads more
            than one latent.
        RunError: a file computes something else than the model.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx: needs {' and '.join(missing)}, which this environment lacks: {INSTALL}")
    history = getattr(model.config, "history", 0)
    if history:
        raise InputError(f"--onnx: model.history is {history}, expected 0: steps from one latent alone")
    inputs = model.inputs
    if inputs is None:
        raise InputError("--onnx: the run is of an earlier version and does not tell the size of its frames")
    generator = torch.Generator().manual_seed(0)
    # Two, for an axis of one is taken for a constant.
    low, high = inputs.range
    frames = low + (high - low) * torch.rand(2, inputs.channels, inputs.height, inputs.width, generator=generator)
    actions = torch.rand(2, inputs.action_size, generator=generator) - 0.5
    with torch.no_grad():
        encoded, encodings = OneFrame(model)(frames), type(model.encode(frames[:, None]))
    carried = list(encoded) if isinstance(encoded, tuple) else [encoded]
    # Of a named tuple: latents, then room or context.
    names = list(getattr(encodings, "_fields", ["latents"]))
    _write(OneFrame(model), folder / ENCODER, {"frames": frames}, names)
    step = dict(zip(names, carried, strict=True)) | {"actions": actions}
    _write(OneStep(model, encodings), folder / PREDICTOR, step, ["next_latents"])


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Inside the `with` statement the exporter's packages log errors alone: what else they say is about their parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write(module: nn.Module, path: Path, inputs: dict[str, Tensor], outputs: list[str]) -> None:
    """Export a module, and compare it on more rows than it was exported with."""
    import onnxruntime

    names, batch = list(inputs), torch.export.Dim("N")
    shapes = tuple({0: batch} for _ in names)
    # The exporter's warnings are about its own parts.
    with warnings.catch_warnings(), _quiet_exporter(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(shapes,) if isinstance(module, OneStep) else shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        rows = {name: torch.cat([tensor, tensor.flip(0), tensor[:1]]) for name, tensor in inputs.items()}
        expected = module(*rows.values())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in rows.items()})
    for name, one, other in zip(outputs, expected if len(outputs) > 1 else [expected], found, strict=True):
        error, size = float((one - torch.from_numpy(other)).abs().max()), float(one.abs().max())
        if error > TOLERANCE * size:
            path.unlink()
            raise RunError(f"{path}: its {name} differ from the model's by {error:.2g}, of at most {size:.2g}")
        logger.info("%s: %s as the model's, to %.1g of the largest", path, name, error / size if size else 0)
