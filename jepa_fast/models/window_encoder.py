"""Exact encoding of images that equal a shared base image outside a small window.

Every layer of a `Branch` before its pooling is local: what happens at a pixel depends on a 7x7 neighbourhood per block.
Two images that agree outside an h x w window therefore have activations that agree outside a window of
(h + 6l) x (w + 6l) after block l. The base's activations are computed once for all images that share it, and for each
image only the difference to them is carried, on the growing window:

    z_l = dwconv(d_{l-1}) + crop(Z_l)                      Z_l: the base's convolved activations
    d_l = pad(d_{l-1}) + W2 gelu(W1 LN(z_l)) - crop(G_l)   G_l: the base's block update; d_l = 0 outside the image

and the head reads the base's output and d_L (`jepa_fast.models.window_heads`). With a stem that has a stride all of
this holds for cells in place of pixels: `jepa_fast.models.stem` tells which cells a window of pixels shows in.

Nothing is approximated: values and gradients, also those that reach the weights through the base, are those of the
whole image up to rounding.

Where blocks run as one Triton op, the op takes Z_l as its addend and gives the z and the update that bases keep, and
neither the stem's collapse nor early pooling is used: they save what the op does not spend. On a CPU with compiled
blocks a window's whole chain is one op, which has both.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.hidden import hidden_pool, norm_mlp
from jepa_fast.kernels.window import compute_dtype, depthwise, difference, pool
from jepa_fast.kernels.window_chain import Blocks, Chain, Over, paste_windows, window_chain
from jepa_fast.models.biases import bias_or_zeros
from jepa_fast.models.convnext import Branch, ConvNeXtBlock, apply_stem
from jepa_fast.models.stem import PIXELS
from jepa_fast.models.window_grid import REACH, WindowGrid
from jepa_fast.models.window_heads import Pooling, pooling_matrix, window_head, window_pooling


class Bases(NamedTuple):
    """Images that others are compared with, and all of their activations that a window can need."""

    images: Tensor  # [G, H, W, c]
    # Z_l and G_l, one [G, H, W, C] per block; of compiled blocks [G, L, H, W, C].
    convolved: tuple[Tensor, ...] | Tensor
    updates: tuple[Tensor, ...] | Tensor
    head_cache: Tensor  # what the head's windows need of the last block's output
    over: Over | None = None  # of compiled blocks: the bases are windows over those in convolved and updates


class WindowEncoder:
    """A `Branch` for images that differ from shared base images in small windows only.

    It holds no parameters of its own: it reads the branch's, and gradients go there.

        encoder = WindowEncoder(branch)
        bases = encoder.bases(base_images)                             # once per forward
        states = encoder(bases, windows, corners, groups)              # as branch(images) gives

    The caller vouches that image n equals base groups[n] outside its window; nothing here can see the images.
    """

    def __init__(
        self,
        branch: Branch,
        stem_collapse: bool = True,
        early_pool: bool = True,
        channels: slice = slice(None),
    ) -> None:
        """`channels` are those that images, windows and differences are of: c of the branch's.

        Whole images are 0 in the others. Bases may have come from elsewhere with anything in the others, which then is
        the same in all images over them; their own images are those of these channels.
        """
        self.branch = branch
        self.channels = channels
        self.stem_collapse = stem_collapse
        self.head = window_head(branch)
        self.early_pool = early_pool and isinstance(self.head, Pooling)

    def __call__(self, bases: Bases, windows: Tensor, corners: Tensor, groups: Tensor | None = None) -> Tensor:
        """States [N, D].

        Args:
            bases: what `bases` or `derive_bases` gave in this forward pass.
            windows: [N, c, h, w], the images' content, with the base's values where nothing differs.
            corners: [N, 2], (row, column) of each window's top left pixel; the window lies inside the image.
            groups: [N], which base each image is compared with; none: base 0.
        """
        windows = _channels_last(windows)
        place = self._place(bases, windows, corners, groups)
        changed, cells = self._changed(bases, windows, place)
        if self._is_compiled(windows):
            read = self._read_chain(bases, changed, cells)
        else:
            *_, read = self._encode(bases, changed, cells)
        return self.branch.head(read)

    def dense(self, images: Tensor) -> Tensor:
        """States [N, D] of whole images [N, c, H, W], with the rewrites that need no window."""
        images = _channels_last(images)
        if self._is_compiled(images):
            x = self._stemmed(images)
            for block in self._blocks():
                x = block.fused(x)
            return self.branch.head(self.head.whole(x))
        *_, read = self._encode_whole(images, keep=False)
        return self.branch.head(read)

    def bases(self, images: Tensor) -> Bases:
        """Bases from whole images [G, c, H, W]."""
        images = _channels_last(images)
        if self._is_compiled(images):
            x, all_z, all_updates = self._keep(images)
            return Bases(images, all_z, all_updates, self.head.head_cache(x))
        convolved, updates, head_cache = self._encode_whole(images, keep=True)
        return Bases(images, tuple(convolved), tuple(updates), head_cache)

    def even_base(self, image: Tensor) -> Bases:
        """The base of an image [1, c, H, W] whose pixels are all alike: what `bases` gives.

        Its activations depend on how near the border is, up to three pixels for every block: by compiled blocks a small
        image is encoded, and its middle row and column repeated.
        """
        stem = self.branch.cells
        # Of the cells at a border, those that see beyond it.
        reach = REACH * len(self.branch.blocks) + (0 if stem.side == 1 else -(-stem.side // stem.stride))
        size = (image.shape[2], image.shape[3])
        cells = stem.cells(size)
        if not self._is_compiled(image) or max(cells) <= 2 * reach + 1:
            return self.bases(image)
        # Whole cells less: the last one sees as much of the border as before.
        height, width = (
            side - max(0, own - (2 * reach + 1)) * stem.stride for side, own in zip(size, cells, strict=True)
        )
        small = self._keep(_channels_last(image[:, :, :height, :width]))
        # Of each row and column of the image, the one of the small image that is as near to a border.
        rows, columns = (
            torch.arange(side).clamp(max=reach) + (torch.arange(side) - (side - 1 - reach)).clamp(min=0)
            if side > 2 * reach + 1
            else torch.arange(side)
            for side in cells
        )
        x, z, updates = (part.index_select(-3, rows).index_select(-2, columns) for part in small)
        return Bases(_channels_last(image), z, updates, self.head.head_cache(x))

    def derive_bases(self, bases: Bases, windows: Tensor, corners: Tensor, groups: Tensor | None = None) -> Bases:
        """Bases that themselves differ from coarser ones in a window only. Arguments as in a call."""
        windows = _channels_last(windows)
        place = self._place(bases, windows, corners, groups)
        images = place.fill(windows, bases.images)
        changed, place = self._changed(bases, windows, place)
        if self._is_compiled(windows):
            bases = self._flat(bases)
            chain = self._chain(bases, changed, place, keep=True)
            head_cache = self.head.derived(chain.out, bases.head_cache, place, len(self.branch.blocks))
            over = Over(chain.z, chain.updates, place.corners, place.groups, place.size)
            return bases._replace(images=images, head_cache=head_cache, over=over)
        convolved, updates, head_cache = self._encode(bases, changed, place, keep=True)
        layers = zip(convolved, bases.convolved, updates, bases.updates, strict=True)
        pasted = [
            (place.paste(z, base_z, after), place.paste(update, base_update, after))
            for after, (z, base_z, update, base_update) in enumerate(layers, start=1)
        ]
        return Bases(images, tuple(z for z, _ in pasted), tuple(update for _, update in pasted), head_cache)

    @property
    def _has_pixels(self) -> bool:
        """Whether the stem sees every pixel for itself."""
        return self.branch.cells == PIXELS

    def _stem(self) -> Tensor:
        """What a pixel's channels are multiplied by, [C, c], with a stem of 1x1."""
        return self.branch.filters()[:, self.channels].flatten(1)

    def _stemmed(self, images: Tensor) -> Tensor:
        """Cells [N, H', W', C] of images [N, H, W, c]."""
        if self._has_pixels:
            return apply_stem(images, self._stem())
        return self.branch.cells.apply(images, self.branch.filters()[:, self.channels])

    def _changed(self, bases: Bases, windows: Tensor, place: WindowGrid) -> tuple[Tensor, WindowGrid]:
        """What windows [N, h, w, c] hold more than their bases, and where: pixels, or cells [N, h', w', C]."""
        pixels = windows - place.cut(bases.images)
        if self._has_pixels:
            return pixels, place
        stem = self.branch.cells
        cells = stem.cell_grid(place)
        return stem.apply_windows(pixels, place, cells, self.branch.filters()[:, self.channels]), cells

    def _blocks(self) -> list[ConvNeXtBlock]:
        return [block for block in self.branch.blocks if isinstance(block, ConvNeXtBlock)]

    def _place(self, bases: Bases, windows: Tensor, corners: Tensor, groups: Tensor | None) -> WindowGrid:
        return WindowGrid.of(bases.images, windows, corners, groups, self._blocks()[0].is_fused)

    def _is_compiled(self, like: Tensor) -> bool:
        """Whether blocks run as compiled ops on a tensor like this one."""
        return self._blocks()[0].is_compiled(like)

    def _keep(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last output [G, H, W, C], all z and updates [G, L, H, W, C] of images [G, H, W, c]; compiled blocks."""
        x = self._stemmed(images)
        z, updates = [], []
        for block in self._blocks():
            x, block_z, block_update = block.keep(x)
            z.append(block_z)
            updates.append(block_update)
        return x, torch.stack(z, dim=1), torch.stack(updates, dim=1)

    def _flat(self, bases: Bases) -> Bases:
        """The same bases as whole images."""
        if bases.over is None:
            return bases
        place = bases.over.corners, bases.over.groups, bases.over.size
        assert isinstance(bases.convolved, Tensor)
        assert isinstance(bases.updates, Tensor)
        convolved = paste_windows(bases.over.z, bases.convolved, *place)
        updates = paste_windows(bases.over.updates, bases.updates, *place)
        return bases._replace(convolved=convolved, updates=updates, over=None)

    def _chain(self, bases: Bases, changed: Tensor, place: WindowGrid, keep: bool) -> Chain:
        """The windows through all blocks, as one op."""
        assert isinstance(bases.convolved, Tensor)
        assert isinstance(bases.updates, Tensor)
        # The op has a stem of 1x1; cells have been through theirs.
        stem = self._stem() if self._has_pixels else torch.eye(changed.shape[-1], out=changed.new_empty(0))
        parameters = zip(*(block.parameters_in_order() for block in self._blocks()), strict=True)
        blocks = Blocks(*(torch.stack(each) for each in parameters))
        pooled = isinstance(self.head, Pooling) and not keep
        return window_chain(
            changed, stem, blocks, bases.convolved, bases.updates, place.corners, place.groups, place.image,
            self._blocks()[0].norm.eps, pooled=pooled, keep=keep, over=bases.over,
        )  # fmt: skip

    def _read_chain(self, bases: Bases, changed: Tensor, place: WindowGrid) -> Tensor:
        """What the head reads of windows, by compiled blocks."""
        out = self._chain(bases, changed, place, keep=False).out
        if isinstance(self.head, Pooling):
            return (bases.head_cache.index_select(0, place.groups) + out).permute(0, 3, 1, 2)
        return self.head.window(out, bases.head_cache, place, len(self.branch.blocks))

    def _encode_whole(self, images: Tensor, keep: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Convolved activations and updates of each block, then the head cache or what the head reads."""
        x = self._stemmed(images)
        kept_convolved, kept_updates = [], []
        blocks = self._blocks()
        for index, block in enumerate(blocks):
            if block.is_fused and not keep:
                x = block.fused(x)
                continue
            if block.is_fused:
                x, z, update = block.keep(x)
                kept_convolved.append(z)
                kept_updates.append(update)
                continue
            if index == 0 and self.stem_collapse and self._has_pixels:
                z = _collapsed(images, self._stem(), block, (REACH, REACH))
            else:
                z = depthwise(x, block.dwconv.weight, (REACH, REACH))
            if index == len(blocks) - 1 and self.early_pool and not keep:
                rows, columns = (pooling_matrix(size, images).expand(len(images), -1, -1) for size in x.shape[1:3])
                pooled = pool(x, rows, columns) + _project_pooled(z, block, rows, columns)
                return [], [], pooled.permute(0, 3, 1, 2)
            update = _update(z, block)
            x = x + update
            if keep:
                kept_convolved.append(z.to(images.dtype))
                kept_updates.append(update)
        if not (isinstance(self.head, Pooling) and self.head.is_fused):
            # Where blocks are one op, x may be bf16; what comes of it is not rounded again.
            x = x.to(images.dtype)
        return kept_convolved, kept_updates, self.head.head_cache(x) if keep else self.head.whole(x)

    def _encode(
        self, bases: Bases, changed: Tensor, place: WindowGrid, keep: bool = False
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """As `_encode_whole`, with activations and updates on the windows; `changed` as `_changed` gives it."""
        delta = apply_stem(changed, self._stem()) if self._has_pixels else changed
        kept_convolved, kept_updates = [], []
        blocks = self._blocks()
        for index, block in enumerate(blocks):
            after = index + 1
            growth = tuple(new - old for new, old in zip(place.margin(after), place.margin(index), strict=True))
            padding = (growth[0] + REACH, growth[1] + REACH)
            if block.is_fused:
                base_z = place.crop(bases.convolved[index].to(compute_dtype(delta)), after)
                if keep:
                    grown, z, update = block.keep(delta, base_z, padding)
                    kept_convolved.append(z)
                    kept_updates.append(update)
                else:
                    grown = block.fused(delta, base_z, padding)
                base_update = bases.updates[index]
                delta = difference(grown, base_update, place.corners, place.groups, place.margin(after), is_fused=True)
                continue
            base_z = place.crop(bases.convolved[index], after)
            if index == 0 and self.stem_collapse and self._has_pixels:
                z = _collapsed(changed, self._stem(), block, padding) + base_z
            else:
                z = depthwise(delta, block.dwconv.weight, padding, base_z)
            # Negated while it is still one image: the gradient of a difference would be negated for every window.
            base_update = place.crop(-bases.updates[index], after)
            if index == len(blocks) - 1 and self.early_pool and not keep:
                rows, columns = window_pooling(place, after, delta)
                pooled = pool(delta, *window_pooling(place, index, delta)) + pool(base_update, rows, columns)
                base_pooled = place.own(bases.head_cache)
                pooled = base_pooled + pooled + _project_pooled(z, block, rows, columns)
                return [], [], pooled.permute(0, 3, 1, 2)
            delta = F.pad(delta, (0, 0, growth[1], growth[1], growth[0], growth[0]))
            update = _update(z, block)
            delta = (delta + base_update + update) * place.inside(after).to(delta.dtype)
            if keep:
                kept_convolved.append(z)
                kept_updates.append(update)
        read = self.head.derived if keep else self.head.window
        return kept_convolved, kept_updates, read(delta, bases.head_cache, place, len(blocks))


def _collapsed(images: Tensor, stem: Tensor, block: ConvNeXtBlock, padding: tuple[int, int]) -> Tensor:
    """Stem and first convolution as one dense convolution c -> C of images [N, h, w, c]: [N, h', w', C]."""
    kernel = block.dwconv.weight * stem[:, :, None, None]
    return F.conv2d(images.permute(0, 3, 1, 2), kernel, padding=padding).permute(0, 2, 3, 1)


def _channels_last(images: Tensor) -> Tensor:
    """Images [N, c, h, w] as [N, h, w, c], contiguous."""
    # Of one channel every layout is contiguous; indexed, its strides say channels last, and convolutions go by that.
    return images[:, 0, ..., None] if images.shape[1] == 1 else images.permute(0, 2, 3, 1).contiguous()


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
