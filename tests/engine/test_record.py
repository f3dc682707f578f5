"""metrics.jsonl is the truth: appended, cut back on resume."""

import json

from jepa_fast.engine.record import Record, read_metrics, write_environment


def test_lines_after_the_resumed_step_are_dropped_half_written_ones_too(tmp_path):
    record = Record(tmp_path, 0)
    for step in (10, 20, 30):
        record.write({"step": step, "total": 1.0 / step})
    record.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "tot')
    record = Record(tmp_path, 20)
    record.write({"step": 21, "total": 0.5})
    record.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 21]
    assert read_metrics(tmp_path)[0]["total"] == 0.1


def test_tensorboard_gets_every_metric(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = Record(tmp_path, 0)
    record.write({"step": 10, "total": 0.25, "variance": 0.5})
    record.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("total")] == [(10, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("variance")] == [(10, 0.5)]


def test_environment_names_versions_and_device(tmp_path):
    import torch

    write_environment(tmp_path, torch.device("cpu"))
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["device"]
    assert environment["threads"] >= 1
