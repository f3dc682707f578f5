"""Windows over base images by Triton kernels, values and gradients, against the same ops on the CPU in float64."""

import pytest
import torch

from jepa_fast.kernels.convnext_block import convnext_block, convnext_block_keep
from jepa_fast.kernels.window import crop, difference, window_pool

pytestmark = pytest.mark.gpu
DTYPES = {"float32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 1e-2)}
IMAGE, MARGIN, SIZE, CHANNELS = (13, 11), (2, 3), (8, 9), 16


def error(ours, truth):
    return float((ours.cpu().double() - truth).norm() / truth.norm())


def draw(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def places(count, bases):
    generator = torch.Generator().manual_seed(count)
    corners = [torch.randint(0, side - 3, (count,), generator=generator) for side in IMAGE]
    return torch.stack(corners, dim=1), torch.randint(0, bases, (count,), generator=generator)


def run(function, leaves, gradient):
    """Output and gradients of leaves."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out))]


def compare(function, leaves, gradient, limit):
    device = torch.device("cuda")
    with torch.no_grad():
        poison = torch.full((1 << 22,), float("nan"), device=device)
        del poison
    ours = run(lambda *given: function(*given, device), [leaf.to(device) for leaf in leaves], gradient)
    again = run(lambda *given: function(*given, device), [leaf.to(device) for leaf in leaves], gradient)
    truth = run(lambda *given: function(*given, torch.device("cpu")), [leaf.double() for leaf in leaves], gradient)
    for one, other, wanted in zip(ours, again, truth, strict=True):
        assert torch.equal(one, other)
        assert error(one, wanted) < limit


@pytest.mark.parametrize(("count", "bases"), [(1, 1), (150, 1), (37, 5)])
@pytest.mark.parametrize("kind", DTYPES)
def test_crops_of_small_shapes(kind, count, bases):
    dtype, limit = DTYPES[kind]
    corners, groups = places(count, bases)
    base, gradient = draw(bases, *IMAGE, CHANNELS, dtype=dtype), draw(count, *SIZE, CHANNELS, dtype=dtype)

    def cut(base, device):
        return crop(base, corners.to(device), groups.to(device), MARGIN, SIZE, is_fused=True)

    compare(cut, [base], gradient, limit)


@pytest.mark.parametrize("kind", DTYPES)
def test_differences_of_small_shapes(kind):
    dtype, limit = DTYPES[kind]
    corners, groups = places(37, 5)
    base, values = draw(5, *IMAGE, CHANNELS, dtype=dtype), draw(37, *SIZE, CHANNELS, dtype=dtype, seed=1)

    def apart(values, base, device):
        return difference(values, base, corners.to(device), groups.to(device), MARGIN, is_fused=True)

    compare(apart, [values, base], draw(37, *SIZE, CHANNELS, dtype=dtype, seed=2), limit)


@pytest.mark.parametrize("channels", [16, 96])
@pytest.mark.parametrize("kind", DTYPES)
def test_pooling_of_small_shapes(kind, channels):
    dtype, limit = DTYPES[kind]
    corners, _ = places(37, 5)

    def pooled(x, device):
        return window_pool(x, corners.to(device), MARGIN, IMAGE)

    compare(pooled, [draw(37, *SIZE, channels, dtype=dtype)], draw(37, 6, 6, channels, dtype=torch.float32), limit)


def parameters(channels, device="cuda"):
    shapes = (channels, 1, 7, 7), (channels,), (channels,), (4 * channels, channels), (channels, 4 * channels)
    scales = 0.2, 1.0, 1.0, channels**-0.5, 0.2
    drawn = (
        scale * draw(*shape, dtype=torch.float32, seed=n)
        for n, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    )
    return [one.to(device) for one in drawn]


@pytest.mark.parametrize("channels", [16, 64, 128])
def test_kept_blocks_of_small_shapes(channels):
    def parts(x, *others):
        return torch.stack(convnext_block_keep(x, *others, is_fused=True)[:3])

    def kept(*given):
        return parts(*given[:-1])

    x = draw(2, 9, 8, channels, dtype=torch.float32)
    compare(kept, [x, *parameters(channels, "cpu")], draw(3, 2, 9, 8, channels, dtype=torch.float32), 1e-5)


@pytest.mark.timeout(600)
def test_more_than_two_to_the_31_elements():
    count, channels = 4352, 128
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("the device has less than 60 GB")
    given = parameters(channels)
    one = draw(1, 65, 65, channels, dtype=torch.bfloat16).cuda()
    x = one.expand(count, -1, -1, -1).contiguous().requires_grad_()
    assert x.numel() > 2**31
    y = convnext_block(x, *given)
    y.backward(torch.ones((), device="cuda", dtype=y.dtype).expand_as(y))
    lone = one.clone().requires_grad_()
    convnext_block(lone, *given).sum().backward()
    for image in (0, count // 2, count - 1):
        assert torch.equal(y[image], y[0])
        torch.testing.assert_close(x.grad[image], lone.grad[0], rtol=1e-2, atol=1e-2)
