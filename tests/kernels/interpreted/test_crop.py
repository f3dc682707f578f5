import pytest
import torch

from jepa_fast.kernels.triton.crop import crop_backward, crop_forward


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
    negated = crop_backward(gradient, corners, groups, (bases, height, width, channels), margin, -1.0)
    assert torch.equal(negated, -ours)


def test_no_windows_give_no_gradient():
    ours = crop_backward(draw(0, 6, 9, 16), draw(0, 2).long(), draw(0).long(), (1, 4, 5, 16), (0, 0))
    assert torch.equal(ours, torch.zeros(1, 4, 5, 16))


@pytest.mark.parametrize(("has_values", "has_base"), [(False, True), (True, False), (True, True)])
def test_windows_are_cut_masked_and_subtracted_from(has_values, has_base):
    margin, size, image = (2, 3), (6, 9), (5, 7)
    corners, groups = torch.tensor([[0, 0], [4, 5], [1, 2]]), torch.tensor([1, 0, 1])
    base, values = draw(2, *image, 16), draw(3, *size, 16)
    padded = torch.nn.functional.pad(torch.stack([base, torch.ones_like(base)]), (0, 0, 10, 10, 10, 10))
    cut = torch.stack(
        [
            padded[:, group, top + 10 - margin[0] :, left + 10 - margin[1] :][:, : size[0], : size[1]]
            for group, (top, left) in zip(groups.tolist(), corners.tolist(), strict=True)
        ],
        dim=1,
    )
    expected = (values if has_values else 0) - (cut[0] if has_values else -cut[0]) * has_base
    ours = crop_forward(
        values if has_values else None, base if has_base else None, corners, groups, image, margin, size
    )
    assert torch.equal(ours, expected * cut[1])
