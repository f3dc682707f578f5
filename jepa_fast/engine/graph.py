"""A step as one CUDA graph: recorded once, then started by a single call."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class CapturedStep(Generic[Result]):
    """Calls `step`, from the call after the first `warm_ups` on by replaying its CUDA graph.

    `step` takes its input from, and leaves its result in, tensors that stay where they are; it must not read anything
    back. The first calls are steps like all others: they compile, choose algorithms and make the optimiser's state.
    Where the capture fails the log says so in one line, with the cause, and every call goes on running `step`: nothing
    has been computed yet, so the state is the one that the last step left.
    """

    def __init__(self, step: Callable[[], Result], warm_ups: int) -> None:
        self._step = step
        self._calls_before_capture = warm_ups
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result

    def __call__(self) -> Result:
        """One step."""
        if self._graph is None and self._calls_before_capture == 0:
            self._graph = self._capture()
        if self._graph is not None:
            self._graph.replay()
            return self._result
        self._calls_before_capture -= 1
        # Off the default stream, as the capture will be: libraries keep workspaces for each stream.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        graph, causes = torch.cuda.CUDAGraph(), list[BaseException]()

        def recorded() -> None:
            # What ends a capture complains of the capture, and hides what went wrong in it.
            try:
                self._result = self._step()
            except BaseException as error:
                causes.append(error)
                raise

        before = torch.cuda.current_stream()
        try:
            # The loader's thread may allocate or copy meanwhile: only this thread's calls are held to the rules.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                recorded()
        except RuntimeError as error:
            # torch leaves the thread on the capture's stream where ending the capture fails as well.
            torch.cuda.set_stream(before)
            cause = causes[0] if causes else error
            if not isinstance(cause, RuntimeError):
                raise cause from None
            place = _place(cause)
            line = str(cause).strip().split("\n")[0]
            logger.warning("capture: given up, steps are launched one kernel at a time (%s%s)", line, place)
            return None
        logger.info("capture: a step is one CUDA graph")
        return graph


def _place(error: BaseException) -> str:
    """Where in this package an error came from, for a log line; empty where that is not known."""
    found, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "jepa_fast" in code.co_filename and code.co_filename != __file__:
            found = f", in {code.co_filename.rpartition('jepa_fast')[2].lstrip('/')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
