"""Windows of images through a chain of ConvNeXt blocks, each as the difference to a base image that is known.

    d_0 = stem pixels                             pixels: what a window holds more than its base
    z_l = dwconv(d_{l-1}) + crop(Z_l)             Z_l: the base's convolved activations
    u_l = W2 gelu(W1 LN(z_l))
    d_l = [pad(d_{l-1}) + u_l - crop(G_l)] inside the image, else 0      G_l: the base's update

A window [h, w] grows by three pixels to each side with every block, not along an axis that it fills. pixels
[N, h, w, c]; stem [C, c]; parameters of L blocks stacked: weight [L, C, 1, 7, 7], gamma and beta [L, C], expand
W1 [L, 4C, C], project W2 [L, C, 4C]; base_z and base_update [G, L, H, W, C], or none, for zero; corners int64 [N, 2]
(row, column) of windows inside the image; groups int64 [N]. float32 or float64. With `over` the windows' bases are M
windows over those bases, and groups are among these.

The result is d_L [N, h_L, w_L, C], or with `pooled` its share of 6 x 6 average pooled cells [N, 6, 6, C]; W2 of the
last block is then applied to cells, not to pixels. With `keep` z and updates of all blocks are results too, windows of
one block after those of the other: [N, P, C], P the sum of h_l w_l. Gradients of all but corners and groups; no second
derivative.

On a CPU with the compiled extension, C a multiple of 8 up to 128, a window goes through all blocks in the processor's
cache (csrc/cpu/convnext/windows.h). Saved for the backward pass: z, the differences between blocks, and with `pooled`
the mean hidden activations of the cells; all hidden activations are computed again. Deterministic: gradients of
parameters and bases are summed in fixed chunks of windows, beyond a window in float64. Elsewhere plain PyTorch, all of
it kept.

`paste_windows` makes bases of what `keep` keeps: the windows' z or updates, and around them those of their own bases.

Bytes moved, in sizes A of a window's activations [P, C]: forward 3 A (Z, G; z), backward 5 A and what the gradients of
bases take. FLOPs per element: forward 98 + 16 C, backward 196 + 40 C; of a last block with `pooled` 8 C and 16 C less.
Source: docs/sparse-encoding.md.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels import extension
from jepa_fast.kernels.dispatch import why_no_compiled_blocks

OPERATOR = "jepa_fast::window_chain"
REACH = 3  # pixels a 7x7 convolution looks to each side
POOLED_SIDE = 6


class Chain(NamedTuple):
    """What a chain gives."""

    out: Tensor  # d_L [N, h_L, w_L, C], or [N, 6, 6, C]
    z: Tensor  # [N, P, C]
    updates: Tensor  # [N, P, C]; without `keep` none: [0, P, C]


class Over(NamedTuple):
    """Bases that are windows over the bases themselves, as `window_chain` keeps them."""

    z: Tensor  # [M, P, C]
    updates: Tensor  # [M, P, C]
    corners: Tensor  # int64 [M, 2]
    groups: Tensor  # int64 [M]
    size: tuple[int, int]


class Blocks(NamedTuple):
    """Parameters of L blocks, stacked."""

    weight: Tensor  # [L, C, 1, 7, 7]
    gamma: Tensor  # [L, C]
    beta: Tensor  # [L, C]
    expand: Tensor  # [L, 4C, C]
    project: Tensor  # [L, C, 4C]


def grown_sizes(size: tuple[int, int], image: tuple[int, int], blocks: int) -> list[tuple[int, int]]:
    """Sizes of windows after blocks 0 to `blocks`."""
    growth = [0 if own == whole else 2 * REACH for own, whole in zip(size, image, strict=True)]
    return [(size[0] + block * growth[0], size[1] + block * growth[1]) for block in range(blocks + 1)]


def window_chain_reference(
    pixels: Tensor,
    stem: Tensor,
    blocks: Blocks,
    base_z: Tensor | None,
    base_update: Tensor | None,
    corners: Tensor,
    groups: Tensor,
    image: tuple[int, int],
    eps: float = 1e-5,
    pooled: bool = False,
    keep: bool = False,
    over: Over | None = None,
) -> Chain:
    """The same in plain PyTorch and in the precision of its arguments: the truth of the tests."""
    if over is not None:
        assert base_z is not None
        assert base_update is not None
        place = over.corners, over.groups, over.size
        base_z, base_update = _pasted(over.z, base_z, *place), _pasted(over.updates, base_update, *place)
    size = (pixels.shape[1], pixels.shape[2])
    delta = pixels @ stem.t()
    all_z, updates = [], []
    sizes = grown_sizes(size, image, len(blocks.weight))
    for block, (weight, gamma, beta, expand, project) in enumerate(zip(*blocks, strict=True)):
        height, width = sizes[block + 1]
        down, across = (height - sizes[block][0]) // 2, (width - sizes[block][1]) // 2
        margin = (height - size[0]) // 2, (width - size[1]) // 2
        rows, columns = (
            corners[:, axis, None] - margin[axis] + torch.arange(length, device=corners.device)
            for axis, length in enumerate((height, width))
        )
        on_rows, on_columns = ((at >= 0) & (at < side) for at, side in zip((rows, columns), image, strict=True))
        inside = (on_rows[:, :, None] & on_columns[:, None, :])[..., None]
        rows, columns = (at.clamp(0, side - 1) for at, side in zip((rows, columns), image, strict=True))
        where = (groups[:, None, None], rows[:, :, None], columns[:, None, :])
        padding = (down + REACH, across + REACH)
        z = F.conv2d(delta.permute(0, 3, 1, 2), weight, padding=padding, groups=len(weight)).permute(0, 2, 3, 1)
        if base_z is not None:
            z = z + base_z[:, block][where]
        update = F.gelu(F.layer_norm(z, z.shape[3:], gamma, beta, eps) @ expand.t()) @ project.t()
        delta = F.pad(delta, (0, 0, across, across, down, down)) + update
        if base_update is not None:
            delta = delta - base_update[:, block][where]
        delta = torch.where(inside, delta, 0.0)
        all_z.append(torch.where(inside, z, 0.0).flatten(1, 2))
        updates.append(torch.where(inside, update, 0.0).flatten(1, 2))
    out = _pooled_cells(delta, rows, columns, on_rows, on_columns, image) if pooled else delta
    kept = torch.cat(updates, dim=1)
    return Chain(out, torch.cat(all_z, dim=1), kept if keep else kept[:0])


def _pooled_cells(
    delta: Tensor, rows: Tensor, columns: Tensor, on_rows: Tensor, on_columns: Tensor, image: tuple[int, int]
) -> Tensor:
    """P_y d P_x^T [N, 6, 6, C], P the matrices of adaptive average pooling at the windows' rows and columns."""
    matrices = []
    for at, on, size in zip((rows, columns), (on_rows, on_columns), image, strict=True):
        cells = torch.arange(POOLED_SIDE, device=delta.device)[:, None]
        first, end = cells * size // POOLED_SIDE, -(-(cells + 1) * size // POOLED_SIDE)
        pixels = torch.arange(size, device=delta.device)
        matrix = ((pixels >= first) & (pixels < end)).to(delta.dtype) / (end - first).to(delta.dtype)
        matrices.append(matrix.t()[at] * on[..., None])  # [N, h, 6]
    return torch.einsum("nyi,nyxc,nxj->nijc", matrices[0], delta, matrices[1])


