"""Exact encoding of images that equal a shared base image outside a small window.

Every layer of a `Branch` before its pooling is local: what happens at a pixel depends on a 7x7 neighbourhood per block.
Two images that agree outside an h x w window therefore have activations that agree outside a window of
(h + 6l) x (w + 6l) after block l. The base's activations are computed once for all images that share it, and for each
image only the difference to them is carried, on the growing window:

    z_l = dwconv(d_{l-1}) + crop(Z_l)                      Z_l: the base's convolved activations
    d_l = pad(d_{l-1}) + W2 gelu(W1 LN(z_l)) - crop(G_l)   G_l: the base's block update; d_l = 0 outside the image
    pooled = pooled base + P_y^T d_L P_x                   P: the pooling matrix, restricted to the window

Nothing is approximated: values and gradients, also those that reach the weights through the base, are those of the
whole image up to rounding.

Where blocks run as one op, the op takes Z_l as its addend, and neither the stem's collapse nor early pooling is used:
they save what the op does not spend.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.model.biases import bias_or_zeros
from jepa_fast.model.encoder import POOLED_SIDE, Branch, ConvNeXtBlock
from jepa_fast.model.hidden_ops import hidden_pool, norm_mlp
from jepa_fast.model.window_ops import compute_dtype, crop, depthwise, difference, pool

REACH = 3  # pixels a 7x7 convolution looks to each side


class Bases(NamedTuple):
    """Images that others are compared with, and all of their activations that a window can need."""

    images: Tensor  # [G, H, W]
    convolved: tuple[Tensor, ...]  # Z_l, one [G, H, W, C] per block
    updates: tuple[Tensor, ...]  # G_l, one [G, H, W, C] per block
    pooled: Tensor  # [G, 6, 6, C], of the last block's output


class _Placement(NamedTuple):
    """Windows of one size in images of one size, before any growth."""

    corners: Tensor  # int64 [N, 2]: (row, column) of the top left pixel
    groups: Tensor  # int64 [N]: which base
    size: tuple[int, int]
    image: tuple[int, int]

    def margin(self, blocks: int) -> tuple[int, int]:
        """How far the window has grown to each side after some blocks. It does not grow along an axis it fills."""
        rows, columns = (0 if self.size[axis] == self.image[axis] else REACH * blocks for axis in (0, 1))
        return rows, columns

    def grown(self, blocks: int) -> tuple[int, int]:
        """The window's size after some blocks."""
        rows, columns = self.margin(blocks)
        return self.size[0] + 2 * rows, self.size[1] + 2 * columns

    def positions(self, blocks: int, axis: int) -> Tensor:
        """Image coordinates int64 [N, h] of the grown window along an axis; some may lie outside the image."""
        length, margin = self.grown(blocks)[axis], self.margin(blocks)[axis]
        return self.corners[:, axis, None] - margin + torch.arange(length, device=self.corners.device)

    def inside(self, blocks: int, dtype: torch.dtype) -> Tensor:
        """Mask [N, h, w, 1]: 1 where the grown window lies on the image."""
        rows, columns = (
            (self.positions(blocks, axis) >= 0) & (self.positions(blocks, axis) < self.image[axis]) for axis in (0, 1)
        )
        return (rows[:, :, None] & columns[:, None, :]).to(dtype)[..., None]


