"""Encode only what can differ: a Batch to states, by the cheapest route that is exact for its data.

    agent   dense    every frame as a whole image
            windows  one black image, and per frame the window around the dot
    wall    dense    every frame as a whole image
            once     one whole image per trajectory, its state shared by all frames
            windows  the data set's base images, and per trajectory the window in which it differs from its base
            nested   one image of what all bases share, per base the window in which it differs, then as windows
    fusion  dense    every frame as a whole image of both channels
            windows  per trajectory an image of its wall alone, got as the wall's are, and the window around each dot

Routes are chosen by counted work. Which of them are exact is the packer's word: it stores a dot window only for frames
that are black outside it, a wall once only if it never changes, a wall group only if the wall equals its base outside
its window. A Batch that carries none of these goes the dense way.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jepa_fast.data.batches import Batch, expand_dots, expand_frames, expand_walls
from jepa_fast.data.shards import FrameSpec
from jepa_fast.models.convnext import Branch, Encoder
from jepa_fast.models.window_encoder import Bases, WindowEncoder
from jepa_fast.models.window_grid import REACH


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites may be used. All of them are exact; tests and benchmarks switch them one by one."""

    static_wall: bool = True
    windows: bool = True
    stem_collapse: bool = True
    early_pool: bool = True


class Plan(NamedTuple):
    """The route of each branch, and the forward FLOPs of the blocks' convolutions and matrix products."""

    agent: Literal["dense", "windows"]
    wall: Literal["dense", "once", "windows", "nested"]
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
        wall_bases: Tensor | None,
        mode: Literal["auto", "off"] = "auto",
        rewrites: Rewrites | None = None,
    ) -> None:
        """`wall_bases` uint8 [G, H, W] as the data set stores them, on the device of the batches; `mode` "off" is the
        plain encoder on whole frames.
        """
        if mode not in ("auto", "off"):
            raise ValueError(f"mode: got {mode!r}, expected 'auto' or 'off'")
        self.encoder = encoder
        self.spec = spec
        self.mode = mode
        self.rewrites = rewrites or Rewrites()
        self.wall_bases = wall_bases
        self.nesting = None if wall_bases is None else _find_nesting(wall_bases)
        self._agent = self._window_encoder(encoder.agent)
        self._wall = self._window_encoder(encoder.wall)
        if encoder.fusion is not None:
            self._fused_agent, self._fused_wall = (self._window_encoder(encoder.fusion, channel) for channel in (0, 1))

    def __call__(self, batch: Batch, clock: Tensor) -> Tensor:
        """What `Encoder` gives of a batch; T is the batch's own, so that a rollout can bring frame 0 alone."""
        count, frames = batch.dots.shape[:2]
        spec = replace(self.spec, frames=frames)
        dtype = self.encoder.agent.stem.weight.dtype
        if self.mode == "off":
            return self.encoder(expand_frames(batch, spec).to(dtype), clock)  # type: ignore[no-any-return]
        if self.encoder.is_apart and batch.walls.dim() == 4:
            batch = batch._replace(walls=batch.walls[:, 0])
        plan = self.plan(batch)
        agent = self._encode_agent(batch, spec, plan)
        wall = self._encode_wall(batch, spec, plan)
        fusion: Tensor | None = None
        if self.encoder.fusion is not None:
            fusion = self._encode_fusion(self.encoder.fusion, batch, spec, plan).view(count, frames, -1)
        wall = wall.view(count, -1, wall.shape[-1])
        return self.encoder.combine([agent.view(count, frames, -1), wall], clock, fusion)

    def plan(self, batch: Batch) -> Plan:
        """The cheapest exact routes for a batch: a function of its shapes alone."""
        count, frames = batch.dots.shape[:2]
        image = (self.spec.height, self.spec.width)
        blocks = len(self.encoder.agent.blocks)
        whole = blocks * image[0] * image[1]

        agent: dict[Literal["dense", "windows"], int] = {"dense": count * frames * whole}
        if self.rewrites.windows and batch.corners is not None and self.spec.window is not None:
            window = _window_pixels((self.spec.window, self.spec.window), image, blocks)
            agent["windows"] = whole + count * frames * window

        wall: dict[Literal["dense", "once", "windows", "nested"], int] = {"dense": count * frames * whole}
        if self.rewrites.static_wall and batch.walls.dim() == 3:
            wall = {"once": count * whole}
            side = self.spec.wall_window
            grouped = batch.wall_groups is not None and batch.wall_corners is not None
            if self.rewrites.windows and grouped and side is not None and self.wall_bases is not None:
                windows = count * _window_pixels((side, side), image, blocks)
                wall["windows"] = self.wall_bases.shape[0] * whole + windows
                if self.nesting is not None:
                    nested = _window_pixels(self.nesting.size, image, blocks)
                    wall["nested"] = whole + self.wall_bases.shape[0] * nested + windows

        best_agent, best_wall = min(agent, key=agent.__getitem__), min(wall, key=wall.__getitem__)
        pixels, plain_pixels = agent[best_agent] + wall[best_wall], 2 * count * frames * whole
        best_fusion: Literal["dense", "windows"] | None = None
        if self.encoder.fusion is not None:
            dense = count * frames * whole
            # Of the agent's route all but its base, which here are the walls.
            windows = agent["windows"] - whole + wall[best_wall] if "windows" in agent else dense
            best_fusion = "windows" if windows < dense and best_wall != "dense" else "dense"
            pixels, plain_pixels = pixels + (windows if best_fusion == "windows" else dense), plain_pixels + dense
        channels = self.encoder.agent.stem.out_channels
        per_pixel = 2 * channels * (49 + 8 * channels)
        return Plan(best_agent, best_wall, per_pixel * pixels, per_pixel * plain_pixels, best_fusion)

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by, and why."""
        if self.mode == "off":
            return "encoder: exact shortcuts off, every frame is encoded whole"
        plan = self.plan(batch)
        share = 100 * plan.flops / plan.plain_flops
        reasons = []
        if batch.corners is None:
            reasons.append("frames are packed whole")
        if batch.walls.dim() == 4:
            reasons.append("walls change over time")
        elif batch.wall_groups is None or self.wall_bases is None:
            reasons.append("walls are packed without bases")
        because = f" ({'; '.join(reasons)})" if reasons else ""
        routes = f"agent {plan.agent}, wall {plan.wall}" + (f", fusion {plan.fusion}" if plan.fusion else "")
        return f"encoder: {routes}{because}: {share:.1f}% of the plain encoder's FLOPs"

    def _encode_agent(self, batch: Batch, spec: FrameSpec, plan: Plan) -> Tensor:
        """Agent states [B * T, D]."""
        if plan.agent == "dense":
            return self._dense(self._agent, expand_dots(batch, spec).flatten(0, 1))
        assert batch.corners is not None
        black = torch.zeros(1, spec.height, spec.width, dtype=torch.uint8, device=batch.dots.device)
        bases = self._agent.bases(self._pixels(black))
        return self._agent(bases, self._pixels(batch.dots.flatten(0, 1)), batch.corners.flatten(0, 1))

    def _encode_wall(self, batch: Batch, spec: FrameSpec, plan: Plan) -> Tensor:
        """Wall states [B, D], or [B * T, D] where every frame is encoded."""
        if plan.wall == "dense":
            return self._dense(self._wall, expand_walls(batch).flatten(0, 1))
        if plan.wall == "once":
            return self._dense(self._wall, batch.walls)
        return self._wall(self._wall_bases(self._wall, plan), *self._wall_windows(batch, spec))

    def _encode_fusion(self, branch: Branch, batch: Batch, spec: FrameSpec, plan: Plan) -> Tensor:
        """States [B * T, D] of both channels: every wall is a base of its own, in which the dot is what differs."""
        if plan.fusion == "dense":
            states: Tensor = branch(expand_frames(batch, spec).to(branch.stem.weight.dtype).flatten(0, 1))
            return states
        assert batch.corners is not None
        count, frames = batch.dots.shape[:2]
        encoder = self._fused_wall
        if plan.wall == "once":
            walls = encoder.bases(self._pixels(batch.walls))
        else:
            walls = encoder.derive_bases(self._wall_bases(encoder, plan), *self._wall_windows(batch, spec))
        bases = walls._replace(images=torch.zeros_like(walls.images))
        groups = torch.arange(count, device=batch.dots.device).repeat_interleave(frames)
        return self._fused_agent(bases, self._pixels(batch.dots.flatten(0, 1)), batch.corners.flatten(0, 1), groups)

    def _wall_windows(self, batch: Batch, spec: FrameSpec) -> tuple[Tensor, Tensor, Tensor | None]:
        """The windows in which walls differ from their bases, their corners, and the bases."""
        assert batch.wall_corners is not None
        assert spec.wall_window is not None
        windows = self._pixels(_cut(batch.walls, batch.wall_corners, (spec.wall_window, spec.wall_window)))
        return windows, batch.wall_corners, batch.wall_groups

    def _wall_bases(self, encoder: WindowEncoder, plan: Plan) -> Bases:
        """The data set's base images, encoded."""
        assert self.wall_bases is not None
        if plan.wall == "windows":
            return encoder.bases(self._pixels(self.wall_bases))
        assert self.nesting is not None
        shared = encoder.bases(self._pixels(self.nesting.shared))
        return encoder.derive_bases(shared, self._pixels(self.nesting.windows), self.nesting.corners)

    def _dense(self, encoder: WindowEncoder, images: Tensor) -> Tensor:
        return encoder.dense(self._pixels(images))

    def _pixels(self, images: Tensor) -> Tensor:
        """uint8 to the values that the model sees, rounded exactly as `expand_frames` rounds them."""
        return (images.to(torch.float32) * self.spec.scale).to(self.encoder.agent.stem.weight.dtype)

    def _window_encoder(self, branch: Branch, channel: int = 0) -> WindowEncoder:
        return WindowEncoder(branch, self.rewrites.stem_collapse, self.rewrites.early_pool, channel)


class _Nesting(NamedTuple):
    """Base images as windows over the one image they share."""

    shared: Tensor  # uint8 [1, H, W]
    windows: Tensor  # uint8 [G, h, w]
    corners: Tensor  # int64 [G, 2]
    size: tuple[int, int]


def _find_nesting(bases: Tensor) -> _Nesting | None:
    """The pixelwise most frequent base, and the smallest window size in which each base differs from it.

    None for a single base, or none that differ.
    """
    shared = bases.mode(dim=0, keepdim=True).values
    differs = bases != shared
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
    """[N, h, w] out of images [N, H, W], each at its corner."""
    rows, columns = (
        corners[:, axis, None].to(torch.int64) + torch.arange(size[axis], device=images.device) for axis in (0, 1)
    )
    image = torch.arange(images.shape[0], device=images.device)
    return images[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def _window_pixels(size: tuple[int, int], image: tuple[int, int], blocks: int) -> int:
    """Pixels that a window makes the blocks compute, summed over the blocks."""
    total = 0
    for after in range(1, blocks + 1):
        height, width = (
            length if length == limit else length + 2 * REACH * after for length, limit in zip(size, image, strict=True)
        )
        total += height * width
    return total
