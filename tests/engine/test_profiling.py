"""Profiles: spans in order, the window's steps and no others, figures as text."""

import contextlib
import inspect
import json

import torch

from jepa_fast.config import JEPAConfig, LoopOptions, Recipe, RunConfig
from jepa_fast.engine.loop import train
from jepa_fast.engine.profiling import DEAREST, NAMES, Profiler
from jepa_fast.engine.step import Trainer
from jepa_fast.runs import create_run

SMALL = JEPAConfig(channels=4, blocks=1, dim=16)


def configuration(data):
    return RunConfig(
        preset="test", recipe=Recipe(model=SMALL), seed=3, steps=6, batch_size=4, amp="off", compile=False,
        device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip


def test_torch_writes_a_trace_of_the_window_its_spans_and_the_ten_dearest_operators(tmp_path, two_rooms):
    config = configuration(two_rooms)
    create_run(tmp_path / "run", config)
    train(config, tmp_path / "run", LoopOptions(profile="torch", profile_window=(2, 4)))
    folder = tmp_path / "run" / "profile"
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event.get("cat") == "user_annotation" and event["name"] in NAMES]
    spans.sort(key=lambda event: event["ts"])
    assert [event["name"] for event in spans] == list(NAMES) * 2
    header, *lines = (folder / "spans.txt").read_text().splitlines()
    assert header.split() == ["span", "host", "ms", "device", "ms"]
    assert [line.split()[0] for line in lines] == list(NAMES)
    for name, line in zip(NAMES, lines, strict=True):
        traced_ms = sum(event["dur"] for event in spans if event["name"] == name) / 2e3
        assert abs(float(line.split()[1]) - traced_ms) < 0.05 + 0.01 * traced_ms
    table = (folder / "operators.txt").read_text().splitlines()
    assert "Self CPU" in table[1]
    rules = [number for number, line in enumerate(table) if line.startswith("---")]
    assert rules == [0, 2, 3 + DEAREST]


def test_a_run_that_ends_within_the_window_still_writes_its_profile(tmp_path, two_rooms):
    config = configuration(two_rooms)
    create_run(tmp_path / "run", config)
    train(config, tmp_path / "run", LoopOptions(profile="torch", profile_window=(4, 100)))
    assert (tmp_path / "run" / "profile" / "operators.txt").is_file()


def test_nsys_is_told_to_record_the_window_and_sees_every_span_of_it(tmp_path, two_rooms, monkeypatch):
    """On this machine's CPU, with the calls of CUDA's profiler noted in place of made."""
    calls = []

    @contextlib.contextmanager
    def named(name):
        calls.append(name)
        yield

    monkeypatch.setattr(torch.cuda.nvtx, "range", named)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    config = configuration(two_rooms)
    create_run(tmp_path / "run", config)
    train(config, tmp_path / "run", LoopOptions(profile="nsys", profile_window=(1, 3)))
    # A small batch is tried out before the first step.
    assert calls[:3] == ["encode", "rollout", "loss"]
    assert calls[3:] == [*NAMES, "start", *NAMES, *NAMES, "stop", *NAMES, *NAMES, *NAMES]


def test_off_means_no_span_is_made(tmp_path, two_rooms):
    profiler = Profiler("off", (0, 1), tmp_path)
    assert profiler.span is contextlib.nullcontext
    assert inspect.signature(Trainer).parameters["span"].default is contextlib.nullcontext
    profiler.between(0)
    profiler.close()
    assert list(tmp_path.iterdir()) == []
