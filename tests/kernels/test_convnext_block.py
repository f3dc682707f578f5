"""The op through its public function: on the CPU everywhere, on a GPU where there is one."""

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels.convnext_block import convnext_block, convnext_block_reference

# Norm of the error over the norm of the truth, float64 on the same rounded input. The CPU's op rounds what it saves and
# what it gives, and nothing else.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
NAMES = ("x", "weight", "gamma", "beta", "expand", "project", "addend")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
WHERE = [("cpu", dtype) for dtype in TOLERANCES]
WHERE += [("cuda", dtype) for dtype in TOLERANCES if dtype != torch.float64 and torch.cuda.is_available()]
SIZES = [(1, 1, 1), (2, 7, 7), (3, 13, 11), (2, 22, 17)]


def draw(shape, channels, padding=(3, 3), dtype=torch.float32, device="cpu", has_addend=True):
    """Arguments by name: x [N, H, W, C] and the addend in `dtype`, parameters in float32, or all in float64."""
    generator = torch.Generator().manual_seed(sum(shape) + channels)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    kept = torch.float64 if dtype == torch.float64 else torch.float32
    count, height, width = shape
    addend = 0.5 * normal(count, height + 2 * padding[0] - 6, width + 2 * padding[1] - 6, channels)
    tensors = {
        "x": normal(*shape, channels).to(dtype),
        "weight": (0.2 * normal(channels, 1, 7, 7)).to(kept),
        "gamma": (1.5 + normal(channels)).to(kept),
        "beta": normal(channels).to(kept),
        "expand": (channels**-0.5 * normal(4 * channels, channels)).to(kept),
        "project": (0.2 * normal(channels, 4 * channels)).to(kept),
        "addend": addend.to(dtype) if has_addend else None,
    }
    return {name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()}


def with_gradients(function, arguments, padding, dy=None):
    leaves = {name: None if leaf is None else leaf.detach().requires_grad_() for name, leaf in arguments.items()}
    y = function(**leaves, padding=padding)
    if dy is None:
        generator = torch.Generator().manual_seed(7)
        dy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    y.backward(dy.to(y))
    return y.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}, dy


def norm_error(ours, truth):
    return ((ours.double().cpu() - truth).norm() / truth.norm()).item()


def assert_matches_float64(arguments, padding=(3, 3)):
    dtype = arguments["x"].dtype
    y, gradients, dy = with_gradients(convnext_block, arguments, padding)
    # What a product of 16-bit factors rounds: the matrices in the dtype of x, and the output's gradient.
    wide = {name: None if leaf is None else leaf.double().cpu() for name, leaf in arguments.items()}
    truth, exact, _ = with_gradients(convnext_block_reference, wide, padding, dy.to(dtype).double())
    assert y.dtype == dtype
    assert norm_error(y, truth) < TOLERANCES[dtype]
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[name].dtype, name
        assert norm_error(gradient, exact[name]) < TOLERANCES[dtype], name


@pytest.mark.parametrize(("device", "dtype"), WHERE, ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("padding", [(3, 3), (6, 6), (3, 6)], ids=str)
def test_output_and_gradients_match_float64(shape, padding, device, dtype):
    assert_matches_float64(draw(shape, 16, padding, dtype, device), padding)


@pytest.mark.parametrize(("device", "dtype"), WHERE, ids=str)
@pytest.mark.parametrize("channels", [32, 64, 96, 128])
def test_wide_blocks_match_float64(channels, device, dtype):
    assert_matches_float64(draw((2, 9, 8), channels, (3, 3), dtype, device, has_addend=channels == 64))


@pytest.mark.parametrize("device", DEVICES)
def test_a_block_of_the_plain_model_is_the_same(device):
    arguments = draw((2, 9, 10), 16, device=device, has_addend=False)
    x = arguments["x"].permute(0, 3, 1, 2)
    z = F.conv2d(x, arguments["weight"], padding=3, groups=16).permute(0, 2, 3, 1)
    u = F.layer_norm(z, (16,), arguments["gamma"], arguments["beta"])
    plain = arguments["x"] + F.linear(F.gelu(F.linear(u, arguments["expand"])), arguments["project"])
    torch.testing.assert_close(convnext_block(**arguments), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_strides_do_not_matter(device):
    arguments = draw((3, 8, 9), 16, device=device)
    strided = dict(arguments)
    strided["x"] = arguments["x"].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    strided["addend"] = arguments["addend"].repeat_interleave(2, dim=3)[..., ::2]
    strided["expand"] = arguments["expand"].t().contiguous().t()
    y, gradients, dy = with_gradients(convnext_block, arguments, (3, 3))
    moved = torch.empty_strided(dy.shape, dy.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0).stride())
    again, others, _ = with_gradients(convnext_block, strided, (3, 3), moved.copy_(dy))
    assert norm_error(again, y.double().cpu()) < 1e-6
    assert all(norm_error(others[name], gradients[name].double().cpu()) < 1e-6 for name in gradients)


@pytest.mark.parametrize("device", DEVICES)
def test_no_images_give_no_pixels_and_zero_gradients(device):
    arguments = draw((0, 9, 9), 16, device=device, has_addend=False)
    y, gradients, _ = with_gradients(convnext_block, arguments, (3, 3))
    assert y.shape == (0, 9, 9, 16)
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients.values())


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_decides_the_dtype(device):
    arguments = draw((2, 8, 8), 16, device=device, has_addend=False)
    with torch.autocast(device, torch.bfloat16):
        y = convnext_block(**arguments)
    assert y.dtype == torch.bfloat16
    rounded = {**arguments, "x": arguments["x"].to(torch.bfloat16)}
    assert torch.equal(y, convnext_block(**rounded))


