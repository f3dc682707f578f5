"""Flips: what the simulator makes of mirrored starts and actions, exact for shortcuts, drawn by a hash."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jepa_fast.data.batches import Batch, GroupBatch
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import WORLD, render_dots, render_walls, simulate, step
from jepa_fast.data.two_rooms.flips import Flips
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.kernels.scene import read_centres, read_layout
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.sparse_encoder import Rewrites
from tests.models.conftest import draw_batch
from tests.models.exactness import assert_equal_to_plain, images_of, stored_dense, two_room_groups

AXES = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
LAST = WORLD.size - 1


@pytest.fixture
def drawn():
    return draw_batch


def flipped_images(images, axes):
    """Images [B, ..., H, W], each row flipped by itself."""
    dims = [[dim for dim, is_flipped in ((-1, x), (-2, y)) if is_flipped] for x, y in axes.tolist()]
    return torch.stack([image.flip(dim) for image, dim in zip(images, dims, strict=True)])


def simulated():
    """Walks and pushes on a grid of 2^-10 pixels, on which mirroring and moving round nothing: fields, moves made."""
    parts = [simulate(split, 0, 128, seed=1) for split in ("probe_normal/val", "probe_wall/val")]
    locations, actions, wall_x, door_y = (np.concatenate(field) for field in zip(*parts, strict=True))
    start, actions = (np.rint(field * 1024) / 1024 for field in (locations[:, 0], actions))
    return follow(start.astype(np.float32), actions.astype(np.float32), wall_x, door_y)


def follow(start, actions, wall_x, door_y):
    locations = [start]
    for time in range(actions.shape[1]):
        locations.append(step(locations[-1], actions[:, time], wall_x, door_y))
    return np.stack(locations, axis=1), actions, wall_x, door_y


@pytest.mark.parametrize("axes", AXES[1:].tolist())
def test_flipped_trajectories_are_those_that_the_simulator_makes_bit_for_bit(axes):
    locations, actions, wall_x, door_y = simulated()
    blocked = (locations[:, 1:] == locations[:, :-1]).all(axis=-1)
    assert 0.05 < blocked.mean() < 0.95
    signs = np.where(axes, -1, 1).astype(np.float32)

    def mirrored(points):
        return np.where(axes, LAST - points, points)

    walls = mirrored(wall_x[:, None])[:, 0], mirrored(door_y[:, None])[:, 1]
    there, *_ = follow(mirrored(locations[:, 0]), actions * signs, *walls)
    np.testing.assert_array_equal(there, mirrored(locations))

    images = torch.from_numpy(render_dots(locations)), torch.from_numpy(render_walls(wall_x, door_y))
    groups = GroupBatch(images[0][:, :, None]), GroupBatch(images[1][:, None])
    batch = Batch(torch.arange(len(actions)), groups, torch.from_numpy(actions))
    size = (locations.shape[1], WORLD.size, WORLD.size)
    spec = FrameSpec(*size, WORLD.scale, two_room_groups(None, None), 2, (("locations", 2),))
    flipped = Flips(spec).flip(batch, torch.tensor(axes).expand(len(actions), 2))
    assert torch.equal(flipped.groups[0].pixels[:, :, 0], torch.from_numpy(render_dots(there)))
    assert torch.equal(flipped.groups[1].pixels[:, 0], torch.from_numpy(render_walls(*walls)))
    assert torch.equal(flipped.actions, torch.from_numpy(actions * signs))


def share_of_moves_off(dots, walls, actions):
    """Of the moves that frames show, those that end elsewhere than the simulator says, read from pixels."""
    centres, layout = read_centres(dots).numpy(), read_layout(walls).numpy()
    wall_x, door_y = layout[:, 1].mean(axis=-1).T
    predicted = step(centres[:, :-1], actions.numpy(), wall_x[:, None], door_y[:, None])
    return float((abs(predicted - centres[:, 1:]).max(axis=-1) > 0.1).mean())


def shifted(images, pixels):
    """Images moved right and down, what leaves them cut off."""
    return F.pad(images, (pixels, 0, pixels, 0))[..., : images.shape[-2], : images.shape[-1]]


def enlarged(images):
    """The middle 49 x 49 pixels, as large as the image was."""
    return F.interpolate(images[..., 8:-8, 8:-8].float().flatten(0, -3)[:, None], images.shape[-2:]).view(images.shape)


def test_lone_flips_shifts_and_crops_are_not_what_the_simulator_does():
    locations, actions, wall_x, door_y = simulated()
    dots, walls = torch.from_numpy(render_dots(locations)), torch.from_numpy(render_walls(wall_x, door_y))
    actions = torch.from_numpy(actions)
    left_right, upside_down = (torch.tensor(signs) for signs in ((-1.0, 1.0), (1.0, -1.0)))
    assert share_of_moves_off(dots, walls, actions) == 0
    for dim, signs in ((-1, left_right), (-2, upside_down)):
        assert share_of_moves_off(dots.flip(dim), walls.flip(dim), actions * signs) == 0
        assert share_of_moves_off(dots.flip(dim), walls.flip(dim), actions) > 0.3
        assert share_of_moves_off(dots, walls, actions * signs) > 0.3
        assert share_of_moves_off(dots.flip(dim), walls, actions * signs) > 0.05
    assert share_of_moves_off(shifted(dots, 3), walls, actions) > 0.2
    assert share_of_moves_off(shifted(dots, 3), shifted(walls, 3), actions) > 0.2
    assert share_of_moves_off(enlarged(dots), enlarged(walls), actions) > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_batch_is_its_flipped_images_and_keeps_windows_and_bases_exact(drawn, seed):
    batch, spec, bases = drawn(seed, trajectories=4, frames=3)
    flips = Flips(spec, bases)
    flipped = flips.flip(batch, AXES)
    agents = images_of(batch, spec, "agent")
    assert torch.equal(images_of(flipped, spec, "agent"), flipped_images(agents, AXES))
    wall, spec_of_wall = flipped.groups[1], spec.groups[1]
    assert torch.equal(wall.pixels, flipped_images(batch.groups[1].pixels, AXES))
    signs = 1 - 2 * AXES[:, None].to(torch.float32)
    assert torch.equal(flipped.actions, batch.actions * signs)
    # Outside its window a flipped wall is its base still.
    differs = wall.pixels != flips.bases[1][wall.base_index.long()]
    height, width = spec_of_wall.window
    for image, (row, column) in zip(differs, wall.corners.tolist(), strict=True):
        image[:, row : row + height, column : column + width] = False
    assert not differs.any()
    # What nobody flips keeps its numbers.
    assert torch.equal(flips.bases[1][: len(bases[1])], bases[1])
    types = [
        {name: tensor.dtype for name, tensor in each.tensors().items() if tensor is not None}
        for each in (batch, flipped)
    ]
    assert types[0] == types[1]
    torch.manual_seed(0)
    assert_equal_to_plain(Encoder(4, 2, 8, dropout=0.1), flipped, spec, flips.bases, Rewrites())


def test_walls_that_change_over_time_are_flipped_in_every_frame(drawn):
    batch, spec, _ = drawn(0, trajectories=4, frames=3)
    once = batch.groups[1].pixels
    walls = torch.stack([once, once.roll(1, dims=0), once], dim=1)
    batch, spec = stored_dense(batch, spec, "wall", walls)
    flipped = Flips(spec).flip(batch, AXES)
    assert torch.equal(flipped.groups[1].pixels, flipped_images(walls, AXES))


def test_the_twenty_bases_of_two_rooms_become_twenty_five(tmp_path):
    pack(TwoRoomsSource("train", 1024, seed=0), tmp_path)
    split = open_split(tmp_path)
    bases = group_bases(split)
    flips = Flips(split.spec, bases)
    assert (len(bases[1]), len(flips.bases[1])) == (20, 25)
    batch = gather(split, np.arange(64))
    for axes in AXES:
        flipped = flips.flip(batch, axes.expand(64, 2))
        wall = flipped.groups[1]
        assert torch.equal(wall.pixels, flipped_images(batch.groups[1].pixels, axes.expand(64, 2)))
        differs = wall.pixels != flips.bases[1][wall.base_index.long()]
        assert differs.flatten(1).sum(dim=1).max() == 27  # the door: three columns of nine


def test_flips_are_fresh_in_every_step_fair_and_the_same_for_any_number_of_processes(drawn):
    batch, spec, bases = drawn(0, trajectories=600, frames=2)
    flips = Flips(spec, bases)

    def signs(step, first_row=0, rows=600):
        rows = slice(first_row, first_row + rows)
        part = Batch.of({name: None if field is None else field[rows] for name, field in batch.tensors().items()})
        return (flips(part, torch.tensor([7, step, first_row])).actions / part.actions)[:, 0]

    whole = signs(3)
    assert torch.equal(signs(3), whole)
    assert torch.equal(torch.cat([signs(3, 0, 200), signs(3, 200, 400)]), whole)
    steps = torch.cat([signs(step) for step in range(20)])
    # 12,000 tosses of each coin, and whether both agree: five standard errors.
    assert abs(torch.stack([*steps.T, steps.prod(dim=1)]).mean(dim=1)).max() < 5 / 12_000**0.5
    assert abs((signs(4) * whole).mean(dim=0)).max() < 5 / 600**0.5
