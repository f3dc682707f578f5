"""A block's parameters as its kernels take them, and their gradients out of the parts that programs left.

Both are small and both are many: filters are transposed, two matrices cast, five sums taken. One launch does each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepa_fast.kernels.triton.launch import on_device

TAPS = 49
BLOCK = 256  # elements that a program lays out
COLUMNS, ROWS = 32, 32  # sums of a program, and parts that it adds at once
WARPS = 4


@triton.jit
def _lay_out_kernel(
    weight_ptr,  # [C, 49]
    expand_ptr,  # [4C, C]
    project_ptr,  # [C, 4C]
    taps_ptr,  # [49, C] float32, written
    expand_out_ptr,  # [4C, C] in the type of the matrix products, written
    project_out_ptr,  # [C, 4C], likewise
    C: tl.constexpr,
    FLIPPED: tl.constexpr,  # filters turned by 180 degrees
    BLOCK: tl.constexpr,
):
    """Filters channels last in float32, both matrices cast."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap, c = place // C, place % C
    source = c * 49 + (48 - tap if FLIPPED else tap)
    is_tap = place < 49 * C
    taps = tl.load(weight_ptr + source, mask=is_tap, other=0.0)
    tl.store(taps_ptr + place, taps.to(tl.float32), mask=is_tap)
    is_weight = place < 4 * C * C
    expand = tl.load(expand_ptr + place, mask=is_weight, other=0.0)
    tl.store(expand_out_ptr + place, expand.to(expand_out_ptr.dtype.element_ty), mask=is_weight)
    project = tl.load(project_ptr + place, mask=is_weight, other=0.0)
    tl.store(project_out_ptr + place, project.to(project_out_ptr.dtype.element_ty), mask=is_weight)


@triton.jit
def sum_parts(partial_ptr, column, parts, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Sums [COLUMNS] over the parts [parts, WIDTH], in an order that their number alone decides."""
    total = tl.zeros([ROWS, column.shape[0]], tl.float32)
    for first in range(0, parts, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        here = (row < parts) & (column[None, :] < WIDTH)
        total += tl.load(partial_ptr + row * WIDTH + column[None, :], mask=here, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=("norm_parts", "weight_parts", "tap_parts"))
def _add_up_kernel(
    norm_partial_ptr,  # [norm_parts, 2, C] float32, like all parts
    weight_partial_ptr,  # [weight_parts, 2, C, 4C]: W1's part transposed, W2's part
    tap_partial_ptr,  # [tap_parts, 49, C]
    gamma_ptr,  # [C], a gradient, like all that are written
    beta_ptr,  # [C]
    expand_ptr,  # [4C, C]
    project_ptr,  # [C, 4C]
    weight_ptr,  # [C, 49]
    norm_parts,
    weight_parts,
    tap_parts,
    C: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """COLUMNS sums of one of the three lists of parts, in the order of the parameter. float32, deterministic."""
    program = tl.program_id(0)
    MATRIX: tl.constexpr = 4 * C * C
    NORMS: tl.constexpr = (2 * C + COLUMNS - 1) // COLUMNS
    WEIGHTS: tl.constexpr = (2 * MATRIX + COLUMNS - 1) // COLUMNS
    if program < NORMS:
        column = program * COLUMNS + tl.arange(0, COLUMNS)
        total = sum_parts(norm_partial_ptr, column, norm_parts, 2 * C, ROWS)
        tl.store(gamma_ptr + column, total.to(gamma_ptr.dtype.element_ty), mask=column < C)
        place = beta_ptr + column - C
        tl.store(place, total.to(beta_ptr.dtype.element_ty), mask=(column >= C) & (column < 2 * C))
    elif program < NORMS + WEIGHTS:
        column = (program - NORMS) * COLUMNS + tl.arange(0, COLUMNS)
        total = sum_parts(weight_partial_ptr, column, weight_parts, 2 * MATRIX, ROWS)
        c, h = column // (4 * C), column % (4 * C)
        tl.store(expand_ptr + h * C + c, total.to(expand_ptr.dtype.element_ty), mask=column < MATRIX)
        place = project_ptr + column - MATRIX
        tl.store(place, total.to(project_ptr.dtype.element_ty), mask=(column >= MATRIX) & (column < 2 * MATRIX))
    else:
        column = (program - NORMS - WEIGHTS) * COLUMNS + tl.arange(0, COLUMNS)
        total = sum_parts(tap_partial_ptr, column, tap_parts, 49 * C, ROWS)
        place = weight_ptr + (column % C) * 49 + column // C
        tl.store(place, total.to(weight_ptr.dtype.element_ty), mask=column < 49 * C)


def lay_out(
    weight: Tensor, expand: Tensor, project: Tensor, dtype: torch.dtype, flipped: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Taps float32 [49, C] of filters [C, 1, 7, 7], and W1 and W2 in `dtype`; all contiguous."""
    channels = len(weight)
    taps = torch.empty(TAPS, channels, dtype=torch.float32, device=weight.device)
    matrices = [torch.empty(matrix.shape, dtype=dtype, device=matrix.device) for matrix in (expand, project)]
    elements = max(TAPS * channels, 4 * channels * channels)
    with on_device(weight):
        _lay_out_kernel[(triton.cdiv(elements, BLOCK), 1, 1)](
            weight.contiguous(), expand.contiguous(), project.contiguous(), taps, *matrices, C=channels,
            FLIPPED=flipped, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return taps, matrices[0], matrices[1]


def add_up(norm_partial: Tensor, weight_partial: Tensor, tap_partial: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Gradients of gamma, beta, W1, W2 and the filters, with the shapes and dtypes of those, from the kernels' parts.

    Args:
        norm_partial: [P, 2, C].
        weight_partial: [P', 2, C, 4C], W1's part transposed.
        tap_partial: [P'', 49, C].
        like: gamma, beta, W1, W2, filters.
    """
    channels = len(like[0])
    gradients = [torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in like]
    lists = (2 * channels, 8 * channels * channels, TAPS * channels)
    with on_device(norm_partial):
        _add_up_kernel[(sum(triton.cdiv(length, COLUMNS) for length in lists), 1, 1)](
            norm_partial, weight_partial, tap_partial, *gradients, len(norm_partial), len(weight_partial),
            len(tap_partial), C=channels, COLUMNS=COLUMNS, ROWS=ROWS, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return gradients
