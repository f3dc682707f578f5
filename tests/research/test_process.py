"""A command in its own process: its status, its seconds, its log, its end when asked."""

import os
import signal
import threading

import pytest

from research.process import Command

# Studies run where processes have signals and costs.
pytestmark = pytest.mark.posix


def test_a_command_tells_its_status_and_seconds_and_writes_to_the_end_of_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    refused = Command("jepa_fast.verify", tmp_path / "absent", log=log, threads=1).wait()
    assert refused.status == 2
    assert log.read_text().startswith("before\nerror: ")
    assert 0 < refused.cpu_s < 60
    assert refused.wall_s > 0
    assert Command("jepa_fast.verify", "--help", log=log).wait().status == 0


def test_a_command_asked_to_stop_says_which_signal_ended_it(tmp_path):
    command = Command("http.server", "--bind", "127.0.0.1", "0", log=tmp_path / "log")
    command.stop()
    assert command.wait().status == -signal.SIGTERM
    command.stop()  # what has ended is left alone


@pytest.fixture
def interruptible():
    """A shell without job control starts what is in its background deaf to interrupts, and these tests may be there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_is_passed_on(tmp_path):
    command = Command("http.server", "--bind", "127.0.0.1", "0", log=tmp_path / "log")
    waiting = threading.Event()
    wait = command._wait

    def wait_and_tell():
        waiting.set()
        return wait()

    command._wait = wait_and_tell
    interrupt = threading.Thread(target=lambda: (waiting.wait(), os.kill(os.getpid(), signal.SIGINT)))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        command.wait()
    interrupt.join()
    assert command._process.returncode == -signal.SIGTERM
