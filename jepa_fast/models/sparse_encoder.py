"""Encode only what can differ: a Batch to latents, group by group by the cheapest route that is exact for its data.

    dense    every frame as a whole image
    once     one whole image per trajectory, its latent shared by all frames
    windows  base images, and per frame, or per trajectory of a static group, the window that differs from its base
    nested   one image of what all base images share, per base the window in which it differs, then as windows
    fusion   the branch of all channels: "dense", or "windows" over one image per trajectory, got as the static group's

Bases are a black image, the data set's base images, or each trajectory's own background. Routes are chosen by counted
work, on a GPU with what launches cost. Which of them are exact is the packer's word: it stores a window only for frames
that equal their base outside it, and an image once only if it never changes. A group that is stored dense goes the
dense way.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jepa_fast.data.batches import Batch, GroupBases, GroupBatch, base_images, expand_frames, expand_group, to_values
from jepa_fast.data.manifest import ChannelGroup, FrameSpec
from jepa_fast.errors import InputError
from jepa_fast.kernels.window_chain import grown_sizes
from jepa_fast.models.convnext import Branch, ConvNeXtBlock, Encoder
from jepa_fast.models.window_encoder import Bases, WindowEncoder

Route = Literal["dense", "once", "windows", "nested"]
# Launches of one fused block on CUDA, forward and backward, with all that windows and bases add to it.
LAUNCHES: dict[Route, int] = {"dense": 7, "once": 7, "windows": 24, "nested": 75}
# In the 1.7 us that a kernel of a graph takes which waits for the one before it and does next to nothing (assumed), an
# H100 issues the instructions of so many pixels of a block of 16 channels, forward and backward (docs/kernels.md).
PIXELS_OF_A_LAUNCH = 7000


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites may be used. All of them are exact; tests and benchmarks switch them one by one."""

    static: bool = True
    windows: bool = True
    stem_collapse: bool = True
    early_pool: bool = True


class Plan(NamedTuple):
    """The routes of groups and of the fusion branch, and the forward FLOPs of the blocks' convolutions and products."""

    groups: tuple[Route, ...]
    flops: int
    plain_flops: int
    fusion: Literal["dense", "windows"] | None


