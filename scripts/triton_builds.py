"""The table of Triton builds: every kernel in every configuration that is shipped, with its ceiling of registers."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KERNELS = "jepa_fast.kernels.triton"
CHANNELS = (16, 32, 64, 96, 128)
# Three programs of four warps find room in the registers of a multiprocessor.
MARCH_REGISTERS = 168
CASES = (*(("bf16", channels) for channels in CHANNELS), ("fp32", 16), ("fp32", 128), ("fp16", 16))
KINDS = ("bf16", "fp16", "fp32")
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
    from jepa_fast.kernels.triton.depthwise import SIZES, THREADS, WEIGHT_SIZES, blocks

    for kind, channels in CASES:
        for has_addend in (False, True):
            sizes = blocks(channels)
            yield Build(
                f"depthwise {kind} C={channels}{' addend' if has_addend else ''}",
                "depthwise",
                "_depthwise_kernel",
                _pointers(x=kind, taps="fp32", addend=kind, out=kind) | _integers(SIZES),
                {"C": channels, **sizes, "HAS_ADDEND": has_addend},
                warps=THREADS // 32,
                registers=MARCH_REGISTERS,
                outputs=(2 * THREADS,),
                is_default=(kind, channels, has_addend) == ("bf16", 16, True),
            )
        yield Build(
            f"depthwise weight gradient {kind} C={channels}",
            "depthwise",
            "_depthwise_weight_kernel",
            _pointers(x=kind, gradient=kind, partial="fp32") | _integers(WEIGHT_SIZES),
            {"C": channels, **sizes},
            warps=THREADS // 32,
            registers=192 if kind == "fp32" else MARCH_REGISTERS,
            outputs=(0, 2 * THREADS),
            is_default=(kind, channels) == ("bf16", 16),
        )


def _dwconv_norm() -> Iterator[Build]:
    from jepa_fast.kernels.triton.depthwise import THREADS, blocks
    from jepa_fast.kernels.triton.dwconv_norm import SIZES, norm_blocks

    for kind, channels in CASES:
        pixels = norm_blocks(channels)["PIXELS"]
        yield Build(
            f"dwconv_norm forward {kind} C={channels}",
            "dwconv_norm",
            "_dwconv_norm_forward_kernel",
            _pointers(x=kind, taps="fp32", gamma="fp32", beta="fp32", z=kind, y=kind)
            | _integers(SIZES)
            | {"eps": "fp32"},
            {"C": channels, **blocks(channels), **norm_blocks(channels)},
            warps=THREADS // 32,
            registers=MARCH_REGISTERS,
            outputs=(2 * THREADS, pixels * channels) if channels <= 32 else (0, 2 * THREADS, pixels * channels),
            is_default=(kind, channels) == ("bf16", 16),
        )
        yield Build(
            f"dwconv_norm backward {kind} C={channels}",
            "dwconv_norm",
            "_dwconv_norm_backward_kernel",
            _pointers(dy=kind, z=kind, gamma="fp32", dz=kind, partial="fp32") | {"pixels": "i32", "eps": "fp32"},
            {"C": channels, **norm_blocks(channels)},
            warps=THREADS // 32,
            registers=128,
            outputs=(pixels * channels,),
            is_default=(kind, channels) == ("bf16", 16),
        )


def _tile_outputs(channels: int, pixels: int, hidden: int) -> tuple[int, ...]:
    """Of a loop over tiles of pixels, and of the one over hidden units inside it where it is one."""
    return (pixels * channels,) if hidden == 4 * channels else (pixels * channels, pixels * hidden // 4)


def _convnext_block() -> Iterator[Build]:
    import torch

    from jepa_fast.kernels.triton.convnext_block import MOST_FUSED_CHANNELS, SIZES, constants, tiles
    from jepa_fast.kernels.triton.depthwise import blocks

    for kind, channels in [*CASES, ("fp32", 32), ("fp32", 64)]:
        forward, backward, weights = tiles(channels, torch.float32 if kind == "fp32" else torch.bfloat16)
        parameters = {"gamma": "fp32", "beta": "fp32", "expand": kind, "project": kind}
        fused = channels <= MOST_FUSED_CHANNELS
        sizes = blocks(channels)
        marches = (0,) * (channels > sizes["BLOCK_C"]) + (sizes["BLOCK_COLUMNS"] * sizes["BLOCK_C"],)
        for has_addend, keep in itertools.product((False, True) if fused else (False,), (False, True)):
            yield Build(
                f"convnext_block forward {kind} C={channels}{' addend' if has_addend else ''}{' keep' if keep else ''}",
                "convnext_block",
                "_convnext_block_forward_kernel",
                _pointers(x=kind, taps="fp32", addend=kind, **parameters, z=kind, y=kind, update=kind)
                | _integers(SIZES)
                | {"eps": "fp32"},
                constants(channels, forward) | sizes | {"HAS_ADDEND": has_addend, "CONVOLVES": fused, "KEEP": keep},
                warps=forward.warps,
                most_registers=forward.registers,
                registers=256 if channels > 64 or kind == "fp32" else MARCH_REGISTERS,
                outputs=(marches if fused else ()) + _tile_outputs(channels, forward.pixels, forward.hidden),
                stages=1,
                is_default=(kind, channels, has_addend, keep) == ("bf16", 16, True, False),
            )
        yield Build(
            f"convnext_block backward {kind} C={channels}",
            "convnext_block_backward",
            "_convnext_block_backward_kernel",
            _pointers(dy=kind, z=kind, **parameters, dz=kind, norm_partial="fp32", weight_partial="fp32")
            | {"pixels": "i32", "eps": "fp32"},
            constants(channels, backward) | {"HAS_WEIGHTS": weights is None},
            warps=backward.warps,
            most_registers=backward.registers,
            registers=256,
            outputs=_tile_outputs(channels, backward.pixels, backward.hidden),
            stages=1,
            is_default=(kind, channels) == ("bf16", 16),
        )
        if weights is not None:
            yield Build(
                f"convnext_block weight gradient {kind} C={channels}",
                "convnext_block_backward",
                "_convnext_block_weight_kernel",
                _pointers(dy=kind, z=kind, **parameters, partial="fp32") | {"pixels": "i32", "eps": "fp32"},
                constants(channels, weights),
                warps=weights.warps,
                most_registers=weights.registers,
                registers=224,
                outputs=(weights.pixels * weights.hidden // 4,),
                stages=1,
                is_default=(kind, channels) == ("bf16", 32),
            )


def _crop() -> Iterator[Build]:
    from jepa_fast.kernels.triton.crop import AHEAD, SUM_BLOCK, TILE, WARPS, columns
    from jepa_fast.kernels.triton.windows import WINDOW

    placed = {"corners_ptr": "*i64", "groups_ptr": "*i64"}
    for kind, channels in CASES:
        padded = 1 << (channels - 1).bit_length()
        yield Build(
            f"crop backward {kind} C={channels}",
            "crop",
            "_crop_backward_kernel",
            _pointers(gradient=kind, partial="fp32") | placed | _integers(("count", "chunk", *WINDOW)),
            {"C": channels, "PADDED_C": padded, "COLUMNS": columns(channels), "AHEAD": AHEAD},
            warps=WARPS,
            registers=MARCH_REGISTERS,
            is_default=(kind, channels) == ("bf16", 16),
        )
        for name, has_values, has_base in (("crop", False, True), ("mask", True, False), ("difference", True, True)):
            yield Build(
                f"crop {name} {kind} C={channels}",
                "crop",
                "_crop_kernel",
                _pointers(values=kind, base=kind, out=kind) | placed | _integers(("pixels", *WINDOW)),
                {
                    "C": channels,
                    "PADDED_C": padded,
                    "PIXELS": TILE // padded,
                    "HAS_VALUES": has_values,
                    "HAS_BASE": has_base,
                },
                warps=WARPS,
                registers=64,
                is_default=(kind, channels, name) == ("bf16", 16, "difference"),
            )

    for kind in KINDS:
        yield Build(
            f"crop chunks {kind}",
            "crop",
            "_chunks_kernel",
            _pointers(partial="fp32", out=kind) | {"chunks": "i32", "elements": "i32", "sign": "fp32"},
            {"BLOCK": SUM_BLOCK},
            warps=WARPS,
            registers=64,
            is_default=kind == "bf16",
        )


def _pooling() -> Iterator[Build]:
    import torch

    from jepa_fast.kernels.triton.pooling import PIECE, TILE, WARPS, block_channels
    from jepa_fast.kernels.triton.windows import WINDOW

    for kind, channels in CASES:
        padded = 1 << (channels - 1).bit_length()
        shapes: dict[str, Any] = {"C": channels, "SIDE": 6}
        yield Build(
            f"window_pool forward {kind} C={channels}",
            "pooling",
            "_window_pool_forward_kernel",
            _pointers(x=kind, pooled="fp32") | {"corners_ptr": "*i64"} | _integers(WINDOW),
            shapes | {"BLOCK_C": block_channels(torch.float32 if kind == "fp32" else torch.bfloat16), "PIECE": PIECE},
            warps=WARPS,
            registers=128,
            is_default=(kind, channels) == ("bf16", 16),
        )
        yield Build(
            f"window_pool backward {kind} C={channels}",
            "pooling",
            "_window_pool_backward_kernel",
            _pointers(gradient="fp32", out=kind) | {"corners_ptr": "*i64"} | _integers(("pixels", *WINDOW)),
            shapes | {"PADDED_C": padded, "PIXELS": TILE // padded},
            warps=WARPS,
            registers=64,
            is_default=(kind, channels) == ("bf16", 16),
        )


def _parameters() -> Iterator[Build]:
    from jepa_fast.kernels.triton.parameters import BLOCK, COLUMNS, ROWS, WARPS

    for kind, channels in CASES:
        for flipped in (False, True):
            yield Build(
                f"block parameters {kind} C={channels}{' flipped' if flipped else ''}",
                "parameters",
                "_lay_out_kernel",
                _pointers(weight="fp32", expand="fp32", project="fp32", taps="fp32", expand_out=kind, project_out=kind),
                {"C": channels, "FLIPPED": flipped, "BLOCK": BLOCK},
                warps=WARPS,
                registers=64,
                is_default=(kind, channels, flipped) == ("bf16", 16, True),
            )
    for channels in CHANNELS:
        parts = ("norm_partial", "weight_partial", "tap_partial", "gamma", "beta", "expand", "project", "weight")
        yield Build(
            f"block gradients C={channels}",
            "parameters",
            "_add_up_kernel",
            _pointers(**dict.fromkeys(parts, "fp32")) | _integers(("norm_parts", "weight_parts", "tap_parts")),
            {"C": channels, "COLUMNS": COLUMNS, "ROWS": ROWS},
            warps=WARPS,
            registers=64,
            is_default=channels == 16,
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


BUILDS: tuple[Build, ...] = (
    *_depthwise(), *_dwconv_norm(), *_convnext_block(), *_parameters(), *_crop(), *_pooling(), *_rollout()
)  # fmt: skip
