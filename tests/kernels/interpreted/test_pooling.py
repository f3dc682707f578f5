import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels.triton.pooling import window_pool_backward, window_pool_forward


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def window(top, left, margin, size):
    """Rows and columns of a grown window in an image with 10 pixels around it."""
    places = zip((top, left), margin, size, strict=True)
    return tuple(slice(first + 10 - before, first + 10 - before + length) for first, before, length in places)


@pytest.mark.parametrize(("image", "channels"), [((13, 9), 16), ((6, 7), 4)], ids=str)
def test_windows_are_pooled_as_the_images_that_are_black_around_them(image, channels, error):
    margin, size = (2, 3), (5, 6)
    corners = torch.tensor([[0, 0], [image[0] - 1, image[1] - 2], [3, 2]])
    x = draw(3, *size, channels)
    padded = torch.zeros(3, image[0] + 20, image[1] + 20, channels, dtype=torch.float64, requires_grad=True)
    whole = padded.clone()
    for n, (top, left) in enumerate(corners.tolist()):
        rows, columns = (
            slice(first + 10 - m, first + 10 - m + s) for first, m, s in zip((top, left), margin, size, strict=True)
        )
        whole[n, rows, columns] = x[n].double() + padded[n, rows, columns]
    whole = whole[:, 10 : 10 + image[0], 10 : 10 + image[1]]
    truth = F.adaptive_avg_pool2d(whole.permute(0, 3, 1, 2), 6).permute(0, 2, 3, 1)
    pooled = window_pool_forward(x, corners, margin, image, 6)
    assert error(pooled, truth.detach()) < 1e-6
    gradient = draw(3, 6, 6, channels)
    truth.backward(gradient.double())
    ours = window_pool_backward(gradient, corners, x.shape, margin, image, torch.float32)
    wanted = torch.zeros_like(x, dtype=torch.float64)
    on_image = padded.grad.clone()
    on_image[:, :10] = on_image[:, 10 + image[0] :] = 0
    for n, (top, left) in enumerate(corners.tolist()):
        rows, columns = (
            slice(first + 10 - m, first + 10 - m + s) for first, m, s in zip((top, left), margin, size, strict=True)
        )
        wanted[n] = on_image[n, rows, columns]
    assert error(ours, wanted) < 1e-6