def window_chain(
    pixels: Tensor,
    stem: Tensor,
    blocks: Blocks,
    base_z: Tensor | None,
    base_update: Tensor | None,
    corners: Tensor,
    groups: Tensor,
    image: tuple[int, int],
    eps: float = 1e-5,
    *,
    pooled: bool = False,
    keep: bool = False,
    over: Over | None = None,
) -> Chain:
    """The windows' last difference or its share of the pooled cells, and with `keep` all z and updates.

    Computed in the dtype of `pixels`, whatever autocast says. Without `keep` no gradient flows through z.

    Raises:
        ValueError: shapes that do not fit together; `keep` of what is pooled.
    """
    _check(pixels, stem, blocks, base_z, base_update, corners, groups, image)
    if pooled and keep:
        raise ValueError("keep: got True with pooled, expected one of them: updates of what is pooled are never made")
    channels = blocks.weight.shape[1]
    if why_no_compiled_blocks(channels, pixels) is not None:
        with torch.autocast(pixels.device.type, enabled=False):
            return window_chain_reference(
                pixels, stem, blocks, base_z, base_update, corners, groups, image, eps, pooled, keep, over
            )
    under = (None, None, None, None, 0, 0) if over is None else (*over[:4], *over.size)
    out, z, _, updates, _ = torch.ops.jepa_fast.window_chain(
        pixels, stem, *blocks, base_z, base_update, *under, corners, groups, *image, eps, pooled, keep
    )
    return Chain(out, z, updates)


