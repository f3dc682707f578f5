"""jepa_fast: train a JEPA world model as fast as the hardware can."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa_fast.model.world import World

__version__ = "0.1.0"


def load(run: "str | Path") -> "World":
    """The trained World of run folder `run`, in evaluation mode, on the CPU.

    Raises:
        jepa_fast.errors.InputError: no run there, or its checkpoint does not fit its configuration.
    """
    # Imported here, so that commands can print their help without waiting for torch.
    from jepa_fast.runs import load as load_run

    return load_run(run)
