"""Dropout whose mask is a pure function of (seed, step, site, element).

Eager, compiled, captured and fused paths draw the same mask from the same clock, and a captured graph draws a fresh one
at every replay, because seed and step live in a device tensor. No generator state is read or written. Elements are
counted over the rows of all processes, so that any number of them draws the masks of one.
"""

import torch
from torch import Tensor

from jepa_fast.kernels import extension
from jepa_fast.kernels.dispatch import constant_when_compiled

OPERATOR = "jepa_fast::dropout_mask"

# Each place that draws from the hash has a number of its own: where the model drops elements, and the flips of a batch.
SITE_FIRST_GROUP = 0
SITE_SECOND_GROUP = 1
SITE_PREDICTOR = 2
SITE_FLIPS = 3
SITE_FUSION = 4
SITE_THIRD_GROUP = 5

_LOW32 = 0xFFFFFFFF


def group_site(number: int) -> int:
    """The site of a group of channels; those from the third on have the numbers from there."""
    return number if number <= SITE_SECOND_GROUP else SITE_THIRD_GROUP - 2 + number


def new_clock(seed: int = 0) -> Tensor:
    """The clock int64 [3]: (seed, step, first row); the last is that of this process in the batch of all of them."""
    return torch.tensor([seed, 0, 0], dtype=torch.int64)


def dropout_mask(shape: tuple[int, ...], rate: float, clock: Tensor, site: int) -> Tensor:
    """Mask float32 of `shape`: 0 with probability `rate`, else 1 / (1 - rate).

    The element's number is its row-major position in `shape` plus the elements of the `clock[2]` rows before it. The
    bits are those of a 32-bit integer hash, written in int64 with the low word kept, so that a kernel gets them with
    plain uint32 arithmetic.
    """
    if rate == 0:
        return torch.ones(shape, device=clock.device)
    if clock.device.type == "cpu" and _is_compiled():
        mask: Tensor = torch.ops.jepa_fast.dropout_mask(list(shape), rate, clock, site)
        return mask
    return dropout_mask_reference(shape, rate, clock, site)


def dropout_mask_reference(shape: tuple[int, ...], rate: float, clock: Tensor, site: int) -> Tensor:
    """The same in plain PyTorch, of a rate above 0."""
    seed, step, first_row = clock.unbind()
    first_key = _mix(_mix((seed & _LOW32) ^ _mix((seed >> 32) & _LOW32)) ^ _mix((step & _LOW32) ^ (site << 24)))
    second_key = _mix(first_key ^ 0x9E3779B9)
    count = 1
    for size in shape:
        count *= size
    elements = torch.arange(count, device=clock.device, dtype=torch.int64) + first_row * (count // max(shape[0], 1))
    bits = _mix((_mix((elements & _LOW32) ^ first_key) + second_key) & _LOW32)
    kept = bits >= int(rate * 2**32)
    return (kept.to(torch.float32) * (1.0 / (1.0 - rate))).view(shape)


def _dropout_mask_fake(shape: list[int], rate: float, clock: Tensor, site: int) -> Tensor:
    return clock.new_empty(shape, dtype=torch.float32)


@constant_when_compiled
def _is_compiled() -> bool:
    return extension.has_kernel("dropout_mask", "cpu")


if extension.has_kernel("dropout_mask", "cpu"):
    torch.library.register_fake(OPERATOR, _dropout_mask_fake)


def _mix(bits: Tensor) -> Tensor:
    """Bijective 32-bit mixing of non-negative int64 below 2^32. Source: hash-prospector's `lowbias32` constants."""
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x7FEB352D) & _LOW32
    bits = bits ^ (bits >> 15)
    bits = (bits * 0x846CA68B) & _LOW32
    return bits ^ (bits >> 16)
