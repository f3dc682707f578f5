import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from jepa_fast.engine.record import processor
from jepa_fast.kernels import extension

HERE = Path(__file__).parent
COPY_BYTES = 256 * 2**20  # far beyond any cache


def device_clock() -> float:
    """Seconds, read after the device has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Time every benchmark here with the clock that waits for the device, unless its mark names another."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        mark = item.get_closest_marker("benchmark")
        if mark is None:
            item.add_marker(pytest.mark.benchmark(timer=device_clock))
        else:
            mark.kwargs.setdefault("timer", device_clock)


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def described(request: pytest.FixtureRequest, device: str) -> Iterator[None]:
    """Put into every benchmark's extra_info what scripts/bench_table.py reads.

    Candidates of one `group` are compared with each other. The parameter that tells them apart is called "candidate"
    or "name"; its values that begin with "jepa_fast" or "ours" are ours, all others are baselines.
    """
    if "benchmark" not in request.fixturenames:
        yield
        return
    benchmark = request.getfixturevalue("benchmark")
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    candidate = str(parameters.get("candidate", parameters.get("name", "")))
    threads = torch.get_num_threads()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        # Speed-ups on one core are not those on eight: what is measured is so many threads of a processor.
        instructions = {"avx512": " AVX-512", "avx2": " AVX2", "neon": " NEON"}.get(extension.instruction_set(), "")
        name = f"{processor()}{instructions}, {threads} {'thread' if threads == 1 else 'threads'}"
    benchmark.extra_info |= {
        "candidate": candidate,
        "is_ours": candidate.startswith(("jepa_fast", "ours")),
        "device": name,
        "torch": torch.__version__,
        "threads": threads,
    }
    if device == "cpu":
        benchmark.extra_info["instruction_set"] = extension.instruction_set()
    yield
    # A line as it ends, for whoever runs out of time before the last.
    place = os.environ.get("JEPA_FAST_BENCH_LINES")
    if place and benchmark.stats is not None:
        stats = benchmark.stats.stats
        times = {"median_ms": 1e3 * stats.median, "best_ms": 1e3 * stats.min, "rounds": stats.rounds}
        line = {"benchmark": request.node.nodeid, "group": benchmark.group} | times | benchmark.extra_info
        with Path(place).open("a") as lines:
            print(json.dumps(line), file=lines)


@pytest.fixture(scope="session")
def copy_gb_s(device: str) -> float:
    """Bytes read and written per second, in GB/s, by copying a large tensor: the most an op can move here and now."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_s = float("inf")
    # The first copies touch the pages and are left out.
    for repeat in range(12):
        start = device_clock()
        target.copy_(source)
        if repeat >= 2:
            best_s = min(best_s, device_clock() - start)
    return 2 * COPY_BYTES / best_s / 1e9


@pytest.fixture(scope="session")
def peak_flops(device: str) -> float | None:
    """FLOPs per second of multiply-adds from registers, on all threads: the most a CPU kernel can do here and now."""
    if device != "cpu" or extension.load() is not None:
        return None
    best = 0.0
    for _ in range(12):
        start = time.perf_counter()
        flops = torch.ops.jepa_fast.multiply_adds(2_000_000)
        best = max(best, flops / (time.perf_counter() - start))
    return best


@pytest.fixture
def report_flops(benchmark, peak_flops: float | None) -> Callable[[float], None]:
    """Add to a finished benchmark what its median means for an op of so many FLOPs."""

    def add(flops: float) -> None:
        if benchmark.stats is not None and peak_flops is not None:
            gflops = flops / benchmark.stats.stats.median / 1e9
            percent = round(100 * gflops * 1e9 / peak_flops, 1)
            benchmark.extra_info |= {"gflops": round(gflops, 1), "percent_of_peak": percent}

    return add


@pytest.fixture
def report(benchmark, copy_gb_s: float) -> Callable[[int], None]:
    """Add to a finished benchmark what its median means for an op that moves `bytes_moved`."""

    def add(bytes_moved: int) -> None:
        if benchmark.stats is not None:
            gb_s = bytes_moved / benchmark.stats.stats.median / 1e9
            benchmark.extra_info |= {"gb_s": round(gb_s, 2), "percent_of_copy": round(100 * gb_s / copy_gb_s, 1)}

    return add
