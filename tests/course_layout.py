"""Two-room trajectories in the course layout, as files."""

import numpy as np

from jepa_fast.data.two_rooms.source import TwoRoomsSource


def course_arrays(count=30, seed=0):
    """Two-room trajectories as bytes in the course layout: states, actions, locations."""
    chunk = TwoRoomsSource("train", count, seed).chunk(0, count)
    agents, walls = chunk.groups
    walls = np.broadcast_to(walls[:, None], agents.shape)
    return np.concatenate([agents, walls], axis=2), chunk.actions, chunk.targets[0]


def save(folder, states, actions, locations=None):
    """The files as keyword arguments of `convert`."""
    folder.mkdir(exist_ok=True)
    files = {"states": states, "actions": actions, "locations": locations}
    for name, array in files.items():
        if array is not None:
            np.save(folder / f"{name}.npy", array)
    return {name: folder / f"{name}.npy" for name, array in files.items() if array is not None}
