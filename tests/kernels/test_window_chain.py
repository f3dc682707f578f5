"""Chains of compiled blocks on windows, against the same in plain PyTorch."""

import pytest
import torch

from jepa_fast.kernels import dispatch
from jepa_fast.kernels.convnext_block import convnext_block_keep
from jepa_fast.kernels.window_chain import (
    Blocks,
    Over,
    grown_sizes,
    paste_windows,
    window_chain,
    window_chain_reference,
)  # fmt: skip
from tests.compiled import needs_library
from tests.forked import finished

# (windows, their size, image, channels, blocks, bases)
SHAPES = {
    "borders and corners": (7, (6, 5), (30, 31), 16, 2, 1),
    "several bases": (9, (5, 5), (20, 23), 16, 2, 4),
    "fills the rows": (4, (20, 4), (20, 33), 8, 3, 3),
    "fills the image": (2, (20, 17), (20, 17), 24, 1, 1),
    "no base": (3, (19, 18), (19, 18), 16, 2, 0),
    "one pixel": (5, (1, 1), (9, 13), 32, 2, 2),
    "larger than the image": (2, (3, 4), (5, 5), 16, 3, 1),
    "fewer pixels than cells": (3, (2, 1), (4, 5), 16, 1, 1),
    "one window": (1, (10, 10), (65, 65), 16, 2, 1),
    "none": (0, (4, 4), (12, 12), 16, 2, 1),
    "64 channels": (3, (4, 6), (22, 21), 64, 2, 2),
    "128 channels": (2, (4, 3), (13, 14), 128, 1, 1),
}


def draw(shape, dtype=torch.float64, seed=0, inputs=1):
    """Arguments of `window_chain`, the windows at the corners of the image and elsewhere."""
    count, size, image, channels, layers, bases = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes, scale=1.0):
        return (scale * torch.randn(sizes, generator=generator, dtype=torch.float64)).to(dtype)

    blocks = Blocks(
        normal(layers, channels, 1, 7, 7, scale=0.2), 1 + normal(layers, channels, scale=0.3),
        normal(layers, channels, scale=0.3), normal(layers, 4 * channels, channels, scale=channels**-0.5),
        normal(layers, channels, 4 * channels, scale=(4 * channels) ** -0.5),
    )  # fmt: skip
    room = [whole - own for whole, own in zip(image, size, strict=True)]
    corners = torch.stack([torch.randint(0, most + 1, (count,), generator=generator) for most in room], dim=1)
    extremes = torch.tensor([[0, 0], room, [0, room[1]], [room[0], 0]])[:count]
    corners[: len(extremes)] = extremes
    groups = torch.randint(0, max(bases, 1), (count,), generator=generator)
    base = [normal(bases, layers, *image, channels) if bases else None for _ in range(2)]
    return normal(count, *size, inputs), normal(channels, inputs), blocks, *base, corners, groups, image


