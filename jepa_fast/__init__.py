"""jepa_fast: train a JEPA world model as fast as the hardware can."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa_fast.config import Kernels
    from jepa_fast.models.model import Model

__version__ = "0.1.0"


def load(folder: "str | Path", kernels: "Kernels" = "reference") -> "Model":
    """The trained model of a run folder, or of a folder that `jepa_fast.export` wrote, in evaluation mode, on the CPU.

    With kernels "triton" it runs on fused ops once it is moved to a CUDA device.

    Raises:
        jepa_fast.errors.InputError: neither is there, or the weights do not fit their configuration.
    """
    # Imported here, so that commands can print their help without waiting for torch.
    from jepa_fast.runs import load as load_run

    return load_run(folder, kernels)
