"""Crop, difference, depthwise convolution and pooling of windows against indexing and the layers they stand for."""

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels.window import added_up, crop, depthwise, difference, pool, window_pool
from jepa_fast.models.window_heads import pooling_matrix


def gradcheck(function, inputs) -> bool:
    # One random direction of all inputs and outputs: each is checked, in a second instead of half a minute.
    return torch.autograd.gradcheck(function, inputs, fast_mode=True)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("padding", [(3, 3), (6, 6), (3, 6)])
def test_depthwise_equals_the_convolution(padding):
    x, weight = draw(2, 4, 5, 3), draw(3, 1, 7, 7)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding, groups=3).permute(0, 2, 3, 1)
    addend = torch.randn_like(expected, requires_grad=True)
    assert torch.allclose(depthwise(x, weight, padding, addend), expected + addend, rtol=1e-12)
    assert gradcheck(lambda x, w, a: depthwise(x, w, padding, a), [x, weight, addend])


def test_crop_reads_each_window_and_its_gradient_adds_where_windows_overlap():
    base = draw(2, 5, 6, 2)
    corners, groups = torch.tensor([[0, 0], [3, 4], [1, 2], [1, 2]]), torch.tensor([0, 1, 1, 1])
    windows = crop(base, corners, groups, (1, 2), (4, 6))
    padded = F.pad(base, (0, 0, 2, 2, 1, 1))
    for window, (row, column), group in zip(windows, corners.tolist(), groups.tolist(), strict=True):
        assert torch.equal(window, padded[group, row : row + 4, column : column + 6])
    assert gradcheck(lambda base: crop(base, corners, groups, (1, 2), (4, 6)), [base])


def test_pool_is_adaptive_average_pooling():
    for height, width in [(65, 65), (6, 7), (13, 40)]:
        x = draw(2, height, width, 3)
        got = pool(x, pooling_matrix(height, x), pooling_matrix(width, x))
        expected = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 6).permute(0, 2, 3, 1)
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_window_pool_is_adaptive_average_pooling_of_the_image_around_the_window():
    x, corners = draw(3, 5, 6, 2), torch.tensor([[0, 0], [8, 7], [3, 2]])
    images = torch.zeros(3, 33, 29, 2, dtype=torch.float64)
    for n, (row, column) in enumerate(corners.tolist()):
        images[n, row + 8 : row + 13, column + 7 : column + 13] = x[n].detach()
    expected = F.adaptive_avg_pool2d(images[:, 10:23, 10:19].permute(0, 3, 1, 2), 6).permute(0, 2, 3, 1)
    torch.testing.assert_close(window_pool(x, corners, (2, 3), (13, 9)), expected)
    assert gradcheck(lambda x: window_pool(x, corners, (2, 3), (13, 9)), [x])


def test_parts_that_are_sorted_first_have_the_same_sums():
    parts, places = draw(50, 3).detach(), torch.randint(0, 7, (50,))
    torch.testing.assert_close(added_up(parts, places, 9, sorts=True), added_up(parts, places, 9, sorts=False))


def test_a_difference_is_that_to_the_crop_and_zero_off_the_image():
    base, values = draw(2, 5, 6, 3).detach().requires_grad_(), draw(4, 4, 6, 3).detach().requires_grad_()
    corners, groups = torch.tensor([[0, 0], [3, 1], [2, 4], [3, 4]]), torch.tensor([1, 0, 0, 1])
    ours = difference(values, base, corners, groups, (1, 2))
    inside = crop(torch.ones_like(base), corners, groups, (1, 2), (4, 6))
    torch.testing.assert_close(ours, (values - crop(base, corners, groups, (1, 2), (4, 6))) * inside)
    assert 0 < inside.mean() < 1
    assert gradcheck(lambda *leaves: difference(*leaves, corners, groups, (1, 2)), [values, base])


def test_registrations_are_sound():
    ops = torch.ops.jepa_fast
    torch.library.opcheck(ops.depthwise, (draw(2, 4, 3, 2), draw(2, 1, 7, 7), [3, 6], None))
    corners, groups = torch.tensor([[0, 0], [3, 1]]), torch.tensor([1, 0])
    torch.library.opcheck(ops.crop, (draw(2, 5, 6, 2), corners, groups, [1, 2], [4, 6], False))
    torch.library.opcheck(ops.window_pool, (draw(2, 4, 6, 2), corners, [1, 2], [7, 9], 6))
    torch.library.opcheck(ops.window_difference, (draw(2, 4, 6, 2), draw(2, 5, 6, 2), corners, groups, [1, 2], False))
