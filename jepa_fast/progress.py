"""How far a phase of a command has come: a bar on a terminal; in a file or a notebook a line now and then."""

import logging
import sys
import time
from types import TracebackType
from typing import Any

from jepa_fast.errors import printable

logger = logging.getLogger(__name__)

# Where there is no terminal: a phase that takes longer than the first says so once, and how far it is this often.
SILENT_S, BETWEEN_S = 2.0, 30.0
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """A phase of so many units. Used in a `with` statement, or closed.

    On a terminal it is a bar. Elsewhere lines are logged: after SILENT_S seconds what the phase is and how long it will
    take, then every BETWEEN_S seconds how far it has come; of a phase that is over sooner, nothing.
    """

    def __init__(
        self, what: str, total: int, unit: str, done: int = 0, *, keeps: bool = False, foretold: bool = False,
        is_shown: bool = True,
    ) -> None:  # fmt: skip
        """Begin.

        Args:
            what: names the phase, for people.
            total: units in all.
            unit: what is counted, in the plural.
            done: units that were done before.
            keeps: whether a bar stays on the terminal when it is full.
            foretold: whether someone else says how long it will take.
            is_shown: False for processes that do not lead: they show nothing.
        """
        what = printable(what)
        self._what, self._total, self._unit = what, total, unit
        self._first, self._done, self._note = done, done, ""
        self._began = self._said = time.monotonic()
        self._foretold, self._is_shown = foretold, is_shown
        self._bar: Any = None
        if is_shown and is_terminal():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=what, total=total, initial=done, unit=f" {unit}", leave=keeps, dynamic_ncols=True, bar_format=BAR
            )

    def update(self, count: int, note: str | None = None) -> None:
        """Say that `count` more units are done; with a `note` on where that leads."""
        self._done += count
        if note is not None:
            self._note = note
        if self._bar is not None:
            left = "" if note is not None or (left_s := self.left_s()) is None else f"{duration(left_s)} left"
            self._bar.set_postfix_str(self._note or left, refresh=False)
            self._bar.update(count)
        elif self._is_shown:
            self._say()

    def left_s(self) -> float | None:
        """Seconds until all is done at the mean speed so far; None before there is one."""
        made = self._done - self._first
        return (time.monotonic() - self._began) / made * (self._total - self._done) if made > 0 else None

    def _say(self) -> None:
        now, left_s = time.monotonic(), self.left_s()
        if left_s is None:
            return
        if not self._foretold:
            if now - self._began < SILENT_S:
                return
            self._foretold, self._said = True, now
            if left_s >= SILENT_S:
                say(f"{self._what}: {self._total:,} {self._unit}, about {rough(left_s)} left")
        elif now - self._said >= BETWEEN_S:
            self._said = now
            note = f"{self._note}, " if self._note else ""
            left = "" if "left" in self._note else f"{duration(left_s)} left"
            say(f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {note}{left}".rstrip(", "))

    def close(self) -> None:
        """End the phase."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LogHandler(logging.StreamHandler[Any]):
    """Writes log lines to standard error, above the bars that are shown there."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; bars that are there are taken away first and drawn again below it."""
        if "tqdm" not in sys.modules:
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def is_terminal() -> bool:
    """Whether standard error is a terminal, on which a line can be drawn again."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(line: str) -> None:
    """Log a line; where nobody has set logging up, as in a notebook, print it."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", line)
    else:
        print(line, file=sys.stderr, flush=True)


def rough(seconds: float) -> str:
    """How long something takes, for people who plan: 40 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def duration(seconds: float) -> str:
    """75 as 1:15, 4000 as 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
