"""metrics.jsonl is the truth: appended, cut back on resume."""

import itertools
import json

import torch

from jepa_fast.engine.pace import look_is_due
from jepa_fast.engine.record import Record, read_metrics, read_spectra, write_environment
from jepa_fast.probing.collapse import spectrum


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


def test_spectra_are_kept_to_five_digits_and_cut_back_like_metrics(tmp_path):
    states = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    record = Record(tmp_path, 0)
    for step in (10, 20):
        record.write_spectrum(step, spectrum(step * states))
    record.close()
    Record(tmp_path, 10).close()
    (line,) = read_spectra(tmp_path)
    expected = spectrum(10 * states)
    assert line["step"] == 10
    for name, values in (("std", expected.std), ("singular_values", expected.singular_values)):
        torch.testing.assert_close(torch.tensor(line[name], dtype=torch.float64), values, rtol=5e-5, atol=0)
    assert line["rank"] == expected.rank


def test_states_are_looked_at_25_times_in_a_run_and_every_thousand_steps_in_a_long_one():
    for steps, expected in ((60, 6), (500, 26), (5_000, 26), (123_457, 124)):
        due = [step for step in range(10, steps + 1, 10) if look_is_due(step, steps, 10)]
        assert len(due) == expected
        assert due[0] == 10
        assert max(b - a for a, b in itertools.pairwise(due)) <= min(max(10, steps / 25 + 10), 1000)


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
    write_environment(tmp_path, torch.device("cpu"))
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["device"]
    assert environment["threads"] >= 1
