"""What a phase shows: a bar on a terminal, lines now and then elsewhere, and log lines that keep off the bar."""

import contextlib
import io
import logging
import sys
import time

import pytest

from jepa_fast.progress import BETWEEN_S, SILENT_S, LogHandler, Progress, duration, rough, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def walk(clock, step_s, steps, **options):
    """A phase of 100 steps, of which so many are made."""
    with Progress("pack", 100, "steps", **options) as progress:
        for _ in range(steps):
            clock.now += step_s
            progress.update(1)


def test_a_short_phase_says_nothing_in_a_file(clock, caplog):
    caplog.set_level(logging.INFO)
    walk(clock, SILENT_S / 101, 100)
    assert caplog.messages == []


def test_a_longer_one_says_what_it_is_and_how_long_it_takes_then_every_half_minute_how_far_it_is(clock, caplog):
    caplog.set_level(logging.INFO)
    walk(clock, 1.0, 100)
    assert caplog.messages == [
        "pack: 100 steps, about 2 min left",
        "pack: 32 of 100 steps, 1:08 left",
        "pack: 62 of 100 steps, 0:38 left",
        "pack: 92 of 100 steps, 0:08 left",
    ]


def test_notes_stand_in_the_lines_and_what_others_foretell_is_not_said_twice(clock, caplog):
    caplog.set_level(logging.INFO)
    with Progress("train", 400, "steps", foretold=True) as progress:
        clock.now += BETWEEN_S
        progress.update(40, "nll 1.2 500 traj/s, 4:30 left")
    assert caplog.messages == ["train: 40 of 400 steps, nll 1.2 500 traj/s, 4:30 left"]


def test_processes_that_do_not_lead_are_silent(clock, caplog):
    caplog.set_level(logging.INFO)
    walk(clock, 5.0, 100, is_shown=False)
    assert caplog.messages == []


def test_without_logging_lines_are_printed_as_in_a_notebook(capsys):
    logger = logging.getLogger("jepa_fast.progress")
    assert not logger.isEnabledFor(logging.INFO)
    say("pack: 3 steps")
    assert capsys.readouterr().err == "pack: 3 steps\n"


def test_on_a_terminal_there_is_a_bar_and_log_lines_never_glue_to_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    logger = logging.Logger("a command")
    logger.addHandler(LogHandler())
    with Progress("pack", 100, "steps") as progress:
        progress.update(40)
        progress._bar.refresh()
        logger.info("loader: host")
        progress.update(60)
    drawn = sys.stderr.getvalue()
    assert "pack:  40%" in drawn
    # The line stands alone: what was on it is wiped, the bar comes back below.
    before, after = drawn.split("loader: host")
    assert before.split("\r")[-1].strip() == ""
    assert after.startswith("\n")
    assert "pack" in after


def test_in_a_file_there_is_no_bar():
    with contextlib.redirect_stderr(io.StringIO()) as file, Progress("pack", 100, "steps") as progress:
        progress.update(40)
    assert file.getvalue() == ""


def test_times_are_told_as_people_tell_them():
    assert [duration(seconds) for seconds in (0, 59.6, 3600, 4000)] == ["0:00", "1:00", "1:00:00", "1:06:40"]
    assert [rough(seconds) for seconds in (0.2, 40, 200, 7800)] == ["1 s", "40 s", "3 min", "2 h 10 min"]
