import pytest
import torch

from jepa_fast.kernels.triton.crop import crop_backward


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("count", [1, 40])
def test_gradient_of_the_bases_matches_a_loop_in_float64(count, error):
    bases, height, width, channels = 2, 5, 35, 16
    margin, size = (2, 3), (6, 9)
    generator = torch.Generator().manual_seed(count)
    corners = torch.stack(
        [torch.randint(0, high, (count,), generator=generator) for high in (height - 1, width - 2)], dim=1
    )
    groups = torch.randint(0, bases, (count,), generator=generator)
    gradient = draw(count, *size, channels)
    padded = torch.zeros(bases, height + 20, width + 20, channels, dtype=torch.float64)
    for n in range(count):
        top, left = (int(corner) - side + 10 for corner, side in zip(corners[n], margin, strict=True))
        padded[groups[n], top : top + size[0], left : left + size[1]] += gradient[n].double()
    ours = crop_backward(gradient, corners, groups, (bases, height, width, channels), margin)
    assert error(ours, padded[:, 10 : 10 + height, 10 : 10 + width]) < 1e-6


def test_no_windows_give_no_gradient():
    ours = crop_backward(draw(0, 6, 9, 16), draw(0, 2).long(), draw(0).long(), (1, 4, 5, 16), (0, 0))
    assert torch.equal(ours, torch.zeros(1, 4, 5, 16))
