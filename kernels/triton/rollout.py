"""All steps of the predictor in one launch, forward and backward; formulas in `kernels/rollout.py`.

A program owns ROWS trajectories for all their steps, features down and trajectories across, so that eight of them fill
the narrow side of a tensor-core instruction. The weights stay in the L2 cache and pass through in chunks of the hidden
layer, twice a step: once for the hidden values and their statistics, once for what follows from them.

States, statistics and sums are float32; the hidden layer is rounded to the type of the weights, as a linear layer's
output is, and forward and backward see the same rounded values. Every sum has a fixed order: the same bits every time.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.elementwise import (
    dropout_factor,
    dropout_keys,
    gelu,
    load_column,
    normalise,
)
from jepa_fast.kernels.triton.launch import on_device

ROWS = 8  # trajectories of a program
WARPS = 8
# Numbers of a run. Not specialised: one compilation serves all, and it is the one that the gates have measured.
SIZES = ("batch", "steps", "chunks")
EXPAND, PROJECT = 6, 10  # the two matrices among the weights


@triton.jit(do_not_specialize=SIZES)
def _rollout_forward_kernel(
    first_ptr,  # [B, D] float32
    actions_ptr,  # [B, S, 2] float32
    clock_ptr,  # [3] int64
    state_norm_weight_ptr,  # [D] float32, like all vectors
    state_norm_bias_ptr,
    action_ptr,  # [D, 2] float32
    action_bias_ptr,
    action_norm_weight_ptr,
    action_norm_bias_ptr,
    expand_ptr,  # [4D, D] in the type of the matrix products
    expand_bias_ptr,  # [4D]
    norm_weight_ptr,  # [4D]
    norm_bias_ptr,  # [4D]
    project_ptr,  # [D, 4D], as expand
    project_bias_ptr,  # [D]
    states_ptr,  # [B, S, D] float32, written
    hidden_ptr,  # [B, S, 4D] as expand, written: the output of the first matrix; [B, 1, 4D] unless KEEP
    dropped_ptr,  # as hidden: the input of the second matrix
    statistics_ptr,  # [B, S, 2] float32, written if KEEP: mean and scale of the hidden layer
    batch,
    steps,
    chunks,  # 4D / CHUNK, a number of the run, so that loops stay loops
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    DROP_BELOW: tl.constexpr,  # 0: no dropout
    KEPT: tl.constexpr,
    STATE_RESIDUAL: tl.constexpr,
    GELU_FIRST: tl.constexpr,
    KEEP: tl.constexpr,
):
    """One program per ROWS trajectories."""
    HIDDEN: tl.constexpr = 4 * D
    # Addresses of this program's first trajectory; offsets from there fit 32 bits, which halves their registers.
    start = tl.program_id(0).to(tl.int64) * ROWS
    first_ptr += start * D
    actions_ptr += start * steps * 2
    states_ptr += start * steps * D
    statistics_ptr += start * steps * 2
    kept_steps = steps if KEEP else 1
    hidden_ptr += start * kept_steps * HIDDEN
    dropped_ptr += start * kept_steps * HIDDEN
    rows = tl.arange(0, ROWS)
    exists = start + rows < batch
    alive = exists[None, :]
    d, j, chunk = tl.arange(0, D), tl.arange(0, HIDDEN), tl.arange(0, CHUNK)
    state_norm_weight, state_norm_bias = load_column(state_norm_weight_ptr, d), load_column(state_norm_bias_ptr, d)
    action_x, action_y = load_column(action_ptr, 2 * d), load_column(action_ptr, 2 * d + 1)
    action_bias = load_column(action_bias_ptr, d)
    action_norm_weight, action_norm_bias = load_column(action_norm_weight_ptr, d), load_column(action_norm_bias_ptr, d)
    norm_weight, norm_bias = load_column(norm_weight_ptr, j), load_column(norm_bias_ptr, j)
    project_bias = load_column(project_bias_ptr, d)
    first_key, second_key, first_row = dropout_keys(clock_ptr)
    if RESIDENT:
        expand_bias = load_column(expand_bias_ptr, j)
        expand = tl.load(expand_ptr + j[:, None] * D + d[None, :])
    state = tl.load(first_ptr + rows[None, :] * D + d[:, None], mask=alive, other=0.0)
    for t in range(steps):
        place = rows * steps + t
        kept_place = place if KEEP else rows
        x = tl.load(actions_ptr + 2 * place, mask=exists, other=0.0)[None, :]
        y = tl.load(actions_ptr + 2 * place + 1, mask=exists, other=0.0)[None, :]
        moved = normalise(action_x * x + action_y * y + action_bias, D)[0] * action_norm_weight + action_norm_bias
        normed = normalise(state, D)[0] * state_norm_weight + state_norm_bias
        fused = normed + moved
        factor = fused.to(expand_ptr.dtype.element_ty)

        hidden_ptrs = hidden_ptr + kept_place[None, :] * HIDDEN
        if RESIDENT:
            hidden = tl.dot(expand, factor, input_precision="ieee") + expand_bias
            hidden = hidden.to(hidden_ptr.dtype.element_ty)
            if KEEP:
                tl.store(hidden_ptrs + j[:, None], hidden, mask=alive)
        else:
            for begin in range(0, chunks * CHUNK, CHUNK):
                i = begin + chunk
                weight = tl.load(expand_ptr + i[:, None] * D + d[None, :])
                part = tl.dot(weight, factor, input_precision="ieee") + load_column(expand_bias_ptr, i)
                tl.store(hidden_ptrs + i[:, None], part.to(hidden_ptr.dtype.element_ty), mask=alive)
            # What other threads have written is read.
            tl.debug_barrier()
            hidden = tl.load(hidden_ptrs + j[:, None], mask=alive, other=0.0)

        value = hidden.to(tl.float32)
        if GELU_FIRST:
            value = gelu(value)
        value, mean, scale = normalise(value, HIDDEN)
        value = value * norm_weight + norm_bias
        if not GELU_FIRST:
            value = gelu(value)
        if DROP_BELOW > 0:
            numbers = ((first_row + start) * steps + place).to(tl.uint32)[None, :] * HIDDEN + j.to(tl.uint32)[:, None]
            value *= dropout_factor(numbers, first_key, second_key, DROP_BELOW, KEPT)
        dropped_ptrs = dropped_ptr + kept_place[None, :] * HIDDEN
        tl.store(dropped_ptrs + j[:, None], value.to(dropped_ptr.dtype.element_ty), mask=alive)
        if KEEP:
            tl.store(statistics_ptr + 2 * place, mean, mask=exists)
            tl.store(statistics_ptr + 2 * place + 1, scale, mask=exists)

        tl.debug_barrier()
        update = tl.zeros([D, ROWS], tl.float32)
        for begin in range(0, chunks * CHUNK, CHUNK):
            i = begin + chunk
            weight = tl.load(project_ptr + d[:, None] * HIDDEN + i[None, :])
            part = tl.load(dropped_ptrs + i[:, None], mask=alive, other=0.0)
            update = tl.dot(weight, part, update, input_precision="ieee")
        state = (normed if STATE_RESIDUAL else fused) + update + project_bias
        tl.store(states_ptr + place[None, :] * D + d[:, None], state, mask=alive)
        if not KEEP:
            # The next step writes where this one was read.
            tl.debug_barrier()


def dropout_constants(dropout: float) -> dict[str, float]:
    """The compile-time constants of a dropout rate."""
    return {"DROP_BELOW": int(dropout * 2**32), "KEPT": 1.0 / (1.0 - dropout)}


def configuration(dim: int, dtype: torch.dtype, major: int) -> dict[str, Any]:
    """How a kernel is compiled for states of `dim` numbers, products in `dtype`, on compute capability `major`.

    A chunk is as many hidden units of a matrix as pass at once. On Hopper the first matrix of a kernel stays in shared
    memory for all steps, where its tensor cores read it: 128 KB at D = 128.

    Registers are as many as the compiler likes, but in float32 it would spill to fit two programs where one runs.
    """
    resident = major == 9 and dtype == torch.bfloat16
    if resident:
        chunk, stages = 64, 4
    elif dtype == torch.bfloat16:
        chunk, stages = min(128, 4 * dim), 3
    else:
        chunk, stages = 32, 3
    launch = {"num_warps": WARPS, "num_stages": stages, "maxnreg": None if dtype == torch.bfloat16 else 255}
    return {"D": dim, "ROWS": ROWS, "CHUNK": chunk, "RESIDENT": resident, **launch}


def architecture(x: Tensor) -> int:
    """Major compute capability of the device; 0 for the interpreter's."""
    return torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 0


