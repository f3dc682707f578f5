"""Errors by how close the dot was to something solid, against geometry and by hand."""

import numpy as np
import pytest
import torch

from jepa_fast.data.host import gather
from jepa_fast.data.shards import open_split
from jepa_fast.probing import distance
from jepa_fast.probing.distance import EDGES, distances_to_solid, errors_by_distance


def test_distances_are_those_to_the_nearest_solid_pixel(two_rooms, monkeypatch):
    split = open_split(two_rooms / "probe_wall" / "val")
    monkeypatch.setattr(distance, "BATCH", 32)
    found = distances_to_solid(split)
    locations = split.targets("locations", np.arange(split.count)).astype(np.float64)
    walls = gather(split, np.arange(split.count)).groups[1].pixels[:, 0].numpy()
    rows, columns = np.mgrid[:65, :65]
    for trajectory, frame in ((0, 0), (7, 16), (79, 3)):
        x, y = locations[trajectory, frame]
        apart = np.hypot(columns - x, rows - y)[walls[trajectory] > 0]
        assert found[trajectory, frame] == pytest.approx(apart.min(), abs=1e-4)
    # Nobody is in the wall; somebody pushes against it.
    assert 0 < found.min() < 1.5
    assert found.shape == (80, 17)


def test_where_nothing_is_solid_the_distance_is_infinite_and_in_the_last_bin():
    assert distance._nearest(torch.zeros(3, 2), torch.zeros(5, 5)).tolist() == [torch.inf] * 3
    (only,) = errors_by_distance(torch.full((1, 3), torch.inf), torch.ones(1, 3), torch.ones(1, 3))
    assert (only.low_px, only.frames) == (EDGES[-1], 3)


def test_bins_hold_the_means_of_their_frames_and_empty_ones_are_left_out():
    distances = torch.tensor([[0.0, 0.999, 1.0], [3.9, 4.0, 20.0]])
    official, converged = torch.tensor([[1.0, 3.0, 5.0], [7.0, 9.0, 11.0]]), torch.arange(6.0).view(2, 3)
    bins = errors_by_distance(distances, official, converged)
    assert [(one.low_px, one.frames, one.official, one.converged) for one in bins] == [
        (0.0, 2, 2.0, 0.5), (1.0, 1, 5.0, 2.0), (2.0, 1, 7.0, 3.0), (4.0, 1, 9.0, 4.0), (16.0, 1, 11.0, 5.0),
    ]  # fmt: skip
