"""What is read from pixels, against what was drawn."""

import numpy as np
import pytest
import torch

from jepa_fast.data.batches import expand_pixels
from jepa_fast.data.host import evaluation_batches
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import SPLITS, WORLD, render_dots, render_walls
from jepa_fast.kernels.scene import read_centres, read_layout

COLUMNS = (*WORLD.wall_columns, *WORLD.held_out_wall_columns)
# From a door that touches the near border to one that touches the far border.
ROWS = range(WORLD.borders[0] + 1 + WORLD.door_half_height, WORLD.borders[1] - WORLD.door_half_height)


@pytest.mark.parametrize("name", SPLITS)
def test_centres_are_where_the_simulator_put_the_dot(two_rooms, name):
    split = open_split(two_rooms / name)
    locations = torch.from_numpy(split.targets("locations", np.arange(split.count)))
    for batch in evaluation_batches(split, split.count):
        found = read_centres(batch.groups[0].pixels[:, :, 0], batch.groups[0].corners)
        whole = read_centres(expand_pixels(batch, split.spec)[:, :, 0])
    assert (found - locations).abs().max() < 0.02
    torch.testing.assert_close(whole, found, rtol=0, atol=1e-5)


def test_centres_hold_at_borders_and_between_pixels():
    places = np.stack(np.meshgrid(np.linspace(4, 60, 113), np.linspace(4, 60, 113)), axis=-1).reshape(1, -1, 2)
    dots = torch.from_numpy(render_dots(places.astype(np.float32)))
    assert (read_centres(dots) - torch.from_numpy(places)).abs().max() < 0.02
    # The same of float frames, on whatever scale.
    torch.testing.assert_close(read_centres(dots * WORLD.scale), read_centres(dots), rtol=0, atol=1e-4)


@pytest.mark.parametrize("convert", [lambda walls: walls, lambda walls: walls * WORLD.scale])
def test_layouts_are_exact_for_every_wall_and_every_door(convert):
    wall_x, door_y = np.meshgrid(np.array(COLUMNS), np.array(ROWS))
    walls = torch.from_numpy(render_walls(wall_x.ravel(), door_y.ravel()))
    layout = read_layout(convert(walls))
    expected = torch.empty(walls.shape[0], 2, 2, 2)
    expected[:, 0] = torch.tensor(WORLD.borders, dtype=torch.float32)
    for axis, (middle, half) in enumerate(((wall_x, WORLD.wall_half_width), (door_y, WORLD.door_half_height))):
        expected[:, 1, axis, 0] = torch.from_numpy(middle.ravel() - half)
        expected[:, 1, axis, 1] = torch.from_numpy(middle.ravel() + half)
    assert torch.equal(layout, expected)


def test_other_borders_walls_and_doors_are_read_as_they_are():
    walls = torch.zeros(1, 40, 50)
    walls[0, 2], walls[0, 37], walls[0, :, 1], walls[0, :, 44] = 1, 1, 1, 1
    walls[0, :, 20:25] = 1
    walls[0, 30:33, 20:25] = 0
    assert read_layout(walls).tolist() == [[[[1, 44], [2, 37]], [[20, 24], [30, 32]]]]


def test_what_is_not_there_lies_outside_of_the_frame():
    empty = torch.zeros(1, 40, 50)
    assert read_layout(empty).tolist() == [[[[-50, 100], [-40, 80]], [[100, 100], [0, 39]]]]
    closed = empty.clone()
    closed[0, :, 20] = 1
    closed[0, :, 3], closed[0, :, 47] = 1, 1
    assert read_layout(closed)[0, 1].tolist() == [[20, 20], [80, 80]]
    assert read_layout(torch.zeros(0, 40, 50)).shape == (0, 2, 2, 2)
    assert read_centres(torch.zeros(1, 5, 5), torch.tensor([[3, 7]])).tolist() == [[7, 3]]