def paste_windows(windows: Tensor, bases: Tensor, corners: Tensor, groups: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, L, H, W, C]: each window's base [G, L, H, W, C], and over it the window's values [N, P, C] after every block.

    Args:
        windows: z or updates, as `window_chain` keeps them.
        bases: what those windows were compared with.
        corners: [N, 2], as there.
        groups: [N], as there.
        size: the windows' height and width before the first block.
    """
    if why_no_compiled_blocks(bases.shape[4], bases) is None:
        out: Tensor = torch.ops.jepa_fast.paste_windows(windows, bases, corners, groups, *size)
        return out
    return _pasted(windows, bases, corners, groups, size)


def _pasted(windows: Tensor, bases: Tensor, corners: Tensor, groups: Tensor, size: tuple[int, int]) -> Tensor:
    """`paste_windows` in plain PyTorch."""
    image = (bases.shape[2], bases.shape[3])
    pasted, first = [], 0
    for block, grown in enumerate(grown_sizes(size, image, bases.shape[1])[1:]):
        area = grown[0] * grown[1]
        inside, source = [], []
        for axis in (0, 1):
            margin = (grown[axis] - size[axis]) // 2
            offsets = torch.arange(image[axis], device=bases.device) - (corners[:, axis, None] - margin)
            inside.append((offsets >= 0) & (offsets < grown[axis]))
            source.append(offsets.clamp(0, grown[axis] - 1))
        window = torch.arange(len(corners), device=bases.device)[:, None, None]
        shaped = windows[:, first : first + area].reshape(len(corners), *grown, -1)
        moved = shaped[window, source[0][:, :, None], source[1][:, None]]
        shown = (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
        pasted.append(torch.where(shown, moved, bases[:, block].index_select(0, groups)))
        first += area
    return torch.stack(pasted, dim=1)


def _check(
    pixels: Tensor,
    stem: Tensor,
    blocks: Blocks,
    base_z: Tensor | None,
    base_update: Tensor | None,
    corners: Tensor,
    groups: Tensor,
    image: tuple[int, int],
) -> None:
    """Raise ValueError unless the shapes fit together."""
    if pixels.dim() != 4 or blocks.weight.dim() != 5:
        got = tuple(pixels.shape), tuple(blocks.weight.shape)
        raise ValueError(f"pixels, weight: got shapes {got[0]} and {got[1]}, expected [N, h, w, c] and [L, C, 1, 7, 7]")
    count, (layers, channels) = pixels.shape[0], blocks.weight.shape[:2]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "stem": (stem, (channels, pixels.shape[3])),
        "weight": (blocks.weight, (layers, channels, 1, 7, 7)),
        "gamma": (blocks.gamma, (layers, channels)),
        "beta": (blocks.beta, (layers, channels)),
        "expand": (blocks.expand, (layers, 4 * channels, channels)),
        "project": (blocks.project, (layers, channels, 4 * channels)),
        "corners": (corners, (count, 2)),
        "groups": (groups, (count,)),
    }
    if base_z is not None:
        of_bases = (base_z.shape[0], layers, *image, channels)
        expected |= {"base_z": (base_z, of_bases), "base_update": (base_update, of_bases)}
    for name, (tensor, shape) in expected.items():
        found = None if tensor is None else tuple(tensor.shape)
        if found != shape:
            raise ValueError(f"{name}: got shape {found}, expected {shape}")


def _window_chain_fake(
    pixels: Tensor, stem: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor,
    base_z: Tensor | None, base_update: Tensor | None, over_z: Tensor | None, over_update: Tensor | None,
    over_corners: Tensor | None, over_groups: Tensor | None, over_height: int, over_width: int, corners: Tensor,
    groups: Tensor, image_height: int, image_width: int, eps: float, pooled: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    count, blocks, channels = pixels.shape[0], weight.shape[0], weight.shape[1]
    image = (image_height, image_width)
    sizes = grown_sizes((pixels.shape[1], pixels.shape[2]), image, blocks)
    areas = [height * width for height, width in sizes[1:]]
    out = (POOLED_SIDE, POOLED_SIDE) if pooled else sizes[-1]
    cells = [_most_cells(side, own) for side, own in zip(image, sizes[-1], strict=True)]
    return (
        pixels.new_empty(count, *out, channels),
        pixels.new_empty(count, sum(areas), channels),
        pixels.new_empty(count, sum(areas[:-1]), channels),
        pixels.new_empty(count if keep else 0, sum(areas), channels),
        pixels.new_empty(count if pooled else 0, *cells, 4 * channels),
    )


def _most_cells(size: int, window: int) -> int:
    """Of the cells of an axis, how many a window can lie in at most."""
    cells = [(cell * size // POOLED_SIDE, -(-(cell + 1) * size // POOLED_SIDE)) for cell in range(POOLED_SIDE)]
    return max(
        sum(max(begin, first) < min(end, first + window) for begin, end in cells) for first in range(1 - window, size)
    )


def _window_chain_backward_fake(
    to_out: Tensor, to_z: Tensor | None, to_updates: Tensor | None, pixels: Tensor, stem: Tensor, weight: Tensor,
    gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor, bases: int, over_corners: Tensor | None,
    over_groups: Tensor | None, over_height: int, over_width: int, corners: Tensor, groups: Tensor,
    z: Tensor, inputs: Tensor, hidden: Tensor, image_height: int, image_width: int, eps: float, pooled: bool,
    pixel_gradient: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    of_bases = (bases, weight.shape[0], image_height, image_width, weight.shape[1])
    pixels_shape = (pixels.shape[0] if pixel_gradient else 0, *pixels.shape[1:])
    parameters = (like.new_empty(like.shape) for like in (stem, weight, gamma, beta, expand, project))
    image = (image_height, image_width)
    sizes = grown_sizes((over_height, over_width), image, weight.shape[0])[1:]
    overs = 0 if over_corners is None else len(over_corners)
    of_overs = (overs, sum(height * width for height, width in sizes), weight.shape[1])
    of_both = (pixels.new_empty(shape) for shape in (of_bases, of_bases, of_overs, of_overs))
    return pixels.new_empty(pixels_shape), *parameters, *of_both


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, base_z, _, _, _, over_corners, over_groups, over_height, over_width = inputs[:-7]
    corners, groups, height, width, eps, pooled, keep = inputs[-7:]
    ctx.over = over_corners, over_groups, over_height, over_width
    _, z, kept_inputs, updates, hidden = output
    ctx.bases = 0 if base_z is None else len(base_z)
    ctx.options = height, width, eps, pooled
    ctx.mark_non_differentiable(kept_inputs, hidden, *(() if keep else (z, updates)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, corners, groups, z, kept_inputs, hidden)
    ctx.shape = output[0].shape


def _gradients(
    ctx: Any, to_out: Tensor | None, to_z: Tensor | None, _: None, to_updates: Tensor | None, __: None
) -> tuple[Tensor | None, ...]:
    *tensors, corners, groups, z, kept_inputs, hidden = ctx.saved_tensors
    if to_out is None:
        to_out = z.new_zeros(ctx.shape)
    to_pixels, *gradients = torch.ops.jepa_fast.window_chain_backward(
        to_out, to_z, to_updates, *tensors, ctx.bases, *ctx.over, corners, groups, z, kept_inputs, hidden, *ctx.options,
        ctx.needs_input_grad[0],
    )  # fmt: skip
    if ctx.bases == 0:
        gradients[-4:-2] = [None, None]
    if ctx.over[0] is None:
        gradients[-2:] = [None, None]
    return to_pixels if ctx.needs_input_grad[0] else None, *gradients, *(None,) * 11


def _paste_windows_fake(
    windows: Tensor, bases: Tensor, corners: Tensor, groups: Tensor, height: int, width: int
) -> Tensor:
    return bases.new_empty(len(corners), *bases.shape[1:])


def _paste_windows_backward_fake(
    to_images: Tensor, bases: int, corners: Tensor, groups: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    blocks, *image = to_images.shape[1:4]
    sizes = grown_sizes((height, width), (image[0], image[1]), blocks)[1:]
    windows = to_images.new_empty(len(corners), sum(down * across for down, across in sizes), to_images.shape[4])
    return windows, to_images.new_empty(bases, *to_images.shape[1:])


def _paste_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bases, corners, groups, *ctx.size = inputs
    ctx.bases = len(bases)
    ctx.save_for_backward(corners, groups)


def _paste_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    pasted = torch.ops.jepa_fast.paste_windows_backward(gradient, ctx.bases, *ctx.saved_tensors, *ctx.size)
    return *pasted, None, None, None, None


if extension.load() is None:
    torch.library.register_fake(OPERATOR, _window_chain_fake)
    torch.library.register_fake(f"{OPERATOR}_backward", _window_chain_backward_fake)
    torch.library.register_autograd(OPERATOR, _gradients, setup_context=_setup_context)
    torch.library.register_fake("jepa_fast::paste_windows", _paste_windows_fake)
    torch.library.register_fake("jepa_fast::paste_windows_backward", _paste_windows_backward_fake)
    torch.library.register_autograd("jepa_fast::paste_windows", _paste_gradients, setup_context=_paste_setup)
