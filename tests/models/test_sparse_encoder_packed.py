"""From pixels to the route: what the packer finds decides what is encoded; frames that are not sparse stay whole."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from jepa_fast.data.batches import Batch
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.data.sources import Chunk, SourceGroup
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.sparse_encoder import SparseEncoder

SIDE, FRAMES, COUNT = 30, 3, 8


@dataclass(frozen=True)
class Fixed:
    """A source with the given dots."""

    dots: np.ndarray
    count: int = COUNT
    frames: int = FRAMES
    height: int = SIDE
    width: int = SIDE
    scale: float = 1 / 2700
    offset: float = 0.0
    groups: tuple[SourceGroup, ...] = (SourceGroup("agent", 1), SourceGroup("wall", 1))
    action_size: int = 2
    targets: tuple[tuple[str, int], ...] = ()
    lengths: None = None
    is_plain: bool = False

    @property
    def description(self) -> dict[str, Any]:
        return {"sum": int(self.dots.sum())}

    def chunk(self, start: int, stop: int) -> Chunk:
        walls = np.zeros((COUNT, SIDE, SIDE), np.uint8)
        walls[:, :, 12] = 255
        actions = np.zeros((COUNT, FRAMES - 1, 2), np.float32)
        return Chunk((self.dots[start:stop, :, None], walls[start:stop, None]), actions[start:stop])


def dots(kind: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    frames = np.zeros((COUNT, FRAMES, SIDE, SIDE), np.uint8)
    # Never twice in one place, for what most frames show would be taken for a background.
    for step in range(FRAMES):
        frames[:, step, 5 * step + 10 : 5 * step + 14, 20:24] = 200
    if kind == "noise":
        frames[3, 1] = generator.integers(0, 256, (SIDE, SIDE))
    elif kind == "one stray pixel":
        frames[7, 2, 29, 0] = 1
    elif kind == "two dots":
        for step in range(FRAMES):
            frames[:, step, 25:28, 3 * step + 2 : 3 * step + 5] = 90
    elif kind == "a dot as large as the room":
        frames[0, 0, 2:28, 2:28] = 120
    return frames


def encode(folder, source, size=COUNT):
    """The batch, and its states with and without shortcuts in float64."""
    pack(source, folder)
    split = open_split(folder)
    batch = gather(split, np.arange(size))
    torch.manual_seed(0)
    encoder = Encoder(16, 2, 32, dropout=0.1).double().requires_grad_(False)
    ours, plain = (SparseEncoder(encoder, split.spec, group_bases(split), mode) for mode in ("auto", "off"))
    return ours.plan(batch), batch, ours(batch, new_clock()), plain(batch, new_clock())


@pytest.mark.parametrize("kind", ["noise", "one stray pixel", "two dots", "a dot as large as the room"])
def test_frames_that_are_not_black_outside_a_window_are_never_encoded_by_windows(tmp_path, kind):
    plan, batch, ours, plain = encode(tmp_path, Fixed(dots(kind)))
    assert batch.groups[0].corners is None
    assert plan.groups[0] == "dense"
    assert float((ours - plain).norm() / plain.norm()) < 1e-10


def test_the_same_frames_without_the_fault_are_encoded_by_windows(tmp_path):
    plan, _, ours, plain = encode(tmp_path, Fixed(dots("clean")))
    assert plan.groups[0] == "windows"
    assert float((ours - plain).norm() / plain.norm()) < 1e-10


def test_two_rooms_take_every_shortcut_and_the_states_are_equal(tmp_path):
    plan, batch, ours, plain = encode(tmp_path, TwoRoomsSource("train", 512, seed=3), size=2)
    assert plan.groups[0] == "windows"
    assert float((ours - plain).norm() / plain.norm()) < 1e-10
    # Two walls are cheapest whole; from a dozen on, windows over nested bases are.
    more = Batch.of(
        {name: None if part is None else part.repeat_interleave(12, 0) for name, part in batch.tensors().items()}
    )
    split = open_split(tmp_path)
    encoder = Encoder(16, 2, 32, dropout=0.0)
    assert SparseEncoder(encoder, split.spec, group_bases(split)).plan(more).groups[1] == "nested"
