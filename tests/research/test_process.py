"""A command in its own process: its status, its seconds, its log, its end when asked."""

import signal

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
    wait = command._wait

    def interrupted():
        command._wait = wait
        # From this thread: one that another sends may come just before this one waits, and is seen after it.
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the interrupt got lost")

    command._wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        command.wait()
    assert command._process.returncode == -signal.SIGTERM
