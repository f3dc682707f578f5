"""When a step is run, captured and replayed; with the calls of CUDA replaced, so that it runs anywhere."""

import contextlib
import logging

import pytest
import torch

from jepa_fast.engine.graph import CapturedStep


@pytest.fixture
def cuda(monkeypatch):
    """CUDA's part, on the host: a graph records the step that is given while it captures, and does it when replayed."""

    class Cuda:
        capturing: "Graph | None" = None
        refuses = False

    class Graph:
        work = None

        def replay(self):
            self.work()

    class Stream:
        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def graph(target, stream, capture_error_mode):
        assert isinstance(stream, Stream)
        # The loader's thread calls CUDA meanwhile.
        assert capture_error_mode == "thread_local"
        if Cuda.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        Cuda.capturing = target
        try:
            yield
        finally:
            Cuda.capturing = None

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return Cuda


@pytest.fixture
def step(cuda):
    """Adds 1 to a tensor that stays in place; while a capture is on, it only notes what to do."""
    total = torch.zeros(1)

    def run():
        run.calls += 1
        if cuda.capturing is None:
            total.add_(1)
        else:
            cuda.capturing.work = lambda: total.add_(1)
        return total

    run.calls = 0
    return run


def test_every_call_is_one_step_and_after_the_warm_ups_python_runs_no_more(step):
    captured = CapturedStep(step, warm_ups=3)
    results = [float(captured()) for _ in range(10)]
    assert results == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert step.calls == 4  # three warm-ups, one capture


def test_a_capture_that_fails_is_told_once_and_steps_go_on(step, cuda, caplog):
    cuda.refuses = True
    captured = CapturedStep(step, warm_ups=2)
    with caplog.at_level(logging.WARNING):
        assert [float(captured()) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert step.calls == 6
    assert caplog.messages == [
        "capture: given up, steps are launched one kernel at a time (operation not permitted when stream is capturing)"
    ]
