"""Which backend a model's op runs on, in words for the log."""

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from jepa_fast.config import Kernels
from jepa_fast.kernels import dispatch, extension
from jepa_fast.kernels.dispatch import PLAIN


@runtime_checkable
class DescribesOps(Protocol):
    """A module that can say what its ops run on."""

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What each op runs on with these kernels, by name."""


def ops_of(module: nn.Module, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
    """What the ops of a module run on; of one that does not say, nothing."""
    return module.ops(kernels, device) if isinstance(module, DescribesOps) else {}


def triton_or_plain(kernels: Kernels, device: Literal["cpu", "cuda"], **asked: tuple[int, tuple[int, ...]]) -> str:
    """A Triton kernel, or plain PyTorch and why, where kernels should be Triton's.

    Args:
        kernels: of the run.
        device: of the run.
        asked: by field of the model's configuration, the value it has and those that the kernel takes.
    """
    if kernels != "triton":
        return PLAIN
    reasons = [dispatch.why_no_triton(device)]
    for name, (value, known) in asked.items():
        if value not in known:
            reasons.append(f"model.{name} is {value}, the kernel takes {', '.join(map(str, known))}")
    missing = next(filter(None, reasons), None)
    return "Triton kernel" if missing is None else f"{PLAIN}: {missing}"


def compiled_blocks_or_plain(channels: int) -> str:
    """The compiled blocks of a CPU and their instruction set, or plain PyTorch and why."""
    missing = dispatch.why_no_compiled_blocks(channels, torch.empty(0))
    if missing is not None:
        return f"{PLAIN}: {missing}"
    return f"compiled cpu kernel ({extension.instruction_set()})"


def compiled_rollout_or_plain(history: int) -> str:
    """The compiled rollout of a CPU and its instruction set, or plain PyTorch and why."""
    missing = dispatch.why_no_compiled_rollout()
    if missing is None and history != 0:
        missing = f"model.history is {history}, the kernel takes 0"
    return f"{PLAIN}: {missing}" if missing is not None else f"compiled cpu kernel ({extension.instruction_set()})"


def compiled_or_plain(kernels: Kernels, missing: str | None) -> str:
    """A compiled op of a CPU and its instruction set, or plain PyTorch and why; the latter for kernels "reference"."""
    if kernels == "reference":
        return PLAIN
    return f"{PLAIN}: {missing}" if missing is not None else f"compiled cpu kernel ({extension.instruction_set()})"
