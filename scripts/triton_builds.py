"""The table of Triton builds: every kernel in every configuration that is shipped, with its ceiling of registers."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KERNELS = "jepa_fast.kernels.triton"
CHANNELS = (16, 32, 64, 96, 128)
ROLLOUT_FORM = {"STATE_RESIDUAL": False, "GELU_FIRST": False, "KEEP": True, "ACTIONS": False}
# Pointers to what the matrix products take and make; all others are float32.
ROLLOUT_PRODUCTS = (
    "expand", "project", "hidden", "dropped", "hidden_gradient", "norm_gradient", "fused", "update_gradient",
)  # fmt: skip


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
    most_registers: int | None = None  # given to the compiler as `maxnreg`
    outputs: tuple[int, ...] = ()  # elements that one round of each loop makes in a program; 0: not counted
    stages: int = 3
    architectures: tuple[int, ...] = (80, 90)
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


def _rollout() -> Iterator[Build]:
    """Every D in both types, and at D = 128 every form that the default is not."""
    import torch

    from jepa_fast.kernels.rollout import TRITON_DIMS
    from jepa_fast.kernels.triton import rollout, rollout_backward

    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    changes = ({"STATE_RESIDUAL": True}, {"GELU_FIRST": True}, {"KEEP": False}, {"ACTIONS": True})
    forms: list[tuple[int, dict[str, bool]]] = [(dim, {}) for dim in TRITON_DIMS]
    forms += [(128, change) for change in changes]
    kernels = {
        "forward": rollout._rollout_forward_kernel,
        "backward": rollout_backward._rollout_backward_kernel,
        "sums": rollout_backward._rollout_sums_kernel,
    }
    for (kind, dtype), (dim, change), architecture in itertools.product(kinds.items(), forms, (80, 90)):
        for name, kernel in kernels.items():
            arguments = kernel.arg_names
            if change and next(iter(change)) not in arguments:
                continue
            sizes = rollout.configuration(dim, dtype, architecture // 10)
            if name == "sums":
                sizes |= {"ROWS": rollout_backward.SUM_ROWS, "num_warps": rollout_backward.SUM_WARPS, "num_stages": 3}
                sizes["maxnreg"] = 255
            constants = {**sizes, **rollout.dropout_constants(0.1), **ROLLOUT_FORM, **change}
            products = dict.fromkeys((f"{argument}_ptr" for argument in ROLLOUT_PRODUCTS), f"*{kind}")
            pointers = {argument: "*fp32" for argument in arguments if argument.endswith("_ptr")}
            yield Build(
                f"rollout {name} {kind} D={dim}{''.join(f' {key}={value}' for key, value in change.items())}"
                f" sm_{architecture}",
                "rollout" if name == "forward" else "rollout_backward",
                kernel.fn.__name__,
                pointers | products | {"clock_ptr": "*i64"} | _integers((*rollout.SIZES, "blocks")),
                {key: value for key, value in constants.items() if key in arguments},
                warps=sizes["num_warps"],
                # One program per multiprocessor: there is no other to leave registers to.
                registers=255,
                most_registers=sizes["maxnreg"],
                stages=sizes["num_stages"],
                architectures=(architecture,),
                is_default=(kind, dim, change) == ("bf16", 128, {}),
            )


BUILDS: tuple[Build, ...] = (*_depthwise(), *_rollout())
