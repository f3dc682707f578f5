"""Which ops a run takes on this machine, and why not the others.

reference   plain PyTorch everywhere
fused       the ops of the compiled extension
triton      these, and the Triton kernels of encoder and predictor: CUDA alone
"""

import functools
import importlib.util
import os
import shutil
from typing import Literal

import torch

from jepa_fast import extension
from jepa_fast.config import AnyModelConfig, ApartModelConfig, Kernels, ModelConfig, require
from jepa_fast.kernels.vicreg import MOST_COLUMNS

# bfloat16 on tensor cores begins here.
LEAST_CAPABILITY = (8, 0)
PLAIN = "plain PyTorch"


def choose_kernels(flag: Literal["auto", Kernels], device: Literal["cpu", "cuda"], dim: int) -> Kernels:
    """What `--kernels` means on this machine, for states of `dim` numbers. "auto" is the fastest that is there.

    Raises:
        InputError: ops are asked for by name and not there.
    """
    if flag == "reference":
        return "reference"
    no_triton, no_extension = why_no_triton(device), why_no_extension(device, dim)
    if flag == "triton":
        require(no_triton is None, "--kernels", flag, f"auto, fused or reference: {no_triton}")
    if flag == "fused":
        require(no_extension is None, "--kernels", flag, f"auto or reference: {no_extension}")
    if flag != "fused" and no_triton is None:
        return "triton"
    return "fused" if no_extension is None else "reference"


def why_no_extension(device: Literal["cpu", "cuda"], dim: int) -> str | None:
    """Why the compiled ops do not run, or None."""
    reason = extension.load()
    if reason is None and not extension.has_kernel("vicreg", device):
        reason = f"jepa_fast was compiled without {device} kernels"
    if reason is None and dim > MOST_COLUMNS:
        reason = f"model.dim is {dim}, the compiled ops take at most {MOST_COLUMNS}"
    return reason


@functools.cache
def why_no_triton(device: Literal["cpu", "cuda"]) -> str | None:
    """Why the Triton kernels do not run, or None."""
    if device != "cuda":
        return "Triton kernels run on CUDA devices alone"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler (gcc, clang or CC) to build its launchers with"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        least = "sm_{}{}".format(*LEAST_CAPABILITY)
        return f"the device is sm_{capability[0]}{capability[1]}, Triton kernels need {least} or newer"
    return None


def describe_ops(kernels: Kernels, device: Literal["cpu", "cuda"], model: AnyModelConfig) -> dict[str, str]:
    """What each op of a run of `model` with `kernels` runs on, for the log."""
    # Imported here, because the ops ask this module as well.
    from jepa_fast.kernels.dwconv_norm import CHANNELS
    from jepa_fast.kernels.rollout import TRITON_DIMS

    def triton(**known: tuple[int | str, ...]) -> str:
        if kernels != "triton":
            return PLAIN
        reasons = [why_no_triton(device)]
        for name, values in known.items():
            if (value := getattr(model, name)) not in values:
                reasons.append(f"model.{name} is {value}, the kernel takes {', '.join(map(str, values))}")
        missing = next(filter(None, reasons), None)
        return "Triton kernel" if missing is None else f"{PLAIN}: {missing}"

    compiled = kernels != "reference" and why_no_extension(device, model.dim) is None
    ops = {"vicreg": f"compiled {device} kernel" if compiled else PLAIN}
    if isinstance(model, ModelConfig):
        ops["rollout"] = triton(dim=TRITON_DIMS, history=(0,))
    if isinstance(model, ModelConfig | ApartModelConfig):
        ops["convnext_block"] = triton(channels=CHANNELS)
    return ops
