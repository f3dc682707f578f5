"""The op through its public function: on the CPU everywhere, on a GPU where there is one."""

import pytest
import torch

from jepa_fast.kernels.dwconv_norm import dwconv_norm, dwconv_norm_reference

# Norm of the error over the norm of the truth, float64 on the same rounded input.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
WHERE = [("cpu", dtype) for dtype in TOLERANCES]
WHERE += [("cuda", dtype) for dtype in TOLERANCES if dtype != torch.float64 and torch.cuda.is_available()]


def draw(shape, channels, dtype=torch.float32, device="cpu"):
    """x [N, H, W, C] in `dtype`; weight, gamma and beta in float32, or all in float64."""
    generator = torch.Generator().manual_seed(sum(shape) + channels)
    kept = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x, weight = normal(*shape, channels).to(dtype), normal(channels, 1, 7, 7).to(kept)
    gamma, beta = (1.5 + normal(channels)).to(kept), normal(channels).to(kept)
    return [tensor.to(device) for tensor in (x, weight, gamma, beta)]


def with_gradients(function, arguments, padding=3, dy=None):
    leaves = [leaf.detach().requires_grad_() for leaf in arguments]
    y = function(*leaves, padding=padding)
    if dy is None:
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    y.backward(dy.to(y))
    return y.detach(), [leaf.grad for leaf in leaves], dy


def norm_error(ours, truth):
    return ((ours.double().cpu() - truth).norm() / truth.norm()).item()


def assert_matches_float64(arguments, padding=3):
    dtype = arguments[0].dtype
    y, gradients, dy = with_gradients(dwconv_norm, arguments, padding)
    wide = [leaf.double().cpu() for leaf in arguments]
    truth, exact, _ = with_gradients(dwconv_norm_reference, wide, padding, dy.to(dtype).double())
    assert y.dtype == dtype
    assert norm_error(y, truth) < TOLERANCES[dtype]
    for argument, gradient, right in zip(arguments, gradients, exact, strict=True):
        assert gradient.dtype == argument.dtype
        assert norm_error(gradient, right) < TOLERANCES[dtype]


@pytest.mark.parametrize(("device", "dtype"), WHERE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 7), (3, 13, 11), (2, 22, 17)], ids=str)
@pytest.mark.parametrize("padding", [3, 6, (6, 3)], ids=str)
def test_output_and_gradients_match_float64(shape, padding, device, dtype):
    assert_matches_float64(draw(shape, 16, dtype, device), padding)


@pytest.mark.parametrize(("device", "dtype"), WHERE, ids=str)
@pytest.mark.parametrize("channels", [32, 64, 96, 128])
def test_every_number_of_channels_matches_float64(channels, device, dtype):
    assert_matches_float64(draw((2, 9, 8), channels, dtype, device))


@pytest.mark.parametrize("device", DEVICES)
def test_strides_do_not_matter(device):
    arguments = draw((3, 8, 9), 16, device=device)
    strided = [arguments[0].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), *arguments[1:]]
    y, gradients, dy = with_gradients(dwconv_norm, arguments)
    again, others, _ = with_gradients(dwconv_norm, strided, dy=dy.transpose(1, 2).contiguous().transpose(1, 2))
    assert norm_error(again, y.double().cpu()) < 1e-6
    for gradient, other in zip(gradients, others, strict=True):
        assert norm_error(other, gradient.double().cpu()) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_no_images_give_no_pixels_and_zero_gradients(device):
    y, gradients, _ = with_gradients(dwconv_norm, draw((0, 9, 9), 16, device=device))
    assert y.shape == (0, 9, 9, 16)
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_decides_the_dtype(device):
    arguments = draw((2, 8, 8), 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = dwconv_norm(*arguments)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, dwconv_norm(arguments[0].to(torch.bfloat16), *arguments[1:]))


def test_float64_gradients_pass_gradcheck():
    leaves = [leaf.requires_grad_() for leaf in draw((1, 3, 2), 16, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *leaves: dwconv_norm(*leaves, padding=(6, 3)), leaves, fast_mode=True, atol=1e-6
    )


@pytest.mark.parametrize("device", DEVICES)
def test_op_passes_opcheck(device):
    leaves = [leaf.requires_grad_() for leaf in draw((2, 5, 6), 16, device=device)]
    torch.library.opcheck(torch.ops.jepa_fast.dwconv_norm, (*leaves, [3, 3], 1e-5))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_equals_eager(device):
    arguments = draw((2, 6, 7), 16, device=device)
    eager = with_gradients(dwconv_norm, arguments, 6)
    ours = with_gradients(torch.compile(dwconv_norm, fullgraph=True), arguments, 6)
    assert torch.equal(eager[0], ours[0])
    assert all(torch.equal(gradient, other) for gradient, other in zip(eager[1], ours[1], strict=True))


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(4, 16), "x: got shape (4, 16), expected four dimensions [N, H, W, C]"),
        (0, torch.zeros(1, 4, 4, 24), "x: got C = 24 channels, expected one of 16, 32, 64, 96, 128"),
        (1, torch.zeros(16, 16, 7, 7), "weight: got shape (16, 16, 7, 7), expected (16, 1, 7, 7)"),
        (2, torch.zeros(8), "gamma: got shape (8,), expected (16,)"),
        (3, torch.zeros(16, 1), "beta: got shape (16, 1), expected (16,)"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_by_name(place, wrong, message):
    arguments = draw((2, 8, 9), 16)
    arguments[place] = wrong
    with pytest.raises(ValueError, match="got") as raised:
        dwconv_norm(*arguments)
    assert str(raised.value) == message


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [16, 96])
def test_small_shapes_on_a_gpu_match_float64(channels, dtype):
    assert_matches_float64(draw((2, 5, 7), channels, dtype, "cuda"), (6, 3))


@pytest.mark.gpu
def test_same_bits_twice_and_every_element_is_written():
    arguments = draw((65, 31, 29), 16, torch.bfloat16, "cuda")
    first = with_gradients(dwconv_norm, arguments)
    # What the allocator hands out next is full of NaN.
    poison = [torch.full_like(arguments[0], torch.nan) for _ in range(8)]
    del poison
    second = with_gradients(dwconv_norm, arguments, dy=first[2])
    assert not torch.isnan(second[0]).any()
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(gradient, other) for gradient, other in zip(first[1], second[1], strict=True))


@pytest.mark.gpu
def test_addresses_beyond_two_to_the_31_elements_are_reached():
    count, side, channels = 4352, 65, 128
    if torch.cuda.mem_get_info()[0] < 45 * 2**30:
        pytest.skip("needs 45 GiB of free memory")
    few = draw((2, side, side), channels, torch.bfloat16, "cuda")
    y, gradients, dy = with_gradients(dwconv_norm, few)
    x = torch.zeros(count, side, side, channels, dtype=torch.bfloat16, device="cuda")
    assert x.numel() > 2**31
    x[-2:] = few[0]
    x.requires_grad_()
    all_y = dwconv_norm(x, *few[1:])
    assert torch.equal(all_y[-2:], y)
    all_dy = torch.zeros_like(all_y)
    all_dy[-2:] = dy.to("cuda", torch.bfloat16)
    all_y.backward(all_dy)
    assert torch.equal(x.grad[-2:], gradients[0])
