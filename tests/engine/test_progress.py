"""The bar's figures: throughput and time left, without the first steps."""

import time

import pytest

from jepa_fast.engine.progress import UNTIMED, Meter, describe


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_first_steps_count_for_nothing(clock):
    meter = Meter(batch_size=8, steps=100)
    for done in range(1, UNTIMED + 1):
        clock.now += 60.0  # compiling
        meter.tick(done)
        assert meter.throughput(done) == 0.0
        assert meter.left_s(done) is None
    for done in range(UNTIMED + 1, 11):
        clock.now += 0.5
        meter.tick(done)
    assert meter.throughput(10) == pytest.approx(16.0)
    assert meter.left_s(10) == pytest.approx(45.0)
    for done in range(11, 21):
        clock.now += 0.25
        meter.tick(done)
    # The rate is that since the last reading, the time left goes by all timed steps.
    assert meter.throughput(20) == pytest.approx(32.0)
    assert meter.left_s(20) == pytest.approx(80 * (5 * 0.5 + 10 * 0.25) / 15)


def test_a_resumed_run_counts_from_where_it_goes_on(clock):
    meter = Meter(batch_size=8, steps=1000)
    for done in range(901, 911):
        clock.now += 2.0
        meter.tick(done)
    assert meter.throughput(910) == pytest.approx(4.0)
    assert meter.left_s(910) == pytest.approx(180.0)


def test_the_bar_tells_terms_throughput_and_the_time_that_is_left():
    metrics = {"invariance": 0.5, "variance": 0.25, "covariance": 2.0, "trajectories_per_s": 12345.6}
    names = ("invariance", "variance", "covariance")
    assert describe(metrics, names, 75.2) == "inv 0.5000 var 0.2500 cov 2.0000 12,346 traj/s, 1:15 left"
    assert describe(metrics, names, None) == "inv 0.5000 var 0.2500 cov 2.0000 12,346 traj/s"
    assert describe(metrics | {"trajectories_per_s": 0.0}, names, None) == "inv 0.5000 var 0.2500 cov 2.0000 – traj/s"
