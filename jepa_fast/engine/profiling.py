"""Where a step's time goes: named spans, and a window of steps that a profiler records.

    data  encode  rollout  loss  backward  optimiser

"nsys" marks them as NVTX ranges and tells `nsys profile --capture-range=cudaProfilerApi` which steps to record.
"torch" needs no tool: it writes a Chrome trace, the spans and the ten dearest operators into the run folder.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function

from jepa_fast.objectives.objective import Span, no_span

logger = logging.getLogger(__name__)

FOLDER = "profile"
TRACE, SPANS, OPERATORS = "trace.json", "spans.txt", "operators.txt"
NAMES = ("data", "encode", "rollout", "loss", "backward", "optimiser")
DEAREST = 10


class Profiler:
    """Records the steps of a window, counted from where the command starts: `between` is called between steps."""

    def __init__(self, kind: Literal["off", "torch", "nsys"], window: tuple[int, int], folder: Path) -> None:
        self._kind, self._window, self._folder = kind, window, folder / FOLDER
        self._torch: profile | None = None
        self._recorded = 0  # steps; more than none while the window is open
        self.span: Span = no_span
        if kind == "torch":
            self.span = record_function
        elif kind == "nsys":
            self.span = torch.cuda.nvtx.range

    def between(self, done: int) -> None:
        """Open or close the window after `done` steps of this command, before the next one."""
        if self._kind == "off":
            return
        if done == self._window[0]:
            self._start()
        elif done == self._window[1]:
            self.close()
        if self._window[0] <= done < self._window[1]:
            self._recorded += 1

    def _start(self) -> None:
        if self._kind == "nsys":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        # There is one cycle. Without the flag torch 2.11 warns that another would begin anew.
        self._torch = profile(activities=activities, acc_events=True)
        self._torch.start()

    def close(self) -> None:
        """Close the window, if it is open, and write what was recorded."""
        steps, self._recorded = self._recorded, 0
        if steps == 0:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._torch is None:
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
            logger.info("profile: %d steps handed to nsys", steps)
            return
        self._torch.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._torch.export_chrome_trace(str(self._folder / TRACE))
        averages = self._torch.key_averages()
        (self._folder / SPANS).write_text(spans_table(averages, steps), encoding="utf-8")
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = averages.table(sort_by=by, row_limit=DEAREST, max_name_column_width=60)
        (self._folder / OPERATORS).write_text(table, encoding="utf-8")
        logger.info("profile: %d steps in %s: %s, %s, %s", steps, self._folder, TRACE, SPANS, OPERATORS)


def spans_table(averages: Sequence[FunctionEventAvg], steps: int) -> str:
    """Milliseconds per step of each span on the host, and of the kernels that it launched on the device."""
    found = {event.key: event for event in averages if event.key in NAMES}
    lines = [f"{'span':10} {'host ms':>10} {'device ms':>10}"]
    for name in (name for name in NAMES if name in found):
        host, device = (us / 1e3 / steps for us in (found[name].cpu_time_total, found[name].device_time_total))
        lines.append(f"{name:10} {host:10.2f} {device:10.2f}")
    return "\n".join(lines) + "\n"
