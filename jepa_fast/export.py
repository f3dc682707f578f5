"""Take a trained model out of its run: `python -m jepa_fast.export RUN`."""

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.errors import InputError
from jepa_fast.locking import Lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Write a run's weights as model.safetensors and config.json: all that is needed to use the model."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: cli.Chosen[Path] = None
    """Folder to write. Default: RUN/export."""
    onnx: bool = False
    """Also write encoder.onnx and predictor.onnx, compared with the model by onnxruntime."""


def main(arguments: Arguments) -> None:
    """Export, and read the result back."""
    import jepa_fast
    from jepa_fast.engine.checkpoint import checkpoint_folder
    from jepa_fast.runs import describe_run, load
    from jepa_fast.weights import WEIGHTS, save_weights

    model = load(arguments.run)
    folder = arguments.out or arguments.run / "export"
    # Its config.json would take the place of the run's.
    is_run = checkpoint_folder(folder).exists()
    require(not is_run, "--out", str(folder), "a folder that is not a run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error
    with Lock(folder):
        save_weights(model, folder, describe_run(arguments.run))
        jepa_fast.load(folder)
        if arguments.onnx:
            from jepa_fast.onnx_export import export_onnx

            export_onnx(model, folder)
    logger.info("%s: written; read it with jepa_fast.load(%r)", folder / WEIGHTS, str(folder))


if __name__ == "__main__":
    cli.run(main, Arguments, "Write the weights of a run as safetensors.")
