"""Run folders: creating one, and reading a trained model back."""

from pathlib import Path
from typing import Any, Literal

import jepa_fast
from jepa_fast.backends import choose_kernels
from jepa_fast.config import Kernels, RunConfig
from jepa_fast.engine.checkpoint import load_checkpoint, newest_step
from jepa_fast.errors import InputError
from jepa_fast.models.model import Model
from jepa_fast.models.registry import build_model, is_built_here
from jepa_fast.weights import WEIGHTS, load_weights

CONFIG = "config.json"


def require_new(folder: Path, config: RunConfig) -> None:
    """Raise InputError if `folder` holds a run; this very one may have begun, but not have reached a checkpoint."""
    if not (folder / CONFIG).exists():
        return
    try:
        stored = RunConfig.load(folder / CONFIG)
    except InputError as error:
        raise InputError(f"--out: {folder} is taken; name another folder ({error})") from error
    if stored != config or newest_step(folder) is not None:
        raise InputError(
            f"--out: {folder} already holds a run; continue it with --resume {folder} or name another folder"
        )


def create_run(folder: Path, config: RunConfig) -> None:
    """Make `folder` with the configuration in it.

    Raises:
        InputError: a run is already there, or the folder cannot be written.
    """
    require_new(folder, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / CONFIG)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error


def load(
    folder: str | Path,
    kernels: Literal["auto", Kernels] = "auto",
    model: Model | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Model:
    """The trained model of a run, or one exported from a run, in evaluation mode.

    Args:
        folder: of the run, or of the export.
        kernels: what it runs on, as training has it: "auto" is the fastest that `device` has.
        model: takes the weights, in place of one that is built from the stored configuration: of a run whose model was
            made in Python, one made in the same way. It keeps its own kernels.
        device: where the model is put.

    Raises:
        InputError: neither is there, the weights do not fit their configuration, or kernels are not there.
    """
    return _load(Path(folder), kernels, model, device).to(device).eval()


def _load(
    folder: Path, kernels: Literal["auto", Kernels], model: Model | None, device: Literal["cpu", "cuda"]
) -> Model:
    if (folder / WEIGHTS).is_file():
        return load_weights(folder, kernels, model, device)
    config = RunConfig.load(folder / CONFIG)
    if model is None:
        if not is_built_here(config.recipe.model):
            raise InputError(
                f"{folder}: its model was made in Python; give one to load: jepa_fast.load(run, model=...)"
            )
        chosen = choose_kernels(kernels, device, config.recipe.model.dim)
        model = build_model(config.recipe.model, config.recipe.objective, chosen)
    try:
        model.load_state_dict(load_checkpoint(folder)["model"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: its checkpoint is not of the model in its {CONFIG} ({error})") from error
    model.inputs = config.inputs
    return model


def describe_run(folder: Path) -> dict[str, Any]:
    """Where a run's weights come from, for people: what the export writes down."""
    config = RunConfig.load(folder / CONFIG)
    return {
        "jepa_fast": jepa_fast.__version__,
        "preset": config.preset,
        "seed": config.seed,
        "steps": load_checkpoint(folder)["step"],
        "batch_size": config.batch_size,
    }