def arguments(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The weights as the kernels take them: contiguous, both matrices of the hidden layer in `dtype`."""
    weights = [tensor.contiguous() for tensor in tensors]
    for matrix in (EXPAND, PROJECT):
        weights[matrix] = weights[matrix].to(dtype)
    return weights


def rollout_forward(
    first: Tensor,
    actions: Tensor,
    clock: Tensor,
    weights: Sequence[Tensor],
    dropout: float,
    state_residual: bool,
    gelu_first: bool,
    bfloat16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States [B, S, D]; kept for the backward: both hidden values [B, S, 4D], mean and scale [B, S, 2]."""
    (batch, steps, _), dim = actions.shape, first.shape[1]
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    states = first.new_empty(batch, steps, dim)
    hidden, dropped = (first.new_empty(batch, steps if keep else 1, 4 * dim, dtype=dtype) for _ in range(2))
    statistics = first.new_empty(batch, steps, 2) if keep else first.new_empty(0)
    compiled = configuration(dim, dtype, architecture(first))
    if states.numel():
        with on_device(first):
            _rollout_forward_kernel[(triton.cdiv(batch, ROWS),)](
                first.contiguous(), actions.contiguous(), clock.contiguous(), *arguments(weights, dtype), states,
                hidden, dropped, statistics, batch, steps, 4 * dim // compiled["CHUNK"], **compiled,
                **dropout_constants(dropout), STATE_RESIDUAL=state_residual, GELU_FIRST=gelu_first, KEEP=keep,
                enable_fp_fusion=True,
            )  # fmt: skip
    if not keep:
        hidden, dropped = hidden.new_empty(0), dropped.new_empty(0)
    return states, hidden, dropped, statistics
