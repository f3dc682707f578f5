"""What benchmarks share that time a step of an op: forward, backward or both."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]


def captured(make: Callable[[], Step]) -> Step:
    """The step that `make` gives, as a CUDA graph; its results stay where they are.

    Whatever `make` runs, a forward whose backward is the step for one, runs on the stream of the capture, as it must.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step = make()
        for _ in range(3):
            step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        results = step()
    torch.cuda.current_stream().wait_stream(side)

    def replay() -> Any:
        graph.replay()
        return results

    return replay


def costs(step: Step, device: str) -> dict[str, float]:
    """Launches and peak memory on a GPU; on a CPU the bytes that one step asks the allocator for."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak_mb = (torch.cuda.max_memory_allocated() - before) / 1e6
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize()
        kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return {"peak_mb": round(peak_mb, 1), "launches": len(kernels)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return {"allocated_mb": round(sum(max(0, e.self_cpu_memory_usage) for e in profiler.events()) / 1e6, 1)}
