"""Which ops a run takes on this machine, and why not the others.

reference   plain PyTorch everywhere
fused       the ops of the compiled extension
triton      these, and the Triton kernels of encoder and predictor: CUDA alone
"""

from typing import Literal

from jepa_fast.config import AnyModelConfig, ApartModelConfig, Kernels, ModelConfig, require
from jepa_fast.kernels import dispatch
from jepa_fast.kernels.dispatch import PLAIN
from jepa_fast.kernels.dwconv_norm import CHANNELS
from jepa_fast.kernels.rollout import TRITON_DIMS
from jepa_fast.kernels.vicreg import MOST_COLUMNS


def choose_kernels(flag: Literal["auto", Kernels], device: Literal["cpu", "cuda"], dim: int) -> Kernels:
    """What `--kernels` means on this machine, for states of `dim` numbers. "auto" is the fastest that is there.

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


def why_no_extension(device: Literal["cpu", "cuda"], dim: int) -> str | None:
    """Why the compiled ops do not run, or None."""
    reason = dispatch.why_no_extension("vicreg", device)
    if reason is None and dim > MOST_COLUMNS:
        reason = f"model.dim is {dim}, the compiled ops take at most {MOST_COLUMNS}"
    return reason


def describe_ops(kernels: Kernels, device: Literal["cpu", "cuda"], model: AnyModelConfig) -> dict[str, str]:
    """What each op of a run of `model` with `kernels` runs on, for the log."""

    def triton(**known: tuple[int | str, ...]) -> str:
        if kernels != "triton":
            return PLAIN
        reasons = [dispatch.why_no_triton(device)]
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
