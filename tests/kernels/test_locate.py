"""Positions found in windows by one op, against whole frames in float64 and the pieces that the model is made of."""

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels.locate import locate, locate_reference, why_not_compiled
from jepa_fast.models.softargmax import soft_argmax_of_windows
from tests.compiled import needs_library

SIZE = (21, 17)


def draw(count=9, window=(6, 5), channels=8, kernel=3, dtype=torch.float64):
    """Windows inside of the frame, over its borders and beyond, and weights."""
    generator = torch.Generator().manual_seed(count + kernel)
    images = torch.rand(count, *window, generator=generator, dtype=torch.float64)
    low = torch.tensor([1 - window[0], 1 - window[1]])
    corners = low + (torch.rand(count, 2, generator=generator) * (torch.tensor(SIZE) - low)).long()
    look = 0.5 * torch.randn(channels, 1, kernel, kernel, generator=generator, dtype=torch.float64)
    spread = 0.2 * torch.rand(channels, 1, kernel, kernel, generator=generator, dtype=torch.float64)
    leaves = [part.to(dtype).requires_grad_() for part in (look, spread, torch.tensor(0.3, dtype=torch.float64))]
    return images.to(dtype), corners, *leaves


def gradients(positions, leaves):
    weights = torch.linspace(-1, 1, positions.numel()).view(positions.shape).to(positions)
    return torch.autograd.grad((positions * weights).sum(), leaves)


@pytest.mark.parametrize("case", [{}, {"window": (1, 1)}, {"count": 1}, {"count": 67, "kernel": 5}, {"channels": 24}])
def test_positions_and_gradients_are_those_of_whole_frames(case):
    images, corners, *leaves = draw(**case)
    found = locate(images, corners, *leaves, SIZE)
    truth = locate_reference(images, corners, *leaves, *SIZE)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients(found, leaves), gradients(truth, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_float32_is_as_close_to_float64_as_the_layers_are():
    images, corners, *leaves = draw(200, (10, 10), dtype=torch.float32)
    wide = [part.detach().double().requires_grad_() for part in leaves]
    truth = locate_reference(images.double(), corners, *wide, *SIZE)
    look, spread, log_temperature = leaves
    logits = F.conv_transpose2d(F.relu(F.conv2d(images[:, None], look, padding=2)), spread)[:, 0]
    layers = soft_argmax_of_windows(logits, corners - 2, SIZE, log_temperature.exp())
    found = locate(images, corners, *leaves, SIZE)
    ours = [found, *gradients(found, leaves)]
    theirs = [layers, *gradients(layers, leaves)]
    for one, other, exact in zip(ours, theirs, [truth, *gradients(truth, wide)], strict=True):
        floor = 1e-6 * exact.abs().max()
        assert (one - exact).abs().max() <= 2 * (other - exact).abs().max() + floor


def test_weights_of_a_frame_that_are_nearly_all_equal_do_not_round_to_one_side():
    _, _, *leaves = draw(dtype=torch.float32)
    count, size = 16, (65, 65)
    images = torch.zeros(count, *size)
    at = torch.arange(count) * 3 + 5
    images[torch.arange(count), at, at.flip(0)] = 1
    corners = torch.zeros(count, 2, dtype=torch.int64)
    look, spread = (part.detach() for part in leaves[:2])
    highest = F.conv_transpose2d(F.relu(F.conv2d(images[:, None], look, padding=2)), spread).max()
    log_temperature = (highest / 9).log()  # a sixth of the weight is where the dot is, the rest all over the frame
    exact = locate_reference(
        images.double(), corners, look.double(), spread.double(), log_temperature.double(), *size
    )  # fmt: skip
    ours = (locate(images, corners, look, spread, log_temperature, size) - exact).abs().max()
    theirs = (locate_reference(images, corners, look, spread, log_temperature, *size) - exact).abs().max()
    assert ours <= 2 * theirs + 1e-6 * size[0]


@needs_library
def test_gradcheck():
    images, corners, *leaves = draw(3, (3, 4))
    assert why_not_compiled(images, 8) is None
    assert torch.autograd.gradcheck(lambda *w: locate(images, corners, *w, SIZE), leaves, fast_mode=True)


@needs_library
def test_opcheck_and_a_compiled_graph_without_breaks():
    images, corners, *leaves = draw(3, (3, 4), dtype=torch.float32)
    torch.library.opcheck(torch.ops.jepa_fast.locate.default, (images, corners, *leaves, *SIZE))
    compiled = torch.compile(lambda *w: locate(images, corners, *w, SIZE), fullgraph=True)
    assert torch.equal(compiled(*leaves), locate(images, corners, *leaves, SIZE))


@needs_library
def test_any_number_of_threads_gives_the_same_bits():
    images, corners, *leaves = draw(130, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found = locate(images, corners, *leaves, SIZE)
            results.append([found, *gradients(found, leaves)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_no_windows_and_strides():
    images, corners, *leaves = draw()
    assert locate(images[:0], corners[:0], *leaves, SIZE).shape == (0, 2)
    assert all(not part.any() for part in gradients(locate(images[:0], corners[:0], *leaves, SIZE), leaves))
    strided = images.transpose(1, 2).contiguous().transpose(1, 2)
    apart = corners.flip(0).flip(0).repeat(1, 2)[:, :2]
    assert torch.equal(locate(strided, apart, *leaves, SIZE), locate(images, corners, *leaves, SIZE))


@needs_library
def test_what_the_op_does_not_take_runs_in_plain_pytorch():
    images, corners, *leaves = draw(channels=6)
    assert "multiples of 8" in (why_not_compiled(images, 6) or "")
    assert torch.equal(locate(images, corners, *leaves, SIZE), locate_reference(images, corners, *leaves, *SIZE))
    images.requires_grad_()
    assert "gradient" in (why_not_compiled(images, 8) or "")
    assert torch.autograd.grad(locate(images, corners, *leaves, SIZE).sum(), images)[0].any()
    with pytest.raises(RuntimeError, match="multiple of 8"):
        torch.ops.jepa_fast.locate(images.detach(), corners, *leaves, *SIZE)