def test_float64_gradients_pass_gradcheck():
    arguments = draw((1, 3, 2), 16, (6, 3), torch.float64)
    leaves = [arguments[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(
        lambda *leaves: convnext_block(*leaves, padding=(6, 3)), leaves, fast_mode=True, atol=1e-6
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("has_addend", [False, True])
def test_op_passes_opcheck(has_addend, keep, device):
    arguments = draw((2, 5, 6), 16, device=device, has_addend=has_addend)
    leaves = [None if leaf is None else leaf.requires_grad_() for leaf in arguments.values()]
    torch.library.opcheck(torch.ops.jepa_fast.convnext_block, (*leaves, [3, 3], 1e-5, keep))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_equals_eager(device):
    arguments = draw((2, 6, 7), 16, (6, 6), device=device)
    compiled = torch.compile(convnext_block, fullgraph=True)
    eager = with_gradients(convnext_block, arguments, (6, 6))
    ours = with_gradients(compiled, arguments, (6, 6))
    assert torch.equal(eager[0], ours[0])
    assert all(torch.equal(eager[1][name], ours[1][name]) for name in eager[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "x: got shape (2, 3, 4)"),
        (
            {"x": torch.zeros(1, 4, 4, 20)},
            "x: got C = 20 channels, expected one of 16, 32, 64, 96, 128 or a multiple of 8 up to 128",
        ),
        ({"x": torch.zeros(1, 4, 4, 16, dtype=torch.int32)}, "x: got torch.int32 on cpu"),
        ({"weight": torch.zeros(16, 1, 5, 5)}, "weight: got shape (16, 1, 5, 5), expected (16, 1, 7, 7)"),
        ({"gamma": torch.zeros(8)}, "gamma: got shape (8,), expected (16,)"),
        ({"expand": torch.zeros(16, 64)}, "expand: got shape (16, 64), expected (64, 16)"),
        ({"addend": torch.zeros(2, 9, 9, 16)}, "addend: got shape (2, 9, 9, 16), expected (2, 8, 9, 16)"),
        ({"padding": 7}, "padding: got (7, 7)"),
        ({"padding": (0, 1), "x": torch.zeros(1, 6, 9, 16)}, "padding: got (0, 1)"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_by_name(change, message):
    arguments = draw((2, 8, 9), 16)
    with pytest.raises(ValueError, match="got") as raised:
        convnext_block(**{**arguments, **change})
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [16, 32, 96])
def test_small_shapes_on_a_gpu_match_float64(channels, dtype):
    assert_matches_float64(draw((2, 5, 7), channels, (6, 3), dtype, "cuda"), (6, 3))


@pytest.mark.gpu
def test_same_bits_twice_and_every_element_is_written():
    arguments = draw((65, 31, 29), 16, dtype=torch.bfloat16, device="cuda")
    first = with_gradients(convnext_block, arguments, (3, 3))
    # What the allocator hands out next is full of NaN.
    poison = [torch.full_like(arguments["x"], torch.nan) for _ in range(8)]
    del poison
    second = with_gradients(convnext_block, arguments, (3, 3), first[2])
    assert not torch.isnan(second[0]).any()
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.gpu
def test_block_can_be_captured_in_a_graph():
    arguments = draw((4, 22, 22), 16, dtype=torch.bfloat16, device="cuda")
    eager = with_gradients(convnext_block, arguments, (3, 3))
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in arguments.items()}
    dy = eager[2].to("cuda", torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.autograd.grad(convnext_block(**leaves), list(leaves.values()), dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = torch.autograd.grad(convnext_block(**leaves), list(leaves.values()), dy)
    graph.replay()
    for name, gradient in zip(leaves, gradients, strict=True):
        assert torch.equal(gradient, eager[1][name])


@pytest.mark.gpu
def test_addresses_beyond_two_to_the_31_elements_are_reached():
    count, side, channels = 4352, 65, 128
    if torch.cuda.mem_get_info()[0] < 45 * 2**30:
        pytest.skip("needs 45 GiB of free memory")
    assert count * side * side * channels > 2**31
    few = draw((2, side, side), channels, dtype=torch.bfloat16, device="cuda", has_addend=False)
    many = {**few, "x": torch.zeros(count, side, side, channels, dtype=torch.bfloat16, device="cuda")}
    many["x"][-2:] = few["x"]
    y, gradients, dy = with_gradients(convnext_block, few, (3, 3))
    x = many["x"].requires_grad_()
    all_y = convnext_block(**many)
    assert torch.equal(all_y[-2:], y)
    all_dy = torch.zeros_like(all_y)
    all_dy[-2:] = dy.to("cuda", torch.bfloat16)
    all_y.backward(all_dy)
    assert torch.equal(x.grad[-2:], gradients["x"])
