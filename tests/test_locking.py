"""One writer per folder: who is alive keeps others away, who is dead does not, here and on other machines."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from jepa_fast import locking, platforms
from jepa_fast.errors import InputError, RunError
from jepa_fast.locking import LOCK, Lock

ROOT = Path(locking.__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from jepa_fast.locking import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def fast(monkeypatch):
    """Seconds become milliseconds."""
    monkeypatch.setattr(locking, "HEARTBEAT_S", 0.02)
    # Many signs of life fit in, also where others hold the processors.
    monkeypatch.setattr(locking, "DEAD_AFTER_S", 2.0)
    monkeypatch.setattr(locking, "SETTLING_S", 0.05)


def elsewhere(folder, age_s, **changes):
    """A lock that a process on a machine that is not seen made, and touched `age_s` ago."""
    holder = {"pid": 7, "host": "node7", "since": "2026-01-01 00:00:00", "machine": "another", "token": "its"}
    (folder / LOCK).write_text(json.dumps(holder | changes))
    os.utime(folder / LOCK, (time.time() - age_s, time.time() - age_s))


@pytest.mark.posix
def test_a_second_process_is_told_who_is_there_and_a_killed_holder_is_taken_over_with_a_line(tmp_path, caplog):
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"{tmp_path}: in use by process {first.pid} on \S+ since \d+-\d+-\d+ "):
        Lock(tmp_path).__enter__()
    # It did not wait until the holder was gone.
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / LOCK).exists()
    with caplog.at_level(logging.WARNING), Lock(tmp_path) as lock:
        assert f"{LOCK}: taken over from process {first.pid} on" in caplog.text
        lock.require_held()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sees_locks", [True, None])
def test_on_another_machine_who_is_silent_is_dead_and_who_is_not_is_not(
    tmp_path, fast, monkeypatch, caplog, sees_locks
):
    monkeypatch.setattr(locking, "try_lock_file", lambda descriptor: sees_locks)
    caplog.set_level(logging.INFO)
    elsewhere(tmp_path, age_s=1000)
    with Lock(tmp_path):
        assert "taken over from process 7 on node7" in caplog.text
    # Young enough to live: it is waited for, and taken over when it stays silent.
    caplog.clear()
    elsewhere(tmp_path, age_s=0)
    with Lock(tmp_path):
        assert "waiting up to 2 s for a sign of life" in caplog.text
        assert "taken over" in caplog.text
    elsewhere(tmp_path, age_s=0)
    alive = threading.Timer(0.15, os.utime, [tmp_path / LOCK])
    alive.start()
    with pytest.raises(InputError, match="in use by process 7 on node7 since 2026-01-01 00:00:00"):
        Lock(tmp_path).__enter__()
    alive.join()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 7


def test_a_holder_gives_signs_of_life_that_keep_it_alive_where_there_are_no_locks(tmp_path, fast, monkeypatch):
    monkeypatch.setattr(locking, "try_lock_file", lambda descriptor: None)
    with Lock(tmp_path):
        time.sleep(2.5)
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
            Lock(tmp_path).__enter__()
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize("sees_locks", [True, False])
def test_one_of_many_that_take_over_at_once_gets_it(tmp_path, fast, monkeypatch, sees_locks):
    if not sees_locks:
        monkeypatch.setattr(locking, "try_lock_file", lambda descriptor: None)
    elsewhere(tmp_path, age_s=1000)
    start, held, refused = threading.Barrier(8), [], []
    done = threading.Event()

    def take():
        start.wait()
        try:
            with Lock(tmp_path):
                held.append(1)
                done.wait(300)
        except InputError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 300
    while len(held) + len(refused) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_a_folder_is_never_held_twice_while_many_come_and_go(tmp_path, fast):
    inside, worst, taken = [0], [0], [0]

    def come_and_go():
        for _ in range(20):
            try:
                with Lock(tmp_path):
                    inside[0] += 1
                    worst[0] = max(worst[0], inside[0])
                    taken[0] += 1
                    inside[0] -= 1
            except InputError:
                pass

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == [1]
    assert taken[0] > 0


def test_a_holder_that_stood_still_and_was_taken_for_dead_writes_nothing_more(tmp_path, fast):
    with Lock(tmp_path) as lock:
        elsewhere(tmp_path, age_s=0)
        with pytest.raises(RunError, match=r"taken over by process 7 on node7 .*writes nothing"):
            lock.require_held()
        time.sleep(0.1)
        before = (tmp_path / LOCK).stat().st_mtime
        time.sleep(0.1)
        assert (tmp_path / LOCK).stat().st_mtime == before
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 7


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"pid": "x"}', b"[" * 100_000])
def test_a_lock_file_that_says_nothing_is_taken_over(tmp_path, fast, caplog, content):
    (tmp_path / LOCK).write_bytes(content)
    with Lock(tmp_path):
        assert "taken over from another process, which is gone" in caplog.text


@pytest.mark.posix
def test_what_stands_in_the_place_of_a_lock_is_neither_followed_nor_changed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=LOCK):
        Lock(tmp_path).__enter__()
    assert (tmp_path / "precious").read_text() == "mine"
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OSError, match=LOCK):
        Lock(tmp_path).__enter__()


def test_outputs_are_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match=r"--out: .*no/page.html cannot be written \(no such folder\)"):
        locking.output(tmp_path / "no" / "page.html")
    with pytest.raises(InputError, match=r"--out: got .* expected a file, or none yet"):
        locking.output(tmp_path)
    with locking.output(tmp_path / "page.html"), pytest.raises(InputError, match="in use by process"):
        locking.output(tmp_path / "page.html").__enter__()
    with locking.output(tmp_path / "page.html"), locking.output(tmp_path / "other.html"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix
def test_windows_locks_a_byte_that_nobody_reads(tmp_path, monkeypatch):
    """The calls that its C library gets, by a stand-in for it."""
    import fcntl

    calls = []

    def locking_call(descriptor, mode, count):
        calls.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    monkeypatch.setattr(platforms, "_fcntl", None)
    monkeypatch.setattr(platforms, "_msvcrt", types.SimpleNamespace(locking=locking_call, LK_NBLCK=2))
    with Lock(tmp_path), pytest.raises(InputError, match="in use by process"):
        Lock(tmp_path).__enter__()
    assert calls == [(2**30, 2, 1)] * 2
    assert list(tmp_path.iterdir()) == []
