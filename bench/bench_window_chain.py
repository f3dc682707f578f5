"""Windows through the encoder's blocks, forward and backward: compiled chain, the pieces of any device, torch.compile.

The batch of the default recipe with 16 channels; half and a quarter of the windows with 32 and 64.
"""

import pytest
import torch
from torch import Tensor

from jepa_fast.kernels.hidden import hidden_pool, norm_mlp
from jepa_fast.kernels.window import crop, depthwise, difference, pool
from jepa_fast.kernels.window_chain import Blocks, grown_sizes, window_chain, window_chain_reference
from jepa_fast.models.window_grid import WindowGrid
from jepa_fast.models.window_heads import window_pooling

WINDOWS, SIDE, IMAGE, LAYERS = 544, 10, 65, 2
EPS = 1e-5
Arguments = tuple[Tensor, Tensor, Blocks, Tensor, Tensor, Tensor, Tensor, tuple[int, int]]


def draw(channels: int) -> Arguments:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).requires_grad_()

    count = WINDOWS * 16 // channels
    blocks = Blocks(
        normal(LAYERS, channels, 1, 7, 7, scale=0.1), (1 + normal(LAYERS, channels)).detach().requires_grad_(),
        normal(LAYERS, channels), normal(LAYERS, 4 * channels, channels, scale=channels**-0.5),
        normal(LAYERS, channels, 4 * channels, scale=(4 * channels) ** -0.5),
    )  # fmt: skip
    bases = normal(1, LAYERS, IMAGE, IMAGE, channels), normal(1, LAYERS, IMAGE, IMAGE, channels)
    corners = torch.randint(0, IMAGE - SIDE + 1, (count, 2), generator=generator)
    groups = torch.zeros(count, dtype=torch.int64)
    pixels = normal(count, SIDE, SIDE, 1).detach()
    return pixels, normal(channels, 1), blocks, *bases, corners, groups, (IMAGE, IMAGE)


def compiled_chain(*arguments: object) -> Tensor:
    return window_chain(*arguments, EPS, pooled=True).out  # type: ignore[arg-type]


def pieces(
    pixels: Tensor, stem: Tensor, blocks: Blocks, base_z: Tensor, base_update: Tensor, corners: Tensor, groups: Tensor,
    image: tuple[int, int],
) -> Tensor:  # fmt: skip
    """The same by the ops that any device has."""
    place = WindowGrid(corners, groups, (SIDE, SIDE), image)
    delta = pixels @ stem.t()
    for layer, (weight, gamma, beta, expand, project) in enumerate(zip(*blocks, strict=True)):
        after, margin = layer + 1, place.margin(layer + 1)
        under = crop(base_z[:, layer], corners, groups, margin, place.grown(after))
        z = depthwise(delta, weight, (6, 6), under)
        if after == LAYERS:
            rows, columns = window_pooling(place, after, delta)
            hidden = hidden_pool(z, gamma, beta, expand, rows, columns, EPS)
            cut = crop(-base_update[:, layer], corners, groups, margin, place.grown(after))
            rest = pool(delta, *window_pooling(place, layer, delta)) + pool(cut, rows, columns)
            return rest + hidden @ project.t()
        update = norm_mlp(z, gamma, beta, expand, project, EPS)
        grown = torch.nn.functional.pad(delta, (0, 0, 3, 3, 3, 3)) + update
        delta = difference(grown, base_update[:, layer], corners, groups, margin)
    raise AssertionError("a chain has blocks")


def count_flops(arguments: Arguments) -> float:
    """Of a forward and a backward pass: every pixel that is not zero meets 49 taps, every product is done once.

    Forward both products of the MLP, backward three of W1's and two of W2's; W2 of the last block meets pooled cells.
    """
    count, channels = len(arguments[0]), len(arguments[1])
    (height, width), *grown = grown_sizes((SIDE, SIDE), (IMAGE, IMAGE), LAYERS)
    total, before = 0, height * width
    for layer, (down, across) in enumerate(grown):
        products = 4 if layer == LAYERS - 1 else 7
        total += 3 * 98 * channels * before + products * 8 * channels * channels * down * across
        before = down * across
    return float(count * total)


CANDIDATES = {"jepa_fast": compiled_chain, "pieces": pieces, "pieces, compiled": torch.compile(pieces, dynamic=False)}


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("channels", [16, 32, 64])
# The compiler warns of its own deprecated calls.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def bench_window_chain(benchmark, report_flops, candidate: str, channels: int) -> None:
    benchmark.group = f"window_chain [{WINDOWS * 16 // channels}, {SIDE}, {SIDE}], C {channels}"
    arguments = draw(channels)
    _, stem, blocks, base_z, base_update, *_ = arguments
    leaves = [stem, *blocks, base_z, base_update]
    function = CANDIDATES[candidate]
    truth = window_chain_reference(*arguments, EPS, pooled=True).out
    torch.testing.assert_close(function(*arguments), truth, rtol=1e-3, atol=1e-4)
    probe = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        torch.autograd.grad(function(*arguments), leaves, probe)

    benchmark.pedantic(step, rounds=10 if candidate == "jepa_fast" else 2, warmup_rounds=1)
    if candidate == "jepa_fast":
        report_flops(count_flops(arguments))
