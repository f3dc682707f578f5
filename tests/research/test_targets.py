"""A record is accepted if its claims follow from its raw log, and refused in each way in which they might not."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest

from jepa_fast.errors import InputError, RunError
from research import jsonl, targets
from research.speedrun import Arguments, main
from research.targets import Record, problems, read_records

FEW, MANY = 0.5, 2.0  # errors that meet and miss the second target


def told(kind, seed, step, clock_s, met, **changes):
    error = FEW if met else MANY
    probe_seed = seed + (targets.CONFIRMATION_SEED if kind == "confirmation" else targets.CHECK_SEED)
    scores = {name: {"official": error, "converged": FEW} for name in targets.SETS}
    times = {"clock_s": clock_s, "cpu_s": 1.1 * clock_s, "load_average": 0.5}
    fields = {"event": kind, "seed": seed, "step": step, **times, "probe_seed": probe_seed, "scores": scores}
    return fields | {"met": met} | changes


def reading(seed, step):
    return {"event": "reading", "seed": seed, "step": step, "total": 1.0}


@pytest.fixture
def record():
    """Seed 3 meets the target at its second check; seed 4 at its third, after a confirmation that failed."""
    log = [
        told("check", 3, 10, 1.0, False),
        told("check", 3, 20, 2.0, True),
        told("confirmation", 3, 20, 2.0, True),
        reading(3, 10),
        reading(3, 20),
        told("check", 4, 10, 1.5, True),
        told("confirmation", 4, 10, 1.5, False),
        told("check", 4, 20, 2.5, False),
        told("check", 4, 30, 3.5, True),
        told("confirmation", 4, 30, 3.5, True),
        reading(4, 30),
    ]
    results = [
        {"seed": 3, "met": True, "step": 20, "clock_s": 2.0, "cpu_s": 1.1 * 2.0},
        {"seed": 4, "met": True, "step": 30, "clock_s": 3.5, "cpu_s": 1.1 * 3.5},
    ]
    summary = {"seeds": 2, "met": 2, "mean_clock_s": 2.75, "mean_cpu_s": (1.1 * 2.0 + 1.1 * 3.5) / 2}
    return Record(
        name="one", target="r2", thresholds=targets.thresholds_of("r2"), preset="any", config={"steps": 40},
        parameters=10, seeds=[3, 4], checks=[10, 20, 30, 40], warm_up_steps=5, environment={}, results=results,
        summary=summary, log=log,
    )  # fmt: skip


def test_a_record_that_follows_from_its_log_is_accepted_and_reads_back(record, tmp_path, capsys):
    assert problems(record) == []
    path = tmp_path / "r2.jsonl"
    record.append(path)
    assert read_records(path) == [record]
    main(Arguments(check=path))
    assert "one: r2 with any: 2 of 2 seeds, mean 2.75 s" in capsys.readouterr().out


def test_a_seed_that_never_meets_the_target_leaves_no_mean(record):
    failed = [told("check", 5, step, step / 10, False) for step in record.checks]
    whole = copy.deepcopy(record)
    whole.log.extend(failed)
    whole.seeds.append(5)
    results = targets.results_of(whole.log, whole.seeds)
    assert results[2]["met"] is False
    assert results[2]["step"] == 40
    whole.results[:], changed = results, targets.summary_of(results)
    whole.summary.update(changed)
    assert (whole.summary["met"], whole.summary["seeds"], whole.summary["mean_clock_s"]) == (2, 3, None)
    assert problems(whole) == []
    assert "NOT MET" in whole.table()
    # Neither can it be left out, nor counted without its events.
    whole.seeds.remove(5)
    assert any("which the record does not count" in problem for problem in problems(whole))


def test_a_run_that_broke_down_is_a_failure_in_the_record(record):
    broken = {"event": "failure", "seed": 5, "step": 10, "clock_s": 1.7, "cpu_s": 1.7, "load_average": 0.1}
    record.log.extend([told("check", 5, 10, 1.0, False), broken | {"reason": "not finite"}, reading(5, 12)])
    record.seeds.append(5)
    record.results[:] = targets.results_of(record.log, record.seeds)
    record.summary.update(targets.summary_of(record.results))
    assert problems(record) == []
    assert record.summary["met"] == 2
    record.log.append(told("check", 5, 20, 2.0, False))
    assert any("failure, but the run goes on" in problem for problem in problems(record))


def change(number, **fields):
    return lambda record: record.log[number].update(fields)


def drop(*numbers):
    def tamper(record):
        for number in sorted(numbers, reverse=True):
            del record.log[number]

    return tamper


def better(number):
    """Lower one error of an event, without touching what it says of itself."""

    def tamper(record):
        for one in record.log[number]["scores"].values():
            one["official"] = FEW

    return tamper


def met_from_the_first(record):
    better(0)(record)
    record.log[0]["met"] = True


def lower_mean(record):
    record.summary["mean_clock_s"] = 2.0


def mean_of_the_best(record):
    record.summary.update(seeds=1, met=1, mean_clock_s=2.0, mean_cpu_s=2.2)
    del record.results[1]


def earlier_result(record):
    record.results[1].update(step=10, clock_s=1.5)


TAMPERED = {
    "a check is left out": (drop(0), "scheduled were"),
    "a check comes at another step": (change(0, step=11), "scheduled were"),
    "a schedule is made to fit": (lambda record: record.checks.__setitem__(0, 12), "expected [10, 20, 30, 40]"),
    "scores were better than the event says": (better(0), "said to be not met, the scores say otherwise"),
    "scores were worse than the event says": (
        lambda record: record.log[1]["scores"][targets.SETS[2]].update(converged=6.0),
        "said to be met, the scores say otherwise",
    ),
    "the target was met before": (met_from_the_first, "a check that was met has no confirmation"),
    "a set is missing": (lambda record: record.log[1]["scores"].popitem(), "sets ["),
    "a probe is missing": (
        lambda record: record.log[1]["scores"][targets.SETS[0]].pop("converged"),
        "expected an error",
    ),
    "an error is negative": (
        lambda record: record.log[0]["scores"][targets.SETS[0]].update(official=-1.0),
        "expected an error",
    ),
    "the clock runs backwards": (change(8, clock_s=2.4), "clock_s: 2.5 at step 20, then 2.4 at 30"),
    "the clock stands still": (change(1, cpu_s=1.1), "cpu_s: "),
    "the clock was set back": (change(0, clock_s=-1.0), "got -1.0 at first"),
    "the clock ran while probing": (change(2, clock_s=2.1), "clock_s: "),
    "a confirmation is missing": (drop(2), "a check that was met has no confirmation"),
    "a confirmation has the check's probe seed": (
        change(2, probe_seed=targets.CHECK_SEED + 3),
        "which a check has used",
    ),
    "a confirmation is of another step": (change(2, step=30), "a confirmation without its check"),
    "a run goes on after it met the target": (
        lambda record: record.log.insert(3, told("check", 3, 30, 3.0, False)),
        "confirmation, but the run goes on",
    ),
    "a run ends early": (drop(8, 9, 10), "the log ends, though checks were left"),
    "a seed is left out of the results": (mean_of_the_best, "expected one for each of 2 seeds"),
    "the mean is not that of the seeds": (lower_mean, "summary: got"),
    "a result is not that of the log": (earlier_result, "results: got"),
    "thresholds are others": (lambda record: record.thresholds.update({targets.SETS[0]: 9.9}), "those of r2 are"),
    "seeds are counted twice": (lambda record: record.seeds.append(3), "expected different ones"),
    "log steps come after the run": (change(4, step=21), "expected ascending ones up to 20"),
    "events of a seed are missing": (drop(*range(5)), "a field is missing or of another kind"),
}


@pytest.mark.parametrize("way", TAMPERED)
def test_a_record_is_refused_if(record, way, tmp_path):
    tamper, expected = TAMPERED[way]
    tamper(record)
    found = problems(record)
    assert any(expected in problem for problem in found), found
    record.append(tmp_path / "r2.jsonl")
    with pytest.raises(RunError, match=rf"{tmp_path}/r2\.jsonl: one: "):
        main(Arguments(check=tmp_path / "r2.jsonl"))


def test_all_records_of_a_file_are_checked_or_the_one_that_is_named(record, tmp_path, capsys):
    path, other = tmp_path / "r2.jsonl", copy.deepcopy(record)
    lower_mean(other)
    record.append(path)
    replace(other, name="other").append(path)
    with pytest.raises(RunError, match=r"r2\.jsonl: other: summary: got"):
        main(Arguments(check=path))
    assert capsys.readouterr().out.startswith("one: r2 with any")
    main(Arguments(check=path, name="one"))
    with pytest.raises(RunError):
        main(Arguments(check=path, name="other"))
    with pytest.raises(InputError, match=r"--check: .* expected a file with a record called third"):
        main(Arguments(check=path, name="third"))


def test_a_file_that_holds_no_records_is_named(record, tmp_path):
    path = tmp_path / "r2.jsonl"
    with pytest.raises(InputError, match=r"--check: .*r2\.jsonl', expected a file with records of time-to-target runs"):
        main(Arguments(check=path))
    jsonl.append(path, vars(record) | {"bonus": 1})
    with pytest.raises(InputError, match=r"r2\.jsonl, line 1: not a record"):
        main(Arguments(check=path))


def test_the_schedule_is_even_and_ends_with_the_run():
    assert targets.schedule(10, 4) == [2, 5, 7, 10]
    assert targets.schedule(3, 1) == [3]
    with pytest.raises(InputError, match="--steps: got 3, expected at least the 4 of the checks"):
        targets.schedule(3, 4)


def test_every_target_is_harder_than_the_one_before():
    levels = list(targets.TARGETS.values())
    for easier, harder in pairwise(levels):
        assert all(one > other for one, other in zip(easier, harder, strict=True))
