"""Tests here need the device of guard.cpp: `tests/test_fake_cuda.py` runs them, in a process of its own."""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("JEPA_FAST_FAKE_CUDA") == "1" else ["test_*.py"]


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA device that does nothing."""
    from tests.fake_cuda.device import pretend

    pretend(monkeypatch)


@pytest.fixture(scope="session")
def walls(tmp_path_factory):
    """A folder with walks whose walls lie on 20 base images, as those of the full data set do."""
    from jepa_fast.generate import generate

    folder = tmp_path_factory.mktemp("walls")
    generate(folder, trajectories=512, splits=("train",), workers=1)
    return folder
