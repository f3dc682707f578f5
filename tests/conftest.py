import os
import sys
import threading
import time
import traceback

from tests.anywhere import hide

# `make test-elsewhere`: before anything is imported that looks what there is.
if "JEPA_FAST_SYSTEM" in os.environ:
    hide(os.environ["JEPA_FAST_SYSTEM"])

import pytest
import torch
from hypothesis import settings

from jepa_fast import platforms
from jepa_fast.data.two_rooms import SPLITS
from jepa_fast.generate import generate
from jepa_fast.kernels import extension
from tests.browsing import browser as browser
from tests.browsing import visit as visit

# Marks of tests that need a system of one kind.
SYSTEMS = {
    "posix": (platforms.is_posix(), "only POSIX systems have what it tries: signals, locks, links, fork"),
    "linux": (platforms.is_posix() and sys.platform == "linux", "only Linux has what it tries: /proc, its limits"),
}

# Before any test pretends that it is missing: ops registered without the extension cannot be registered by it later.
extension.load()

# No deadline: the first call of an op may compile or load a library. The same examples on every machine of the CI.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items):
    """Tests of a device are marked `gpu`, by hand or by a parameter "device", and left out where there is none.

    So are tests of what this system does not have.
    """
    for item in items:
        for name, (is_here, reason) in SYSTEMS.items():
            if item.get_closest_marker(name) and not is_here:
                item.add_marker(pytest.mark.skip(reason=reason))
        if hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda":
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


# Threads of libraries that outlive a test, by the module of their class, and why.
THREADS_OF_OTHERS = {
    "tqdm._monitor": "one for all bars, from the first bar that is shown to the end of the process",
}
GRACE_S = 60.0


def compiler_threads():
    """Workers of torch.compile's own pool: one, from the first compilation to the end of the process."""
    module = sys.modules.get("torch._inductor.async_compile")
    pool = None if module is None else module.AsyncCompile.pool
    return pool()._threads if pool is not None and pool.cache_info().currsize else set()


def threads_left(before):
    """Threads that were not there before, and are neither at their end nor a library's for good."""
    others = before | compiler_threads()
    return [
        thread
        for thread in threading.enumerate()
        # Python has not started a dummy: it is autograd's, one per GPU to the end of the process, and ran Python once.
        if thread not in others
        and not isinstance(thread, threading._DummyThread)
        and type(thread).__module__ not in THREADS_OF_OTHERS
    ]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Fails a test that leaves threads; what was dropped and not closed has GRACE_S to end by itself."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE_S
    while (left := threads_left(before)) and time.monotonic() < deadline:
        time.sleep(0.001)
    if left:
        frames = sys._current_frames()
        stacks = [f"{thread!r}\n{''.join(traceback.format_stack(frames.get(thread.ident)))}" for thread in left]
        pytest.fail("threads are left:\n" + "\n".join(stacks), pytrace=False)


@pytest.fixture(scope="session")
def two_rooms(tmp_path_factory):
    """A folder with all seven splits of the two-room world, small: 48 to train on, at most 80 in the probe sets."""
    folder = tmp_path_factory.mktemp("two_rooms")
    generate(folder, trajectories=48, splits=("train",), workers=1)
    generate(folder, trajectories=80, splits=tuple(name for name in SPLITS if name != "train"), workers=1)
    return folder


@pytest.fixture(scope="session")
def least_two_rooms(tmp_path_factory):
    """All seven splits again, the smallest sets that probes can be trained and scored on."""
    folder = tmp_path_factory.mktemp("least")
    generate(folder, trajectories=48, splits=("train",), workers=1)
    generate(folder, trajectories=72, splits=("probe_normal/train", "probe_expert/train"), workers=1)
    generate(folder, trajectories=8, splits=tuple(name for name in SPLITS if name.endswith("/val")), workers=1)
    return folder


@pytest.fixture(scope="session")
def walks(tmp_path_factory):
    """A folder with enough walks to learn from within seconds: 2,048 to train on, 256 in two probe sets."""
    folder = tmp_path_factory.mktemp("walks")
    generate(folder, trajectories=2048, splits=("train",), workers=1)
    generate(folder, trajectories=256, splits=("probe_normal/val", "probe_wall/val"), workers=1)
    return folder
