"""Expected coordinates, against sums written out pixel by pixel."""

import math

import pytest
import torch

from jepa_fast.models.softargmax import soft_argmax, soft_argmax_of_windows

WINDOW = (5, 3)
FRAME = (11, 14)
# (row, column): inside, at two corners, beyond every side, and wholly outside.
CORNERS = torch.tensor([[3, 4], [0, 0], [6, 11], [-2, 5], [8, -1], [4, 13], [20, 20]])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def pasted(windows, corners, size):
    """Frames [N, H, W] with windows [N, h, w] on zeros, pixel by pixel; differentiable."""
    frames = []
    for window, (top, left) in zip(windows, corners.tolist(), strict=True):
        frame = torch.zeros(size, dtype=windows.dtype)
        for row in range(window.shape[0]):
            for column in range(window.shape[1]):
                if 0 <= top + row < size[0] and 0 <= left + column < size[1]:
                    mark = torch.zeros(size, dtype=windows.dtype)
                    mark[top + row, left + column] = 1
                    frame = frame + mark * window[row, column]
        frames.append(frame)
    return torch.stack(frames)


def test_it_is_the_expectation_written_out():
    logits, temperature = draw(4, 7), 0.8
    chances = [[math.exp(value / temperature) for value in row] for row in logits.tolist()]
    total = sum(map(sum, chances))
    x = sum(column * chance for row in chances for column, chance in enumerate(row)) / total
    y = sum(row * chance for row, line in enumerate(chances) for chance in line) / total
    assert soft_argmax(logits, temperature).tolist() == pytest.approx([x, y], abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (65, 65)])
def test_a_pixel_that_stands_out_alone_is_where_it_is(size):
    row, column = size[0] // 2, size[1] - 1
    logits = torch.zeros(size)
    logits[row, column] = 1.0
    assert soft_argmax(logits, 1e-3).tolist() == [column, row]


def test_nothing_that_stands_out_is_in_the_centre():
    torch.testing.assert_close(soft_argmax(torch.full((2, 5, 8), 7.0)), torch.tensor([[3.5, 2.0], [3.5, 2.0]]))


@pytest.mark.parametrize("shift", [(0, 1), (2, -3)])
def test_what_is_shifted_is_found_shifted(shift):
    """By exactly as much where the rest weighs nothing, and by as much less as the background weighs in all."""
    window, corner = draw(1, *WINDOW), torch.tensor([[4, 5]])
    for temperature in (0.05, 0.5, 3.0):
        frames = [pasted(window, at, FRAME)[0] for at in (corner, corner + torch.tensor(shift))]
        moved = soft_argmax(frames[1], temperature) - soft_argmax(frames[0], temperature)
        background = (frames[0] / temperature).flatten().softmax(dim=0)[0].item()
        share = 1 - FRAME[0] * FRAME[1] * background
        expected = share * torch.tensor(shift[::-1], dtype=torch.float64)
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_windows_on_zeros_give_what_whole_frames_give(temperature):
    """Values, and gradients for logits and temperature, in float64."""
    results = []
    for whole in (True, False):
        logits = draw(len(CORNERS), *WINDOW).requires_grad_()
        heat = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        if whole:
            found = soft_argmax(pasted(logits, CORNERS, FRAME), heat)
        else:
            found = soft_argmax_of_windows(logits, CORNERS, FRAME, heat)
        (found * draw(len(CORNERS), 2, seed=1)).sum().backward()
        results.append((found.detach(), logits.grad, heat.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_float32_keeps_hundredths_of_a_thousandth_of_a_pixel():
    logits = draw(4, 3, 9, 9)
    corners = torch.randint(-4, 60, (4, 3, 2), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    truth = soft_argmax_of_windows(logits, corners, (65, 65), 0.3)
    rounded = soft_argmax_of_windows(logits.float(), corners, (65, 65), 0.3)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), truth, rtol=0, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    logits = draw(3, *WINDOW).requires_grad_()
    temperature = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_argmax, (logits, temperature))
    corners = CORNERS[[0, 3, 4]]
    assert torch.autograd.gradcheck(
        lambda logits, temperature: soft_argmax_of_windows(logits, corners, FRAME, temperature), (logits, temperature)
    )


def test_logits_beyond_the_range_of_exp_do_no_harm():
    logits = torch.tensor([[[1e4, 0.0], [0.0, -1e4]], [[-1e4, -1e4], [-1e4, -1e4]]], requires_grad=True)
    found = soft_argmax_of_windows(logits, torch.tensor([[2, 3], [2, 3]]), (6, 9))
    assert found[0].tolist() == [3, 2]
    assert found.isfinite().all()
    found.sum().backward()
    assert logits.grad.isfinite().all()
    # A window that nothing lies in, where exp overflows outside of the frame.
    beyond = torch.full((1, 2, 2), 1e4, requires_grad=True)
    lost = soft_argmax_of_windows(beyond, torch.tensor([[6, 9]]), (6, 9))
    assert lost.tolist() == [[4, 2.5]]
    lost.sum().backward()
    assert beyond.grad.tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_float32_under_autocast(dtype):
    logits = draw(2, 3, 9, 9).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = soft_argmax(logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, soft_argmax(logits.double()).float(), rtol=0, atol=1e-5)


def test_memory_layout_and_empty_batches_change_nothing():
    logits = draw(2, 6, 3, 5)
    strided = logits.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(soft_argmax(strided), soft_argmax(logits), rtol=0, atol=1e-12)
    assert soft_argmax(torch.zeros(0, 3, 4)).tolist() == []
    assert soft_argmax_of_windows(torch.zeros(0, 3, 4), torch.zeros(0, 2).long(), (9, 9)).tolist() == []


def test_compiled_equals_eager():
    logits, corners = draw(3, *WINDOW), CORNERS[:3]
    for function, arguments in (
        (soft_argmax, (logits,)),
        (soft_argmax_of_windows, (logits, corners, FRAME)),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), function(*arguments), rtol=0, atol=1e-12)
