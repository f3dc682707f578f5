"""When a step is run, captured and replayed; with the calls of CUDA replaced, so that it runs anywhere."""

import contextlib
import logging
import re

import pytest
import torch

from jepa_fast.data.batches import to_values
from jepa_fast.engine.graph import CapturedStep


@pytest.fixture
def cuda(monkeypatch):
    """CUDA's part, on the host: a graph records the step that is given while it captures, and does it when replayed."""

    class Cuda:
        capturing: "Graph | None" = None
        stream: "Stream | None" = None

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
        Cuda.capturing, before, Cuda.stream = target, Cuda.stream, stream
        try:
            yield
        except BaseException as error:
            # What torch does: the end of the capture is tried first, fails, and the stream stays.
            raise RuntimeError("operation failed due to a previous error during capture\nmore of it") from error
        else:
            Cuda.stream = before
        finally:
            Cuda.capturing = None

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    Cuda.stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Cuda.stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(Cuda, "stream", stream))
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


def test_a_capture_that_fails_names_its_cause_gives_the_stream_back_and_steps_go_on(step, cuda, caplog):
    def waits():
        if cuda.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        return step()

    captured, stream = CapturedStep(waits, warm_ups=2), cuda.stream
    with caplog.at_level(logging.WARNING):
        assert [float(captured()) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert step.calls == 6
    assert cuda.stream is stream
    assert caplog.messages == [
        "capture: given up, steps are launched one kernel at a time (operation not permitted when stream is capturing)"
    ]


def test_the_line_of_this_package_that_failed_is_named(cuda, caplog, monkeypatch):
    def refuses(*_):
        raise RuntimeError("not while capturing")

    def reads():
        if cuda.capturing is not None:
            monkeypatch.setattr(torch.Tensor, "to", refuses)
            to_values(torch.zeros(1), None)
        return torch.zeros(())

    CapturedStep(reads, warm_ups=0)()
    assert re.search(r"\(not while capturing, in data/batches\.py:\d+\)", caplog.text)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("shapes")])
def test_what_is_no_error_of_a_capture_is_raised_as_it_is(cuda, error):
    def interrupted():
        if cuda.capturing is not None:
            raise error

    captured, stream = CapturedStep(interrupted, warm_ups=0), cuda.stream
    with pytest.raises(error if isinstance(error, type) else type(error)):
        captured()
    assert cuda.stream is stream
