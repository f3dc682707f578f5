"""Where a step's time goes: named spans, and a window of steps that a profiler records.

    data  encode  rollout  energy  backward  optimiser

"nsys" marks them as NVTX ranges and tells `nsys profile --capture-range=cudaProfilerApi` which steps to record.
"torch" needs no tool: it writes a Chrome trace and the ten dearest operators into the run folder.
"""

import logging
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from jepa_fast.model.objectives import Span, no_span

logger = logging.getLogger(__name__)

FOLDER = "profile"
TRACE, OPERATORS = "trace.json", "operators.txt"
DEAREST = 10


class Profiler:
    """Records the steps of a window, counted from where the command starts: `between` is called between steps."""

    def __init__(self, kind: Literal["off", "torch", "nsys"], window: tuple[int, int], folder: Path) -> None:
        self._kind, self._window, self._folder = kind, window, folder / FOLDER
        self._torch: profile | None = None
        self._open = False
        self.span: Span = no_span
        if kind == "torch":
            self.span = record_function
        elif kind == "nsys":
            self.span = torch.cuda.nvtx.range

    def between(self, done: int) -> None:
        """Open or close the window after `done` steps of this command."""
        if self._kind == "off":
            return
        if done == self._window[0]:
            self._start()
        elif done == self._window[1]:
            self.close()

    def _start(self) -> None:
        self._open = True
        if self._kind == "nsys":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._torch = profile(activities=activities)
        self._torch.start()

    def close(self) -> None:
        """Close the window, if it is open, and write what was recorded."""
        if not self._open:
            return
        self._open = False
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        first, last = self._window
        if self._torch is None:
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
            logger.info("profile: steps %d to %d handed to nsys", first, last)
            return
        self._torch.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._torch.export_chrome_trace(str(self._folder / TRACE))
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._torch.key_averages().table(sort_by=by, row_limit=DEAREST, max_name_column_width=60)
        (self._folder / OPERATORS).write_text(table)
        logger.info("profile: steps %d to %d in %s, %s and %s", first, last, self._folder, TRACE, OPERATORS)
