"""Whether an encoder with shortcuts is the function that it is without; batches stored in other ways."""

from dataclasses import replace

import torch
from torch import Tensor

from jepa_fast.data.batches import Batch, GroupBases, GroupBatch, expand_group
from jepa_fast.data.manifest import ChannelGroup, FrameSpec
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder


def states_and_gradients(
    encoder: Encoder, batch_encoder: SparseEncoder, batch: Batch, clock: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    states = batch_encoder(batch, clock)
    probe = torch.randn(states.shape, generator=torch.Generator().manual_seed(7)).to(states.dtype)
    (states * probe + states.square() * probe.roll(1)).sum().backward()
    return states.detach(), {name: weight.grad.clone() for name, weight in encoder.named_parameters()}


def relative(got: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    return float((got - expected).norm() / max(float(expected.norm()), floor))


def assert_equal_to_plain(
    encoder: Encoder, batch: Batch, spec: FrameSpec, bases: GroupBases, rewrites: Rewrites
) -> None:
    """States to 1e-10, every gradient to 1e-10 of itself or of a thousandth of all gradients, in float64."""
    clock = new_clock(5)
    encoder.double()
    expected, truth = states_and_gradients(encoder, SparseEncoder(encoder, spec, bases, "off"), batch, clock)
    got, gradients = states_and_gradients(encoder, SparseEncoder(encoder, spec, bases, "auto", rewrites), batch, clock)
    assert relative(got, expected) < 1e-10
    floor = 1e-3 * float(torch.stack([gradient.norm() for gradient in truth.values()]).norm())
    assert floor > 0
    for name, gradient in gradients.items():
        assert relative(gradient, truth[name], floor) < 1e-10, name


def with_group(
    batch: Batch, spec: FrameSpec, name: str, part: GroupBatch, **changes: object
) -> tuple[Batch, FrameSpec]:
    """The batch and its spec with another content of one group, stored as `changes` of its `ChannelGroup` say."""
    number = spec.index(name)
    group = replace(spec.groups[number], **changes)  # type: ignore[arg-type]
    parts, groups = list(batch.groups), list(spec.groups)
    parts[number], groups[number] = part, group
    return batch._replace(groups=tuple(parts)), replace(spec, groups=tuple(groups))


def stored_dense(
    batch: Batch, spec: FrameSpec, name: str, pixels: Tensor | None = None, bases: GroupBases = ()
) -> tuple[Batch, FrameSpec]:
    """The same with every frame of a group stored whole, [B, T, c, H, W], or other frames in their place."""
    if pixels is None:
        pixels = images_of(batch, spec, name, bases)
    return with_group(batch, spec, name, GroupBatch(pixels.contiguous()), codec="dense", window=None, base=None)


def without_bases(batch: Batch, spec: FrameSpec, name: str) -> tuple[Batch, FrameSpec]:
    """The same with a static group stored without base images."""
    part = GroupBatch(batch.groups[spec.index(name)].pixels)
    return with_group(batch, spec, name, part, window=None, base=None)


def images_of(batch: Batch, spec: FrameSpec, name: str, bases: GroupBases = ()) -> Tensor:
    """Images uint8 [B, T, c, H, W] of a group."""
    number = spec.index(name)
    images = (bases or (None,) * len(spec.groups))[number]
    return expand_group(batch.groups[number], spec.groups[number], spec, batch.length, images)


def two_room_groups(window: int | None, wall_window: int | None) -> tuple[ChannelGroup, ChannelGroup]:
    """An agent in square windows over black, or dense; a static wall, over base images or not."""
    agent = ChannelGroup("agent", 1, "dense")
    if window is not None:
        agent = ChannelGroup("agent", 1, "window", (window, window), "black")
    wall = ChannelGroup("wall", 1, "static")
    if wall_window is not None:
        wall = replace(wall, window=(wall_window, wall_window), base="images")
    return agent, wall