class ReceptiveWindowEncoder:
    """A `Branch` for images that differ from shared base images in small windows only.

    It holds no parameters of its own: it reads the branch's, and gradients go there.

        encoder = ReceptiveWindowEncoder(branch)
        bases = encoder.bases(base_images)                             # once per forward
        states = encoder(bases, windows, corners, groups)              # as branch(images) gives

    The caller vouches that image n equals base groups[n] outside its window; nothing here can see the images.
    """

    def __init__(self, branch: Branch, stem_collapse: bool = True, early_pool: bool = True) -> None:
        self.branch = branch
        self.stem_collapse = stem_collapse
        self.early_pool = early_pool

    def __call__(self, bases: Bases, windows: Tensor, corners: Tensor, groups: Tensor | None = None) -> Tensor:
        """States [N, D].

        Args:
            bases: what `bases` or `refine` gave in this forward pass.
            windows: [N, h, w], the images' content, with the base's values where nothing differs.
            corners: [N, 2], (row, column) of each window's top left pixel; the window lies inside the image.
            groups: [N], which base each image is compared with; none: base 0.
        """
        place = _place(bases, windows, corners, groups)
        *_, pooled = self._encode(bases, windows, place)
        return self.head(pooled)

    def dense(self, images: Tensor) -> Tensor:
        """States [N, D] of whole images [N, H, W], with the rewrites that need no window."""
        *_, pooled = self._encode_whole(images, keep=False)
        return self.head(pooled)

    def bases(self, images: Tensor) -> Bases:
        """Bases from whole images [G, H, W]."""
        convolved, updates, pooled = self._encode_whole(images, keep=True)
        return Bases(images, tuple(convolved), tuple(updates), pooled)

    def refine(self, bases: Bases, windows: Tensor, corners: Tensor, groups: Tensor | None = None) -> Bases:
        """Bases that themselves differ from coarser ones in a window only. Arguments as in a call."""
        place = _place(bases, windows, corners, groups)
        convolved, updates, pooled = self._encode(bases, windows, place, keep=True)
        images = _paste(windows[..., None], bases.images[..., None], place, 0)[..., 0]
        return Bases(
            images,
            tuple(
                _paste(z, base, place, layer + 1)
                for layer, (z, base) in enumerate(zip(convolved, bases.convolved, strict=True))
            ),
            tuple(
                _paste(u, base, place, layer + 1)
                for layer, (u, base) in enumerate(zip(updates, bases.updates, strict=True))
            ),
            pooled,
        )

    def head(self, pooled: Tensor) -> Tensor:
        """States [N, D] of pooled activations [N, 6, 6, C]."""
        return self.branch.head(pooled.permute(0, 3, 1, 2))

    def _blocks(self) -> list[ConvNeXtBlock]:
        return [block for block in self.branch.blocks if isinstance(block, ConvNeXtBlock)]

    def _encode_whole(self, images: Tensor, keep: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Convolved activations and updates of each block (only if they are kept), and the pooled output."""
        stem = self.branch.stem.weight.view(-1)
        rows, columns = (pooling_matrix(size, images).expand(len(images), -1, -1) for size in images.shape[1:])
        x = images[..., None] * stem
        kept_convolved, kept_updates = [], []
        blocks = self._blocks()
        for index, block in enumerate(blocks):
            if block.is_fused and not keep:
                x = block.fused(x)
                continue
            if index == 0 and self.stem_collapse:
                z = _collapsed(images, stem, block, (REACH, REACH))
            else:
                z = depthwise(x, block.dwconv.weight, (REACH, REACH))
            if index == len(blocks) - 1 and self.early_pool and not keep:
                return [], [], pool(x, rows, columns) + _project_pooled(z, block, rows, columns)
            update = _update(z, block)
            x = x + update
            if keep:
                kept_convolved.append(z.to(images.dtype))
                kept_updates.append(update)
        return kept_convolved, kept_updates, pool(x, rows, columns)

    def _encode(
        self, bases: Bases, windows: Tensor, place: _Placement, keep: bool = False
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Convolved activations and updates on the windows (only if they are kept), and the pooled output."""
        stem = self.branch.stem.weight.view(-1)
        pixels = windows - _crop(bases.images[..., None], place, 0)[..., 0]
        delta = pixels[..., None] * stem
        base_pooled = bases.pooled.index_select(0, place.groups)
        kept_convolved, kept_updates = [], []
        blocks = self._blocks()
        for index, block in enumerate(blocks):
            after = index + 1
            growth = tuple(new - old for new, old in zip(place.margin(after), place.margin(index), strict=True))
            padding = (growth[0] + REACH, growth[1] + REACH)
            if block.is_fused and not keep:
                base_z = _crop(bases.convolved[index].to(compute_dtype(delta)), place, after, is_fused=True)
                grown = block.fused(delta, base_z, padding)
                base_update = bases.updates[index]
                delta = difference(grown, base_update, place.corners, place.groups, place.margin(after), is_fused=True)
                continue
            base_z = _crop(bases.convolved[index], place, after)
            if index == 0 and self.stem_collapse:
                z = _collapsed(pixels, stem, block, padding) + base_z
            else:
                z = depthwise(delta, block.dwconv.weight, padding, base_z)
            # Negated while it is still one image: the gradient of a difference would be negated for every window.
            base_update = _crop(-bases.updates[index], place, after)
            if index == len(blocks) - 1 and self.early_pool and not keep:
                rows, columns = _window_pooling(place, after, delta)
                pooled = pool(delta, *_window_pooling(place, index, delta)) + pool(base_update, rows, columns)
                return [], [], base_pooled + pooled + _project_pooled(z, block, rows, columns)
            delta = F.pad(delta, (0, 0, growth[1], growth[1], growth[0], growth[0]))
            update = _update(z, block)
            delta = (delta + base_update + update) * place.inside(after, delta.dtype)
            if keep:
                kept_convolved.append(z)
                kept_updates.append(update)
        return kept_convolved, kept_updates, base_pooled + pool(delta, *_window_pooling(place, len(blocks), pixels))


def pooling_matrix(size: int, like: Tensor) -> Tensor:
    """[6, size]: what adaptive average pooling multiplies an axis of that size with; dtype and device of `like`."""
    cells = torch.arange(POOLED_SIDE, device=like.device)[:, None]
    first = cells * size // POOLED_SIDE
    end = -(-(cells + 1) * size // POOLED_SIDE)
    pixels = torch.arange(size, device=like.device)
    return ((pixels >= first) & (pixels < end)).to(like.dtype) / (end - first).to(like.dtype)


def _place(bases: Bases, windows: Tensor, corners: Tensor, groups: Tensor | None) -> _Placement:
    """The windows' placement. Raises ValueError for shapes that do not fit together."""
    count, height, width = windows.shape
    image = (bases.images.shape[1], bases.images.shape[2])
    if height > image[0] or width > image[1]:
        raise ValueError(f"windows: got {height} x {width}, expected at most the image's {image[0]} x {image[1]}")
    if tuple(corners.shape) != (count, 2):
        raise ValueError(f"corners: got shape {tuple(corners.shape)}, expected {(count, 2)}")
    if groups is None:
        groups = torch.zeros(count, dtype=torch.int64, device=windows.device)
    elif tuple(groups.shape) != (count,):
        raise ValueError(f"groups: got shape {tuple(groups.shape)}, expected {(count,)}")
    return _Placement(corners.to(torch.int64), groups.to(torch.int64), (height, width), image)


def _collapsed(images: Tensor, stem: Tensor, block: ConvNeXtBlock, padding: tuple[int, int]) -> Tensor:
    """Stem and first convolution as one dense convolution 1 -> C of images [N, h, w]: [N, h', w', C]."""
    kernel = block.dwconv.weight * stem.view(-1, 1, 1, 1)
    # Permuted, so that the strides say channels last: with one channel every layout is, and NCHW would be taken.
    return F.conv2d(images[..., None].permute(0, 3, 1, 2), kernel, padding=padding).permute(0, 2, 3, 1)


def _update(z: Tensor, block: ConvNeXtBlock) -> Tensor:
    """What the block adds to its input, [N, h, w, C], from its convolved activations."""
    norm = block.norm
    return norm_mlp(z, norm.weight, bias_or_zeros(norm), block.expand.weight, block.project.weight, norm.eps)


def _project_pooled(z: Tensor, block: ConvNeXtBlock, rows: Tensor, columns: Tensor) -> Tensor:
    """The pooled `_update`, [N, 6, 6, C], projected after pooling."""
    norm = block.norm
    hidden = hidden_pool(z, norm.weight, bias_or_zeros(norm), block.expand.weight, rows, columns, norm.eps)
    pooled: Tensor = block.project(hidden)
    return pooled


def _window_pooling(place: _Placement, blocks: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pooling matrices [N, 6, h] and [N, 6, w] of the windows grown by some blocks; zero outside the image."""
    matrices = []
    for axis in (0, 1):
        margin = place.margin(blocks)[axis]
        padded = F.pad(pooling_matrix(place.image[axis], like), (margin, margin))
        matrices.append(padded.t()[place.positions(blocks, axis) + margin].transpose(1, 2))
    return matrices[0], matrices[1]


def _crop(base: Tensor, place: _Placement, blocks: int, is_fused: bool = False) -> Tensor:
    """[N, h, w, C]: base [G, H, W, C] under each window grown by some blocks, zero outside the image."""
    return crop(base, place.corners, place.groups, place.margin(blocks), place.grown(blocks), is_fused)


def _paste(windows: Tensor, base: Tensor, place: _Placement, blocks: int) -> Tensor:
    """[N, H, W, C]: each window's base [G, H, W, C] with the grown window [N, h, w, C] written over it."""
    count, height, width, channels = windows.shape
    inside, source = [], []
    for axis in (0, 1):
        pixels = torch.arange(place.image[axis], device=base.device)
        offsets = pixels - place.positions(blocks, axis)[:, :1]  # [N, H]
        length = windows.shape[1 + axis]
        inside.append((offsets >= 0) & (offsets < length))
        source.append(offsets.clamp(0, length - 1))
    first = torch.arange(count, device=base.device)[:, None] * height + source[0]
    pixels = first[:, :, None] * width + source[1][:, None, :]  # [N, H, W]
    moved = windows.reshape(-1, channels).index_select(0, pixels.flatten()).view(count, *place.image, channels)
    shown = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(shown[..., None], moved, base.index_select(0, place.groups))
