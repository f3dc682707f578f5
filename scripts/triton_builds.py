"""The table of Triton builds: every kernel in every configuration that is shipped, with its ceiling of registers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KERNELS = "jepa_fast.kernels.triton"
CHANNELS = (16, 32, 64, 96, 128)


@dataclass(frozen=True)
class Build:
    """One kernel with its compile-time constants, as it is launched."""

    name: str
    module: str  # a file of kernels/triton
    kernel: str
    signature: Mapping[str, str]  # type of each argument that is not a constant: "*bf16", "i32", "fp32"
    constants: Mapping[str, Any]
    warps: int
    registers: int  # ceiling
    outputs: tuple[int, ...] = ()  # elements that one round of each loop makes in a program; 0: not counted
    stages: int = 3
    is_default: bool = False  # compiled in the normal tests


def _pointers(**types: str) -> dict[str, str]:
    return {f"{name}_ptr": f"*{kind}" for name, kind in types.items()}


def _integers(names: tuple[str, ...]) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def _depthwise() -> Iterator[Build]:
    from jepa_fast.kernels.triton.depthwise import SIZES, THREADS, blocks

    for kind, channels in [("bf16", channels) for channels in CHANNELS] + [("fp32", 16), ("fp16", 16)]:
        for has_addend in (False, True):
            sizes = blocks(channels)
            yield Build(
                f"depthwise {kind} C={channels}{' addend' if has_addend else ''}",
                "depthwise",
                "_depthwise_kernel",
                _pointers(x=kind, taps="fp32", addend=kind, out=kind) | _integers(SIZES),
                {"C": channels, **sizes, "HAS_ADDEND": has_addend},
                warps=THREADS // 32,
                registers=160,
                outputs=(2 * THREADS,),
                is_default=(kind, channels, has_addend) == ("bf16", 16, True),
            )


BUILDS: tuple[Build, ...] = (*_depthwise(),)