class SparseEncoder:
    """An `Encoder` that takes a Batch and skips what cannot differ: the same function, the same gradients.

    Holds no parameters and no state of the run: it can be made anew, or shared by training and evaluation.
    """

    def __init__(
        self,
        encoder: Encoder,
        spec: FrameSpec,
        bases: GroupBases = (),
        mode: Literal["auto", "off"] = "auto",
        rewrites: Rewrites | None = None,
    ) -> None:
        """`bases` as `group_bases` gives them, on the device of the batches; `mode` "off" is the plain encoder.

        Raises:
            InputError: the data's groups of channels are not the encoder's.
        """
        if mode not in ("auto", "off"):
            raise ValueError(f"mode: got {mode!r}, expected 'auto' or 'off'")
        found = tuple((group.name, group.channels) for group in spec.groups)
        if found != encoder.groups:
            raise InputError(f"groups of channels: the model has {_listed(encoder.groups)}, the data {_listed(found)}")
        self.encoder = encoder
        self.spec = spec
        self.mode = mode
        self.rewrites = rewrites or Rewrites()
        self.bases: GroupBases = bases or (None,) * len(spec.groups)
        self._groups = [
            _GroupEncoder(branch, group, spec, base, self.rewrites)
            for branch, group, base in zip(encoder.branches, spec.groups, self.bases, strict=True)
        ]
        self._fused = {} if encoder.fusion is None else self._fusion_encoders(encoder.fusion)

    def __call__(self, batch: Batch, clock: Tensor) -> Tensor:
        """What `Encoder` gives of a batch; T is the batch's own, so that a rollout can bring frame 0 alone."""
        if self.mode == "off":
            frames = expand_frames(batch, self.spec, self.bases).to(self._dtype)
            return self.encoder(frames, clock)  # type: ignore[no-any-return]
        plan = self.plan(batch)
        latents = [
            encoder.encode(part, length, route)
            for encoder, (part, length), route in zip(self._groups, self._parts(batch), plan.groups, strict=True)
        ]
        latents = [latent.view(len(batch.indices), -1, latent.shape[-1]) for latent in latents]
        fusion: Tensor | None = None
        if self.encoder.fusion is not None:
            fusion = self._encode_fusion(self.encoder.fusion, batch, plan)
            fusion = fusion.view(len(batch.indices), batch.length, -1)
        return self.encoder.combine(latents, clock, fusion)

    def plan(self, batch: Batch) -> Plan:
        """The cheapest exact routes for a batch: a function of its shapes alone."""
        count, length = len(batch.indices), batch.length
        work = [
            encoder.work(count, frames) for encoder, (_, frames) in zip(self._groups, self._parts(batch), strict=True)
        ]
        routes = tuple(encoder.cheapest(each) for encoder, each in zip(self._groups, work, strict=True))
        dense = count * length * self._groups[0].whole
        cells, plain_cells = sum(each[route] for each, route in zip(work, routes, strict=True)), len(work) * dense
        fusion: Literal["dense", "windows"] | None = None
        if self.encoder.fusion is not None:
            windows = self._fusion_work(count, length, routes, work)
            fusion = "windows" if windows is not None and windows < dense else "dense"
            cells += windows if windows is not None and fusion == "windows" else dense
            plain_cells += dense
        channels = self.encoder.branches[0].stem.out_channels
        per_cell = 2 * channels * (49 + 8 * channels)
        return Plan(routes, per_cell * cells, per_cell * plain_cells, fusion)

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by, and why."""
        if self.mode == "off":
            return "encoder: sparse encoding off, every frame is encoded whole"
        plan = self.plan(batch)
        share = 100 * plan.flops / plan.plain_flops
        reasons = []
        for group in self.spec.groups:
            if group.codec == "dense":
                reasons.append(f"{group.name} is stored frame by frame")
            elif group.window is None:
                reasons.append(f"{group.name} is stored without bases")
        because = f" ({'; '.join(reasons)})" if reasons else ""
        routes = [f"{group.name} {route}" for group, route in zip(self.spec.groups, plan.groups, strict=True)]
        if plan.fusion:
            routes.append(f"fusion {plan.fusion}")
        return f"encoder: {', '.join(routes)}{because}: {share:.1f}% of the plain encoder's FLOPs"

    @property
    def _dtype(self) -> torch.dtype:
        return self.encoder.branches[0].stem.weight.dtype

    def _parts(self, batch: Batch) -> list[tuple[GroupBatch, int]]:
        """Each group's part of a batch, with its number of frames: that of the group that is kept apart is 1."""
        return [
            (part.frames(slice(1)), 1) if number == self.encoder.apart else (part, batch.length)
            for number, part in enumerate(batch.groups)
        ]

    def _fusion_encoders(self, branch: Branch) -> dict[str, WindowEncoder]:
        """Encoders of the branch of all channels, by the group whose windows they take, and "" for whole images."""
        encoders = {"": self._window_encoder(branch, slice(None))}
        first = 0
        for group in self.spec.groups:
            encoders[group.name] = self._window_encoder(branch, slice(first, first + group.channels))
            first += group.channels
        return encoders

    def _window_encoder(self, branch: Branch, channels: slice) -> WindowEncoder:
        return WindowEncoder(branch, self.rewrites.stem_collapse, self.rewrites.early_pool, channels)

    def _moving(self) -> int | None:
        """The one group that is stored in windows, where all others are static: what the fusion branch can go by."""
        moving = [number for number, group in enumerate(self.spec.groups) if group.codec != "static"]
        others = len(self.spec.groups) - 1
        is_one = len(moving) == 1 and others > 0 and self.spec.groups[moving[0]].codec == "window"
        return moving[0] if is_one and self.rewrites.windows else None

    def _lone_static(self, moving: int) -> int | None:
        """The one static group, where black is all that lies under the windows of the moving one."""
        others = [number for number in range(len(self.spec.groups)) if number != moving]
        is_black = self.spec.groups[moving].base == "black" and self.spec.offset == 0
        return others[0] if len(others) == 1 and is_black else None

    def _fusion_work(
        self, count: int, length: int, routes: tuple[Route, ...], work: list[dict[Route, int]]
    ) -> int | None:
        """Cells of the fusion branch by windows; None where they are not exact."""
        moving = self._moving()
        if moving is None:
            return None
        static = self._lone_static(moving)
        if static is None:
            return count * self._groups[0].whole + self._groups[moving].window_work(count * length)
        if routes[static] == "dense":
            return None
        return work[static][routes[static]] + self._groups[moving].window_work(count * length)

    def _encode_fusion(self, branch: Branch, batch: Batch, plan: Plan) -> Tensor:
        """Latents [B * T, D] of all channels: every trajectory's still image is a base, in which windows differ."""
        if plan.fusion == "dense":
            frames = expand_frames(batch, self.spec, self.bases).to(self._dtype)
            latents: Tensor = branch(frames.flatten(0, 1))
            return latents
        moving = self._moving()
        assert moving is not None
        group, part = self._groups[moving], batch.groups[moving]
        static = self._lone_static(moving)
        if static is None:
            stills = self._stills(batch)
            channels = self._fused[group.group.name].channels
            stills = stills._replace(images=stills.images[..., channels])
        else:
            encoder, source = self._fused[self.spec.groups[static].name], self._groups[static]
            stills = source.stills(encoder, batch.groups[static], plan.groups[static])
            stills = stills._replace(images=stills.images.new_zeros(*stills.images.shape[:3], group.group.channels))
        owners = torch.arange(len(batch.indices), device=part.pixels.device).repeat_interleave(batch.length)
        assert part.corners is not None
        windows = group.values(part.pixels.flatten(0, 1))
        return self._fused[group.group.name](stills, windows, part.corners.flatten(0, 1), owners)

    def _stills(self, batch: Batch) -> Bases:
        """Bases of all channels, one per trajectory: static images, and what windows lie on."""
        images = []
        for encoder, part in zip(self._groups, batch.groups, strict=True):
            if encoder.group.codec == "static":
                images.append(part.pixels)
            elif encoder.group.base == "black":
                image = (len(batch.indices), encoder.group.channels, self.spec.height, self.spec.width)
                images.append(part.pixels.new_zeros(image))
            else:
                images.append(base_images(part, encoder.group, encoder.images))
        return self._fused[""].bases(self._groups[0].values(torch.cat(images, dim=1)))


