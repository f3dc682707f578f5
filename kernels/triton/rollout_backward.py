"""The backward of all steps of the predictor; formulas in `kernels/rollout.py`, layout in `kernels/triton/rollout.py`.

One launch for what a step has to wait for, from the last step to the first; one for what none waits for, spread over
all rows; then the gradients of both matrices as one product each. Sums over rows are taken per program and then over
programs, in a fixed order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.elementwise import (
    dropout_factor,
    dropout_keys,
    gelu,
    gelu_slope,
    load_column,
    normalise,
    normalise_backward,
)
from jepa_fast.kernels.triton.launch import on_device
from jepa_fast.kernels.triton.rollout import (
    EXPAND,
    PROJECT,
    ROWS,
    SIZES,
    architecture,
    arguments,
    configuration,
    dropout_constants,
)

SUM_ROWS, SUM_WARPS = 8, 8
# About two for each multiprocessor; every one of them leaves 20 D sums behind.
MOST_SUM_PROGRAMS = 256


@triton.jit
def load_state(first_ptr, states_ptr, rows, place, steps, alive, D: tl.constexpr):
    """The states [D, N] that places [N] of [B, S] start from."""
    d = tl.arange(0, D)[:, None]
    t = (place - rows * steps)[None, :]
    state = tl.load(states_ptr + (place - 1)[None, :] * D + d, mask=alive & (t > 0), other=0.0)
    return state + tl.load(first_ptr + rows[None, :] * D + d, mask=alive & (t == 0), other=0.0)


@triton.jit(do_not_specialize=SIZES)
def _rollout_backward_kernel(
    gradient_ptr,  # [B, S, D] float32, of the states
    first_ptr,  # [B, D] float32
    clock_ptr,  # [3] int64
    state_norm_weight_ptr,  # [D] float32
    expand_ptr,  # [4D, D] in the type of the matrix products
    norm_weight_ptr,  # [4D] float32
    norm_bias_ptr,  # [4D] float32
    project_ptr,  # [D, 4D], as expand
    states_ptr,  # [B, S, D] float32
    hidden_ptr,  # [B, S, 4D] as expand
    statistics_ptr,  # [B, S, 2] float32
    first_gradient_ptr,  # [B, D] float32, written like all that follow
    total_ptr,  # [B, S, D] float32: gradient of the states, with what comes back from later steps
    fused_gradient_ptr,  # [B, S, D] float32: gradient of the input of the first matrix
    hidden_gradient_ptr,  # [B, S, 4D] as expand: gradient of its output
    norm_gradient_ptr,  # [B, S, 4D] as expand: gradient of the output of the norm behind it
    scratch_ptr,  # [B, 4D] float32, unless RESIDENT
    batch,
    steps,
    chunks,  # 4D / CHUNK, a number of the run, so that loops stay loops
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    DROP_BELOW: tl.constexpr,
    KEPT: tl.constexpr,
    STATE_RESIDUAL: tl.constexpr,
    GELU_FIRST: tl.constexpr,
):
    """One program per ROWS trajectories, from the last step to the first: all that the step before has to wait for."""
    HIDDEN: tl.constexpr = 4 * D
    # Addresses of this program's first trajectory; offsets from there fit 32 bits, which halves their registers.
    start = tl.program_id(0).to(tl.int64) * ROWS
    first_ptr += start * D
    first_gradient_ptr += start * D
    gradient_ptr += start * steps * D
    states_ptr += start * steps * D
    total_ptr += start * steps * D
    fused_gradient_ptr += start * steps * D
    statistics_ptr += start * steps * 2
    hidden_ptr += start * steps * HIDDEN
    hidden_gradient_ptr += start * steps * HIDDEN
    norm_gradient_ptr += start * steps * HIDDEN
    scratch_ptr += start * HIDDEN
    rows = tl.arange(0, ROWS)
    exists = start + rows < batch
    alive = exists[None, :]
    d, j, chunk = tl.arange(0, D), tl.arange(0, HIDDEN), tl.arange(0, CHUNK)
    first_key, second_key, first_row = dropout_keys(clock_ptr)
    if RESIDENT:
        project = tl.load(project_ptr + d[None, :] * HIDDEN + j[:, None])
    carried = tl.zeros([D, ROWS], tl.float32)
    for back in range(steps):
        t = steps - 1 - back
        place = rows * steps + t
        total = carried + tl.load(gradient_ptr + place[None, :] * D + d[:, None], mask=alive, other=0.0)
        tl.store(total_ptr + place[None, :] * D + d[:, None], total, mask=alive)
        factor = total.to(project_ptr.dtype.element_ty)
        if RESIDENT:
            slope = tl.dot(project, factor, input_precision="ieee")
        else:
            scratch_ptrs = scratch_ptr + rows[None, :] * HIDDEN
            for begin in range(0, chunks * CHUNK, CHUNK):
                i = begin + chunk
                weight = tl.load(project_ptr + d[None, :] * HIDDEN + i[:, None])
                part = tl.dot(weight, factor, input_precision="ieee")
                tl.store(scratch_ptrs + i[:, None], part, mask=alive)
            # What other threads have written is read.
            tl.debug_barrier()
            slope = tl.load(scratch_ptrs + j[:, None], mask=alive, other=0.0)

        # Loaded in every step: held, they would cost the registers that the products need.
        norm_weight, norm_bias = load_column(norm_weight_ptr, j), load_column(norm_bias_ptr, j)
        mean = tl.load(statistics_ptr + 2 * place, mask=exists, other=0.0)[None, :]
        scale = tl.load(statistics_ptr + 2 * place + 1, mask=exists, other=0.0)
        hidden = tl.load(hidden_ptr + place[None, :] * HIDDEN + j[:, None], mask=alive, other=0.0).to(tl.float32)
        value = ((gelu(hidden) if GELU_FIRST else hidden) - mean) * scale[None, :]
        if DROP_BELOW > 0:
            numbers = ((first_row + start) * steps + place).to(tl.uint32)[None, :] * HIDDEN + j.to(tl.uint32)[:, None]
            slope *= dropout_factor(numbers, first_key, second_key, DROP_BELOW, KEPT)
        if not GELU_FIRST:
            slope *= gelu_slope(value * norm_weight + norm_bias)
        kind = hidden_gradient_ptr.dtype.element_ty
        tl.store(norm_gradient_ptr + place[None, :] * HIDDEN + j[:, None], slope.to(kind), mask=alive)
        slope = normalise_backward(slope * norm_weight, value, scale, HIDDEN)
        if GELU_FIRST:
            slope *= gelu_slope(hidden)
        slope_ptrs = hidden_gradient_ptr + place[None, :] * HIDDEN
        tl.store(slope_ptrs + j[:, None], slope.to(kind), mask=alive)

        tl.debug_barrier()
        fused_gradient = tl.zeros([D, ROWS], tl.float32)
        for begin in range(0, chunks * CHUNK, CHUNK):
            i = begin + chunk
            weight = tl.load(expand_ptr + i[None, :] * D + d[:, None])
            part = tl.load(slope_ptrs + i[:, None], mask=alive, other=0.0)
            fused_gradient = tl.dot(weight, part, fused_gradient, input_precision="ieee")
        tl.store(fused_gradient_ptr + place[None, :] * D + d[:, None], fused_gradient, mask=alive)
        state, _, state_scale = normalise(load_state(first_ptr, states_ptr, rows, place, steps, alive, D), D)
        normed_gradient = (fused_gradient + total) * load_column(state_norm_weight_ptr, d)
        carried = normalise_backward(normed_gradient, state, state_scale, D)
        if not RESIDENT:
            # The next step writes where this one was read.
            tl.debug_barrier()
    tl.store(first_gradient_ptr + rows[None, :] * D + d[:, None], carried, mask=alive)


@triton.jit(do_not_specialize=("batch", "steps", "blocks"))
def _rollout_sums_kernel(
    first_ptr,  # [B, D] float32
    actions_ptr,  # [B, S, 2] float32
    state_norm_weight_ptr,  # [D] float32, like all vectors
    state_norm_bias_ptr,
    action_ptr,  # [D, 2] float32
    action_bias_ptr,
    action_norm_weight_ptr,
    action_norm_bias_ptr,
    states_ptr,  # [B, S, D] float32
    total_ptr,  # [B, S, D] float32
    fused_gradient_ptr,  # [B, S, D] float32
    hidden_ptr,  # [B, S, 4D] in the type of the matrix products
    statistics_ptr,  # [B, S, 2] float32
    hidden_gradient_ptr,  # [B, S, 4D] as hidden
    norm_gradient_ptr,  # [B, S, 4D] as hidden
    fused_ptr,  # [B, S, D] as hidden, written like all that follow: the input of the first matrix
    update_gradient_ptr,  # [B, S, D] as hidden: gradient of the output of the second matrix
    actions_gradient_ptr,  # [B, S, 2] float32, if ACTIONS
    sums_ptr,  # [programs, 20D] float32: each program's share of the gradients of vectors
    batch,
    steps,
    blocks,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    STATE_RESIDUAL: tl.constexpr,
    GELU_FIRST: tl.constexpr,
    ACTIONS: tl.constexpr,
):
    """What no step waits for, ROWS of all B S rows at a time, `blocks` times."""
    d, j = tl.arange(0, D), tl.arange(0, 4 * D)
    state_norm_weight, state_norm_bias = load_column(state_norm_weight_ptr, d), load_column(state_norm_bias_ptr, d)
    action_x, action_y = load_column(action_ptr, 2 * d), load_column(action_ptr, 2 * d + 1)
    action_bias = load_column(action_bias_ptr, d)
    action_norm_weight, action_norm_bias = load_column(action_norm_weight_ptr, d), load_column(action_norm_bias_ptr, d)
    hidden_zero, zero = tl.zeros([4 * D], tl.float32), tl.zeros([D], tl.float32)
    expand_bias_sum, norm_weight_sum, norm_bias_sum = hidden_zero, hidden_zero, hidden_zero
    project_bias_sum, state_weight_sum, state_bias_sum, action_weight_sum = zero, zero, zero, zero
    action_norm_bias_sum, action_bias_sum, action_x_sum, action_y_sum = zero, zero, zero, zero
    for block in range(blocks):
        place = (tl.program_id(0).to(tl.int64) * blocks + block) * ROWS + tl.arange(0, ROWS)
        exists = place < batch.to(tl.int64) * steps
        alive = exists[None, :]
        own = place[None, :] * D + d[:, None]
        state = load_state(first_ptr, states_ptr, place // steps, place, steps, alive, D)
        state, _, _ = normalise(state, D)
        x = tl.load(actions_ptr + 2 * place, mask=exists, other=0.0)[None, :]
        y = tl.load(actions_ptr + 2 * place + 1, mask=exists, other=0.0)[None, :]
        action, _, action_scale = normalise(action_x * x + action_y * y + action_bias, D)
        fused = state * state_norm_weight + state_norm_bias + action * action_norm_weight + action_norm_bias
        tl.store(fused_ptr + own, fused.to(fused_ptr.dtype.element_ty), mask=alive)
        total = tl.load(total_ptr + own, mask=alive, other=0.0)
        tl.store(update_gradient_ptr + own, total.to(update_gradient_ptr.dtype.element_ty), mask=alive)
        fused_gradient = tl.load(fused_gradient_ptr + own, mask=alive, other=0.0)
        own_hidden = place[None, :] * 4 * D + j[:, None]
        slope = tl.load(hidden_gradient_ptr + own_hidden, mask=alive, other=0.0).to(tl.float32)
        expand_bias_sum += tl.sum(slope, 1)
        slope = tl.load(norm_gradient_ptr + own_hidden, mask=alive, other=0.0).to(tl.float32)
        norm_bias_sum += tl.sum(slope, 1)
        value = tl.load(hidden_ptr + own_hidden, mask=alive, other=0.0).to(tl.float32)
        if GELU_FIRST:
            value = gelu(value)
        mean = tl.load(statistics_ptr + 2 * place, mask=exists, other=0.0)[None, :]
        scale = tl.load(statistics_ptr + 2 * place + 1, mask=exists, other=0.0)[None, :]
        norm_weight_sum += tl.sum(slope * ((value - mean) * scale), 1)
        project_bias_sum += tl.sum(total, 1)
        state_weight_sum += tl.sum((fused_gradient + total) * state, 1)
        state_bias_sum += tl.sum(fused_gradient + total, 1)
        moved_gradient = fused_gradient if STATE_RESIDUAL else fused_gradient + total
        action_weight_sum += tl.sum(moved_gradient * action, 1)
        action_norm_bias_sum += tl.sum(moved_gradient, 1)
        moved_gradient = normalise_backward(moved_gradient * action_norm_weight, action, action_scale, D)
        action_bias_sum += tl.sum(moved_gradient, 1)
        action_x_sum += tl.sum(moved_gradient * x, 1)
        action_y_sum += tl.sum(moved_gradient * y, 1)
        if ACTIONS:
            tl.store(actions_gradient_ptr + 2 * place, tl.sum(moved_gradient * action_x, 0), mask=exists)
            tl.store(actions_gradient_ptr + 2 * place + 1, tl.sum(moved_gradient * action_y, 0), mask=exists)
    sums_ptr += tl.program_id(0).to(tl.int64) * 20 * D
    tl.store(sums_ptr + j, expand_bias_sum)
    tl.store(sums_ptr + 4 * D + j, norm_weight_sum)
    tl.store(sums_ptr + 8 * D + j, norm_bias_sum)
    tl.store(sums_ptr + 12 * D + d, project_bias_sum)
    tl.store(sums_ptr + 13 * D + d, state_weight_sum)
    tl.store(sums_ptr + 14 * D + d, state_bias_sum)
    tl.store(sums_ptr + 15 * D + d, action_weight_sum)
    tl.store(sums_ptr + 16 * D + d, action_norm_bias_sum)
    tl.store(sums_ptr + 17 * D + d, action_bias_sum)
    tl.store(sums_ptr + 18 * D + 2 * d, action_x_sum)
    tl.store(sums_ptr + 18 * D + 2 * d + 1, action_y_sum)


def rollout_backward(
    gradient: Tensor,
    first: Tensor,
    actions: Tensor,
    clock: Tensor,
    weights: Sequence[Tensor],
    states: Tensor,
    hidden: Tensor,
    dropped: Tensor,
    statistics: Tensor,
    dropout: float,
    state_residual: bool,
    gelu_first: bool,
    actions_wanted: bool,
) -> tuple[Tensor, ...]:
    """Gradients of first [B, D], actions [B, S, 2] (empty unless wanted), both matrices, all vectors [20D]."""
    (batch, steps, _), dim, dtype = actions.shape, first.shape[1], hidden.dtype
    rows = batch * steps
    gradient, first, actions, clock, states, hidden, dropped, statistics = (
        tensor.contiguous() for tensor in (gradient, first, actions, clock, states, hidden, dropped, statistics)
    )
    weights = arguments(weights, dtype)
    compiled = configuration(dim, dtype, architecture(first))
    first_gradient = torch.empty_like(first)
    total, fused_gradient = (first.new_empty(rows, dim) for _ in range(2))
    hidden_gradient, norm_gradient = (hidden.new_empty(rows, 4 * dim) for _ in range(2))
    scratch = first.new_empty(0 if compiled["RESIDENT"] else batch * 4 * dim)

    blocks = triton.cdiv(rows, SUM_ROWS * MOST_SUM_PROGRAMS)
    sum_programs = triton.cdiv(rows, SUM_ROWS * blocks) if rows else 0
    fused, update_gradient = (hidden.new_empty(rows, dim) for _ in range(2))
    actions_gradient = actions.new_empty(actions.shape if actions_wanted else 0)
    sums = first.new_empty(sum_programs, 20 * dim)
    form = {"STATE_RESIDUAL": state_residual, "GELU_FIRST": gelu_first, "enable_fp_fusion": True}
    if rows:
        with on_device(first):
            _rollout_backward_kernel[(triton.cdiv(batch, ROWS),)](
                gradient, first, clock, weights[0], weights[EXPAND], weights[8], weights[9],
                weights[PROJECT], states, hidden, statistics, first_gradient, total, fused_gradient, hidden_gradient,
                norm_gradient, scratch, batch, steps, 4 * dim // compiled["CHUNK"], **compiled,
                **dropout_constants(dropout), **form,
            )  # fmt: skip
            _rollout_sums_kernel[(sum_programs,)](
                first, actions, *weights[:6], states, total, fused_gradient, hidden, statistics, hidden_gradient,
                norm_gradient, fused, update_gradient, actions_gradient, sums, batch, steps, blocks, D=dim,
                ROWS=SUM_ROWS, ACTIONS=actions_wanted, num_warps=SUM_WARPS, maxnreg=255, **form,
            )  # fmt: skip
    return (
        first_gradient,
        actions_gradient,
        product(hidden_gradient, fused),
        product(update_gradient, dropped.view(rows, 4 * dim)),
        sums.sum(0),
    )


def product(left: Tensor, right: Tensor) -> Tensor:
    """left^T right in float32, over all trajectories and steps."""
    if left.dtype == torch.float32:
        return left.t() @ right
    return torch.mm(left.t(), right, out_dtype=torch.float32)
