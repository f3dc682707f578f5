"""The kernels on bfloat16, rounded where they load, store and multiply: the paths that training with bf16 takes.

Truth is float64 on the same rounded inputs. An error of 1e-2 is what bf16 is allowed; below 1e-4 nothing was rounded.
"""

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels.convnext_block import convnext_block_reference
from jepa_fast.kernels.triton import rollout_backward as module
from jepa_fast.kernels.triton.convnext_block import block_forward
from jepa_fast.kernels.triton.convnext_block_backward import block_backward
from jepa_fast.kernels.triton.crop import crop_backward, crop_forward
from jepa_fast.kernels.triton.pooling import window_pool_backward, window_pool_forward
from jepa_fast.kernels.triton.rollout import rollout_forward
from jepa_fast.kernels.triton.rollout_backward import rollout_backward
from tests.kernels import rollout_cases

pytestmark = pytest.mark.usefixtures("bfloat16")
HALF = torch.bfloat16
LEAST, MOST = 1e-4, 1e-2


def draw(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def half(*shape, scale=1.0):
    return draw(*shape, scale=scale).to(HALF)


@pytest.mark.parametrize(("channels", "keep"), [(16, True), (32, False)])
def test_the_block_and_its_gradients(channels, keep, error):
    shape, out = (2, 4, 5, channels), (2, 10, 11, channels)
    x, addend = half(*shape), half(*out, scale=0.5)
    matrices = draw(4 * channels, channels, scale=channels**-0.5), draw(channels, 4 * channels, scale=0.2)
    parameters = draw(channels, 1, 7, 7, scale=0.2), draw(channels) + 1.5, draw(channels + 1)[1:], *matrices
    y, z, update = block_forward(x, *parameters, addend, (6, 6), 1e-5, keep)
    # Matrices are rounded by the kernels.
    wide = [leaf.double() for leaf in (x, *parameters[:3], *(one.to(HALF) for one in matrices), addend)]
    leaves = [leaf.requires_grad_() for leaf in wide]
    truth = convnext_block_reference(*leaves, padding=(6, 6))
    assert LEAST < error(y, truth.detach()) < MOST
    assert (y.dtype, z.dtype) == (HALF, HALF)
    if keep:
        assert error(update, (truth - F.pad(leaves[0], (0, 0, 3, 3, 3, 3))).detach()) < MOST
    dy = half(*out)
    truth.backward(dy.double())
    dx, _, *gradients = block_backward(dy, None, None, x, z, *parameters, (6, 6), 1e-5)
    assert LEAST < error(dx, leaves[0].grad) < MOST
    for gradient, leaf in zip(gradients, leaves[1:], strict=False):
        assert gradient.dtype == torch.float32
        assert error(gradient, leaf.grad) < MOST


def test_windows_are_cut_subtracted_and_summed(error):
    base, values = half(2, 5, 7, 16), half(3, 6, 9, 16)
    corners, groups = torch.tensor([[0, 0], [4, 5], [1, 2]]), torch.tensor([1, 0, 1])
    placed = corners, groups, (5, 7), (2, 3), (6, 9)
    cut = crop_forward(None, base, *placed)
    mask = crop_forward(torch.ones_like(values), None, *placed)
    apart = crop_forward(values, base, *placed)
    assert torch.equal(apart, ((values.float() - cut.float()) * mask.float()).to(HALF))
    summed = crop_backward(values, corners, groups, base.shape, (2, 3))
    exact = crop_backward(values.float(), corners, groups, base.shape, (2, 3))
    assert torch.equal(summed, exact.to(HALF))


def test_windows_are_pooled_in_float32(error):
    x, corners = half(3, 5, 6, 16), torch.tensor([[0, 0], [8, 7], [3, 2]])
    placed = corners, (2, 3), (13, 9)
    assert torch.equal(window_pool_forward(x, *placed, 6), window_pool_forward(x.float(), *placed, 6))
    gradient = draw(3, 6, 6, 16)
    ours = window_pool_backward(gradient, corners, x.shape, (2, 3), (13, 9), HALF)
    exact = window_pool_backward(gradient, corners, x.shape, (2, 3), (13, 9), torch.float32)
    assert torch.equal(ours, exact.to(HALF))


@torch.no_grad()
def test_the_rollout_and_its_gradients(error, monkeypatch):
    # A product with sums wider than its factors is CUDA's alone.
    monkeypatch.setattr(module, "product", lambda left, right: left.float().t() @ right.float())
    case = rollout_cases.draw(16, 3, 4)
    weights, given = list(case.weights), (case.first, case.actions, case.clock)
    kept, exact = (
        rollout_forward(*given, weights, 0.1, False, False, bfloat16, keep=True) for bfloat16 in (True, False)
    )
    assert LEAST < error(kept[0], exact[0]) < MOST
    assert kept[1].dtype == HALF
    ours, wanted = (
        rollout_backward(case.gradient, *given, weights, *each, 0.1, False, False, True) for each in (kept, exact)
    )
    for one, other in zip(ours, wanted, strict=True):
        assert error(one, other) < 2 * MOST