def draw_over(shape, size, dtype=torch.float64):
    """Arguments of `window_chain`, the windows' bases being three windows over one image."""
    *arguments, groups, image = draw(shape, dtype)
    _, _, _, channels, layers, _ = shape
    pixels = sum(height * width for height, width in grown_sizes(size, image, layers)[1:])
    generator = torch.Generator().manual_seed(3)
    kept = [torch.randn(3, pixels, channels, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    room = [whole - own for whole, own in zip(image, size, strict=True)]
    corners = torch.tensor([[0, 0], room, [room[0] // 2, room[1] // 3]])
    over = Over(*kept, corners, torch.zeros(3, dtype=torch.int64), size)
    return *arguments, torch.arange(len(groups)) % 3, image, over


def leaves_of(arguments):
    """The arguments as leaves that want gradients, and those leaves alone."""
    pixels, stem, blocks, base_z, base_update, *rest = arguments
    tensors = [
        None if each is None else each.clone().requires_grad_() for each in (pixels, stem, *blocks, base_z, base_update)
    ]
    fresh = tensors[0], tensors[1], Blocks(*tensors[2:7]), tensors[7], tensors[8], *rest
    return fresh, [each for each in tensors if each is not None]


def results_and_gradients(function, arguments, pooled, keep):
    fresh, leaves = leaves_of(arguments)
    chain = function(*fresh, pooled=pooled, keep=keep)
    outs = [chain.out, chain.z, chain.updates] if keep else [chain.out]
    generator = torch.Generator().manual_seed(1)
    probes = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outs]
    gradients = torch.autograd.grad(outs, leaves, probes, allow_unused=True)
    return [out.detach() for out in outs], gradients


def relative(got, expected, floor=0.0):
    return float((got.double() - expected).norm() / max(float(expected.norm()), floor, 1e-300))


MODES = [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize(("pooled", "keep"), MODES, ids=["pooled", "difference", "keep"])
@pytest.mark.parametrize(("name", "inputs"), [*((name, 1) for name in SHAPES), ("several bases", 3)])
def test_values_and_gradients_are_those_of_plain_pytorch(name, inputs, pooled, keep):
    arguments = draw(SHAPES[name], inputs=inputs)
    expected, truth = results_and_gradients(window_chain_reference, arguments, pooled, keep)
    got, gradients = results_and_gradients(window_chain, arguments, pooled, keep)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < 1e-12
    for ours, theirs in zip(gradients, truth, strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < 1e-12


# Windows that lie inside, beside and across the windows under them; strips that fill an axis; the whole image.
@pytest.mark.parametrize("size", [(7, 8), (26, 3), (5, 27), (1, 1), (26, 27)])
@pytest.mark.parametrize(("pooled", "keep"), MODES, ids=["pooled", "difference", "keep"])
def test_bases_may_be_windows_over_bases(size, pooled, keep):
    *arguments, over = draw_over((9, (4, 5), (26, 27), 16, 2, 1), size)

    def run(function):
        leaves = [each.clone().requires_grad_() for each in (*over[:2], *arguments[3:5])]
        fresh = *arguments[:3], *leaves[2:], *arguments[5:]
        chain = function(*fresh, pooled=pooled, keep=keep, over=over._replace(z=leaves[0], updates=leaves[1]))
        outs = [chain.out, chain.z, chain.updates] if keep else [chain.out]
        generator = torch.Generator().manual_seed(1)
        probes = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
        return [*outs, *torch.autograd.grad(outs, leaves, probes)]

    for ours, theirs in zip(run(window_chain), run(window_chain_reference), strict=True):
        assert relative(ours.detach(), theirs.detach()) < 1e-12


@pytest.mark.parametrize(("pooled", "keep"), MODES, ids=["pooled", "difference", "keep"])
@pytest.mark.parametrize("name", ["borders and corners", "fills the rows", "64 channels"])
def test_float32_is_no_worse_than_twice_plain_pytorch(name, pooled, keep):
    exact = draw(SHAPES[name])
    single = [part.float() if isinstance(part, torch.Tensor) and part.is_floating_point() else part for part in exact]
    single[2] = Blocks(*(part.float() for part in exact[2]))
    # The truth is of the rounded arguments.
    rounded = [
        part.double() if isinstance(part, torch.Tensor) and part.is_floating_point() else part for part in single
    ]
    rounded[2] = Blocks(*(part.double() for part in single[2]))
    expected, truth = results_and_gradients(window_chain_reference, rounded, pooled, keep)
    plain, plain_gradients = results_and_gradients(window_chain_reference, single, pooled, keep)
    got, gradients = results_and_gradients(window_chain, single, pooled, keep)
    for ours, plains, exacts in zip([*got, *gradients], [*plain, *plain_gradients], [*expected, *truth], strict=True):
        assert relative(ours, exacts) <= 2 * relative(plains, exacts) + 1e-7


@needs_library
@pytest.mark.parametrize(("pooled", "keep"), MODES, ids=["pooled", "difference", "keep"])
def test_number_of_threads_does_not_change_a_bit(pooled, keep):
    arguments = draw((70, (6, 6), (33, 34), 16, 2, 3), torch.float32)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            runs.append(results_and_gradients(window_chain, arguments, pooled, keep))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for ours, first in zip([*run[0], *run[1]], [*runs[0][0], *runs[0][1]], strict=True):
            assert torch.equal(ours, first)


def test_strides_of_the_arguments_do_not_matter():
    pixels, stem, blocks, base_z, base_update, corners, groups, image = draw(SHAPES["several bases"])
    expected = window_chain(pixels, stem, blocks, base_z, base_update, corners, groups, image, pooled=True)
    strided = Blocks(*(torch.stack([part, part], dim=-1)[..., 0] for part in blocks))
    got = window_chain(
        pixels.transpose(1, 2).contiguous().transpose(1, 2), torch.stack([stem, stem], dim=2)[..., 0], strided,
        base_z.transpose(2, 3).contiguous().transpose(2, 3), base_update.flip(0).flip(0), corners.t().contiguous().t(),
        groups.repeat_interleave(2)[::2], image, pooled=True,
    )  # fmt: skip
    assert torch.equal(got.out, expected.out)


def test_bases_kept_of_whole_images_are_those_that_windows_need():
    """An image that equals another one outside a window, encoded whole and as a difference."""
    pixels, stem, blocks, *_ = draw((1, (21, 24), (21, 24), 16, 2, 0))
    changed = pixels.clone()
    changed[:, 4:9, 12:19] += torch.randn(1, 5, 7, 1, dtype=torch.float64)

    def whole(images):
        x, kept = images @ stem.t(), []
        for parameters in zip(*blocks, strict=True):
            x, z, update = convnext_block_keep(x, *parameters)
            kept.append((z, update))
        return x, *(torch.stack(each, dim=1) for each in zip(*kept, strict=True))

    base, base_z, base_update = whole(pixels)
    expected, *stacked = whole(changed)
    corners, groups = torch.tensor([[4, 12]]), torch.tensor([0])
    difference = (changed - pixels)[:, 4:9, 12:19]
    chain = window_chain(
        difference, stem, blocks, base_z, base_update, corners, groups, (21, 24), pooled=False, keep=True
    )
    # Grown by two blocks the window hangs over: rows -2 to 14, columns 6 to 24.
    torch.testing.assert_close(base[:, 0:15, 6:24] + chain.out[:, 2:, :18], expected[:, 0:15, 6:24])
    for kept, bases, truth in zip((chain.z, chain.updates), (base_z, base_update), stacked, strict=True):
        torch.testing.assert_close(paste_windows(kept, bases, corners, groups, (5, 7)), truth)


def test_pasted_windows_pass_their_gradients_on():
    _, _, _, base_z, _, corners, groups, _ = draw(SHAPES["several bases"])
    windows = torch.randn(9, 11 * 11 + 17 * 17, 16, dtype=torch.float64, requires_grad=True)
    bases = base_z.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *leaves: paste_windows(*leaves, corners, groups, (5, 5)), [windows, bases], fast_mode=True
    )


@pytest.mark.parametrize(("pooled", "keep"), MODES, ids=["pooled", "difference", "keep"])
def test_gradients_are_those_of_finite_differences(pooled, keep):
    fresh, leaves = leaves_of(draw((2, (3, 2), (8, 9), 8, 2, 1)))

    def outputs(*tensors):
        arguments = tensors[0], tensors[1], Blocks(*tensors[2:7]), tensors[7], tensors[8], *fresh[5:]
        chain = window_chain(*arguments, pooled=pooled, keep=keep)
        return (chain.out, chain.z, chain.updates) if keep else chain.out

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@needs_library
@pytest.mark.parametrize(("pooled", "keep"), MODES, ids=["pooled", "difference", "keep"])
def test_operators_are_registered_soundly(pooled, keep):
    pixels, stem, blocks, *rest, image = draw((3, (4, 5), (14, 13), 16, 2, 2))
    none = (None, None, None, None, 0, 0)
    arguments = (pixels, stem, *blocks, *rest[:2], *none, *rest[2:], *image, 1e-5, pooled, keep)
    differentiable = tuple(
        each.requires_grad_() if isinstance(each, torch.Tensor) and each.is_floating_point() else each
        for each in arguments
    )
    torch.library.opcheck(torch.ops.jepa_fast.window_chain.default, differentiable)
    corners, groups = rest[2:]
    windows = torch.randn(3, 10 * 11 + 16 * 17, 16, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.jepa_fast.paste_windows.default, (windows, rest[0], corners, groups, 4, 5))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_graph_equals_eager():
    arguments = draw(SHAPES["borders and corners"], torch.float32)

    def loss(*tensors):
        return window_chain(*tensors, pooled=True).out.square().sum()

    fresh, leaves = leaves_of(arguments)
    expected = torch.autograd.grad(loss(*fresh), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(torch.autograd.grad(compiled(*fresh), leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_channels_that_no_kernel_takes_run_in_plain_pytorch():
    arguments = draw((2, (3, 3), (11, 10), 12, 2, 1))
    assert dispatch.why_no_compiled_blocks(12, arguments[0]).startswith("12 channels, the compiled blocks take")
    expected, _ = results_and_gradients(window_chain_reference, arguments, True, False)
    got, _ = results_and_gradients(window_chain, arguments, True, False)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (1, torch.zeros(8, 1), "stem: got shape (8, 1), expected (16, 1)"),
        (3, torch.zeros(1, 2, 30, 30, 16), "base_z: got shape (1, 2, 30, 30, 16), expected (1, 2, 30, 31, 16)"),
        (5, torch.zeros(7, 3), "corners: got shape (7, 3), expected (7, 2)"),
        (6, torch.zeros(6), "groups: got shape (6,), expected (7,)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(place, wrong, message):
    arguments = list(draw(SHAPES["borders and corners"]))
    arguments[place] = wrong
    with pytest.raises(ValueError, match="got") as raised:
        window_chain(*arguments, pooled=True)
    assert str(raised.value) == message


@needs_library
def test_windows_outside_the_image_or_without_a_base_are_refused():
    arguments = list(draw(SHAPES["borders and corners"]))
    with pytest.raises(ValueError, match="keep: got True with pooled"):
        window_chain(*arguments, pooled=True, keep=True)
    outside = arguments[5].clone()
    outside[3] = torch.tensor([25, 0])
    with pytest.raises(RuntimeError, match=r"corners: got a window at \(25, 0\), which is not inside the image"):
        window_chain(*arguments[:5], outside, *arguments[6:], pooled=True)
    with pytest.raises(RuntimeError, match="groups: got 1, expected one of 1 bases"):
        window_chain(*arguments[:6], torch.ones(7, dtype=torch.int64), arguments[7], pooled=True)


PROGRAM = """
import torch
from tests.kernels.test_window_chain import SHAPES, MODES, draw, relative, results_and_gradients
from jepa_fast.kernels.window_chain import window_chain, window_chain_reference
used = torch.ops.jepa_fast.cpu_instruction_set()
print(used)
worst = {torch.float64: 0.0, torch.float32: 0.0}
for name in SHAPES if used else ():
    for mode in MODES:
        truth = results_and_gradients(window_chain_reference, draw(SHAPES[name], torch.float64), *mode)
        for dtype in worst:
            ours = results_and_gradients(window_chain, draw(SHAPES[name], dtype), *mode)
            for got, expected in zip([*ours[0], *ours[1]], [*truth[0], *truth[1]], strict=True):
                worst[dtype] = max(worst[dtype], relative(got, expected))
print(*worst.values())
"""


@needs_library
@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline", "neon"])
def test_every_instruction_set_that_the_processor_has_is_exact(name):
    done = finished("-c", PROGRAM, check=True, JEPA_FAST_CPU_ISA=name)
    used, errors = done.stdout.splitlines()
    if used == "":
        pytest.skip(f"no {name} here")
    assert used == name
    exact, single = map(float, errors.split())
    assert exact < 1e-12
    assert single < 1e-5
