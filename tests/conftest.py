import os

import pytest
import torch
from hypothesis import settings

from jepa_fast.data.two_rooms import SPLITS
from jepa_fast.generate import generate

# No deadline: the first call of an op may compile or load a library. The same examples on every machine of the CI.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items):
    """Tests of a device are marked `gpu`, by hand or by a parameter "device", and left out where there is none."""
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda":
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(scope="session")
def two_rooms(tmp_path_factory):
    """A folder with all seven splits of the two-room world, small: 48 to train on, at most 80 in the probe sets."""
    folder = tmp_path_factory.mktemp("two_rooms")
    generate(folder, trajectories=48, splits=("train",), workers=1)
    generate(folder, trajectories=80, splits=tuple(name for name in SPLITS if name != "train"), workers=1)
    return folder


@pytest.fixture(scope="session")
def walks(tmp_path_factory):
    """A folder with enough walks to learn from within seconds: 2,048 to train on, 256 in two probe sets."""
    folder = tmp_path_factory.mktemp("walks")
    generate(folder, trajectories=2048, splits=("train",), workers=1)
    generate(folder, trajectories=256, splits=("probe_normal/val", "probe_wall/val"), workers=1)
    return folder
