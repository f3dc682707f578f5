"""What scripts/gpu_check.py runs on a GPU, as far as a device that does nothing can tell."""

import json

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts import gpu_steps
from tests.fake_cuda.standing_in import answer


@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:.*Profiler clears events")
def test_steps_are_captured_written_and_profiled(walls, cuda, monkeypatch, tmp_path):
    answer(monkeypatch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer, batches = gpu_steps.make_trainer(walls, "gated_pixels", compiled=False)
        assert gpu_steps.take_steps(trainer, batches, tmp_path, "gated_pixels", 6) is None
        gpu_steps.profile_steps(trainer, batches, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["one_graph"] for row in rows] == 3 * [False] + 3 * [True]
    assert {"preset", "step", "ms", *trainer.names} <= rows[0].keys()
    profile = (tmp_path / "profile.txt").read_text()
    assert "kernels in 5 captured steps" in profile
    assert "kernels in 1 uncaptured steps" in profile


def test_steps_that_are_not_captured_are_red(walls, cuda, monkeypatch, tmp_path):
    answer(monkeypatch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer, batches = gpu_steps.make_trainer(walls, "gated_features", compiled=False)
        wrong = gpu_steps.take_steps(trainer, batches, tmp_path, "gated_features", 2)
    assert wrong == "gated_features: 0 steps that are not finite, captured: False"
