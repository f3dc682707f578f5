"""jepa_fast: train a JEPA world model as fast as the hardware can."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_fast.config import Kernels
    from jepa_fast.data.trajectories import TrajectoryDataset, pack
    from jepa_fast.models.registry import AnyWorld

__version__ = "0.1.0"

__all__ = ["TrajectoryDataset", "load", "pack"]

# Imported when first asked for, so that commands can print their help without waiting for torch.
_HOMES = {"TrajectoryDataset": "jepa_fast.data.trajectories", "pack": "jepa_fast.data.trajectories"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"jepa_fast has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def load(folder: "str | Path", kernels: "Kernels" = "reference") -> "AnyWorld":
    """The trained World of a run folder, or of a folder that `jepa_fast.export` wrote, in evaluation mode, on the CPU.

    With kernels "triton" it runs on fused ops once it is moved to a CUDA device.

    Raises:
        jepa_fast.errors.InputError: neither is there, or the weights do not fit their configuration.
    """
    # Imported here, so that commands can print their help without waiting for torch.
    from jepa_fast.runs import load as load_run

    return load_run(folder, kernels)