class _GroupEncoder:
    """A branch on its group of channels."""

    def __init__(
        self, branch: Branch, group: ChannelGroup, spec: FrameSpec, images: Tensor | None, rewrites: Rewrites
    ) -> None:
        self.group, self.spec, self.images, self.rewrites = group, spec, images, rewrites
        self.branch = branch
        self.encoder = WindowEncoder(branch, rewrites.stem_collapse, rewrites.early_pool)
        self.nesting = None if images is None else _find_nesting(images)
        self.blocks = len(branch.blocks)
        # Cells of the stem, without a stride pixels, that a whole image makes the blocks compute.
        self.whole = self.blocks * math.prod(branch.cells.cells(self._size))

    def work(self, count: int, frames: int) -> dict[Route, int]:
        """Cells that each exact route makes the blocks compute for `count` trajectories."""
        group, is_static = self.group, self.group.codec == "static" and self.rewrites.static
        work: dict[Route, int] = {"once": count * self.whole} if is_static else {"dense": count * frames * self.whole}
        if not self.rewrites.windows or group.window is None or (group.codec == "static" and not is_static):
            return work
        windows = self.window_work(count if is_static else count * frames)
        if group.base != "images":
            work["windows"] = (1 if group.base == "black" else count) * self.whole + windows
        elif self.images is not None:
            work["windows"] = len(self.images) * self.whole + windows
            if self.nesting is not None:
                nested = self._window_cells(self.nesting.size)
                work["nested"] = self.whole + len(self.images) * nested + windows
        return work

    def cheapest(self, work: dict[Route, int]) -> Route:
        """The route that takes the least time: on a GPU its launches count as well."""
        weight, block = self.branch.stem.weight, self.branch.blocks[0]
        if weight.is_cuda and isinstance(block, ConvNeXtBlock) and block.is_fused:
            of_a_launch = self.blocks * PIXELS_OF_A_LAUNCH * 16 // weight.shape[0]
            work = {route: pixels + of_a_launch * LAUNCHES[route] for route, pixels in work.items()}
        return min(work, key=work.__getitem__)

    def window_work(self, count: int) -> int:
        """Cells that so many of the group's windows make the blocks compute."""
        assert self.group.window is not None
        return count * self._window_cells(self.group.window)

    def _window_cells(self, window: tuple[int, int]) -> int:
        """Cells that a window of pixels makes the blocks compute, summed over the blocks."""
        stem = self.branch.cells
        image = stem.cells(self._size)
        sizes = grown_sizes(stem.shown(window, self._size), image, self.blocks)
        return sum(height * width for height, width in sizes[1:])

    def encode(self, batch: GroupBatch, frames: int, route: Route) -> Tensor:
        """Latents [B * T, D], or [B, D] of images that all frames share."""
        if route == "dense":
            pixels = expand_group(batch, self.group, self.spec, frames, self.images)
            return self.encoder.dense(self.values(pixels.flatten(0, 1)))
        if route == "once":
            return self.encoder.dense(self.values(batch.pixels))
        if self.group.codec == "static":
            return self.encoder(self._image_bases(self.encoder, route), *self._differences(batch))
        bases, owners = self._bases(batch, frames, route)
        assert batch.corners is not None
        return self.encoder(bases, self.values(batch.pixels.flatten(0, 1)), batch.corners.flatten(0, 1), owners)

    def stills(self, encoder: WindowEncoder, batch: GroupBatch, route: Route) -> Bases:
        """Bases of this static group's images, one per trajectory, of a branch that has these channels among others."""
        if route == "once":
            return encoder.bases(self.values(batch.pixels))
        return encoder.derive_bases(self._image_bases(encoder, route), *self._differences(batch))

    def values(self, images: Tensor) -> Tensor:
        """uint8 to the values that the model sees, rounded exactly as `expand_frames` rounds them."""
        return to_values(images, self.spec).to(self.branch.stem.weight.dtype)

    @property
    def _size(self) -> tuple[int, int]:
        return self.spec.height, self.spec.width

    def _bases(self, batch: GroupBatch, frames: int, route: Route) -> tuple[Bases, Tensor | None]:
        """What the windows of frames lie on, and which of it each of B * T windows."""
        if self.group.base == "black":
            shape = (1, self.group.channels, *self._size)
            black = torch.zeros(shape, dtype=torch.uint8, device=batch.pixels.device)
            return self.encoder.even_base(self.values(black)), None
        if self.group.base == "images":
            assert batch.base_index is not None
            return self._image_bases(self.encoder, route), batch.base_index.repeat_interleave(frames)
        assert batch.background is not None
        owners = torch.arange(len(batch.pixels), device=batch.pixels.device).repeat_interleave(frames)
        return self.encoder.bases(self.values(batch.background)), owners

    def _differences(self, batch: GroupBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The windows in which static images differ from their bases, their corners, and the bases."""
        assert batch.corners is not None
        assert self.group.window is not None
        return self.values(_cut(batch.pixels, batch.corners, self.group.window)), batch.corners, batch.base_index

    def _image_bases(self, encoder: WindowEncoder, route: Route) -> Bases:
        """The data set's base images, encoded."""
        assert self.images is not None
        if route == "windows":
            return encoder.bases(self.values(self.images))
        assert self.nesting is not None
        shared = encoder.bases(self.values(self.nesting.shared))
        return encoder.derive_bases(shared, self.values(self.nesting.windows), self.nesting.corners)


class _Nesting(NamedTuple):
    """Base images as windows over the one image they share."""

    shared: Tensor  # uint8 [1, c, H, W]
    windows: Tensor  # uint8 [G, c, h, w]
    corners: Tensor  # int64 [G, 2]
    size: tuple[int, int]


def _find_nesting(bases: Tensor) -> _Nesting | None:
    """The pixelwise most frequent base, and the smallest window size in which each base differs from it.

    None for a single base, or none that differ.
    """
    shared = bases.mode(dim=0, keepdim=True).values
    differs = (bases != shared).any(dim=1)
    if not differs.any():
        return None
    corners, size = [], []
    for axis in (1, 2):
        along = differs.any(dim=3 - axis)  # [G, H] or [G, W]
        length = along.shape[1]
        pixels = torch.arange(length, device=bases.device)
        first = torch.where(along, pixels, length).min(dim=1).values
        last = torch.where(along, pixels, -1).max(dim=1).values
        size.append(int((last - first).max()) + 1)
        corners.append(first.clamp(max=length - size[-1]))
    window = (size[0], size[1])
    corner = torch.stack(corners, dim=1)
    return _Nesting(shared, _cut(bases, corner, window), corner, window)


def _cut(images: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, c, h, w] out of images [N, c, H, W], each at its corner."""
    rows, columns = (
        corners[:, axis, None].to(torch.int64) + torch.arange(size[axis], device=images.device) for axis in (0, 1)
    )
    image = torch.arange(images.shape[0], device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _listed(groups: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name}:{channels}" for name, channels in groups)
