"""Which ops a run takes on this machine.

reference   plain PyTorch everywhere
fused       the ops of the compiled extension: the objective's, and on a CPU the encoder's ConvNeXt blocks
triton      these, and the Triton kernels of encoder and predictor: CUDA alone
"""

from typing import Literal

from jepa_fast.config import Kernels, require
from jepa_fast.kernels import dispatch
from jepa_fast.objectives.vicreg import why_no_extension


def choose_kernels(flag: Literal["auto", Kernels], device: Literal["cpu", "cuda"], dim: int | None = None) -> Kernels:
    """What `--kernels` means on this machine, for latents of `dim` numbers. "auto" is the fastest that is there.

    Raises:
        InputError: ops are asked for by name and not there.
    """
    if flag == "reference":
        return "reference"
    no_triton, no_extension = dispatch.why_no_triton(device), why_no_extension(device, dim)
    if flag == "triton":
        require(no_triton is None, "--kernels", flag, f"auto, fused or reference: {no_triton}")
    if flag == "fused":
        require(no_extension is None, "--kernels", flag, f"auto or reference: {no_extension}")
    if flag != "fused" and no_triton is None:
        return "triton"
    return "fused" if no_extension is None else "reference"
