"""The benchmark table: made from pytest-benchmark's JSON alone, and a check that sees what it must see."""

import copy
import json

import pytest

from jepa_fast.errors import InputError, RunError
from scripts import bench_table
from scripts.bench_table import (
    README,
    RESULTS,
    STEP,
    Arguments,
    claim,
    draw_pages,
    keep,
    lost,
    main,
    read_record,
    rows_of,
    slug,
    step_table,
    with_tables,
)


def benchmark(group, candidate, seconds, is_ours=False, **extra):
    info = {"candidate": candidate, "is_ours": is_ours, "device": "Some CPU @ 2 GHz", "torch": "2.13", "threads": 2}
    stats = {"median": seconds, "min": 0.5 * seconds, "rounds": 3, "data": [seconds] * 3}
    return {"name": f"bench[{candidate}]", "group": group, "stats": stats, "extra_info": info | extra}


def record(step_s=0.1):
    return {
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "benchmarks": [
            benchmark("step", "published", 2.0, peak_mb=3000),
            benchmark("step", "ours", 2 * step_s, is_ours=True, peak_mb=300),
            benchmark("step", "compiled", 0.4, peak_mb=1000),
            benchmark("step", "ours_compiled", step_s, is_ours=True, peak_mb=200),
            benchmark("op", "eager", 3e-4),
            benchmark("op", "jepa_fast", 1e-4, is_ours=True, percent_of_copy=61.8),
            benchmark("baselines alone", "eager", 1.0),
        ],
    }


def test_rows_compare_our_fastest_with_every_baseline_of_its_group():
    rows = rows_of(record())
    assert [(row.name, row.ours, row.baseline) for row in rows] == [
        ("step", "ours_compiled", "published"),
        ("step", "ours_compiled", "compiled"),
        ("op", "jepa_fast", "eager"),
    ]
    assert [row.ratio for row in rows] == pytest.approx([20, 4, 3])
    assert [row.ours_ms for row in rows] == pytest.approx([100, 100, 0.1])
    assert [row.baseline_ms for row in rows] == pytest.approx([2000, 400, 0.3])
    assert rows[0].note == "torch 2.13; peak 200 MB against 3,000 MB; rounds 3 against 3"
    assert rows[2].note == "torch 2.13; 62% of the copy bandwidth; rounds 3 against 3"


def test_latest_holds_the_rows_that_are_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_table, "LATEST", tmp_path / "latest.json")
    (tmp_path / "run.json").write_text(json.dumps(record()))
    main(Arguments(tmp_path / "run.json"))
    rows = json.loads((tmp_path / "latest.json").read_text())
    assert list(rows[0]) == ["name", "device", "ours", "ours_ms", "baseline", "baseline_ms", "ratio", "note"]
    printed = capsys.readouterr().out
    assert "| step | ours_compiled | 100 | published | 2,000 | 20.00 |" in printed
    assert len(printed.strip().splitlines()) == 2 + len(rows)


def test_a_loss_of_more_than_30_percent_is_found_and_one_of_less_is_not():
    stored = record()
    assert lost(record(step_s=0.1), stored) == []
    assert lost(record(step_s=0.1 / 0.71), stored) == []
    assert lost(record(step_s=0.05), stored) == []
    assert lost(record(step_s=0.1 / 0.69), stored) == [
        "step against published: 13.80 times faster, stored is 20.00",
        "step against compiled: 2.76 times faster, stored is 4.00",
    ]


def test_a_slower_machine_is_no_loss():
    slower = record()
    for one in slower["benchmarks"]:
        one["stats"] = {"median": 9 * one["stats"]["median"], "min": 9 * one["stats"]["min"]}
    assert lost(slower, record()) == []


def test_a_comparison_that_is_gone_is_a_loss():
    gone = record()
    del gone["benchmarks"][5]
    assert lost(gone, record()) == ["op against eager: was not measured, stored is 3.00 times faster"]


def test_check_fails_the_command_against_the_newest_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_table, "LATEST", tmp_path / "latest.json")
    stored = tmp_path / "results"
    stored.mkdir()
    (stored / "2026-01-01-aaaaaaaaa.json").write_text(json.dumps(record(step_s=1.0)))
    (tmp_path / "run.json").write_text(json.dumps(record(step_s=0.2)))
    main(Arguments(tmp_path / "run.json", check=stored))
    (stored / "2026-01-02-bbbbbbbbb.json").write_text(json.dumps(record(step_s=0.1)))
    with pytest.raises(RunError, match=r"2 of the comparisons in .*2026-01-02-bbbbbbbbb\.json lost more than 30%"):
        main(Arguments(tmp_path / "run.json", check=stored))
    assert "lost: step against compiled: 2.00 times faster, stored is 4.00" in capsys.readouterr().out


def test_kept_records_are_named_by_device_date_and_commit_and_lose_single_rounds_only(tmp_path):
    path = keep(record(), tmp_path)
    assert path == tmp_path / "some-cpu-2-ghz" / "2026-01-02-012345678.json"
    expected = copy.deepcopy(record())
    for one in expected["benchmarks"]:
        del one["stats"]["data"]
    assert json.loads(path.read_text()) == expected
    assert slug("NVIDIA H200") == "nvidia-h200"


def test_uncommitted_changes_are_not_kept(tmp_path):
    dirty = record()
    dirty["commit_info"]["dirty"] = True
    with pytest.raises(InputError, match="--keep: got 'uncommitted changes'"):
        keep(dirty, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tables_are_drawn_between_the_markers_and_nothing_else_changes(tmp_path):
    results = tmp_path / "bench" / "results"
    keep(record(), results)
    page = f"before\n{bench_table.BEGIN}\nold\n{bench_table.END}\nafter\n"
    drawn = with_tables(page, results)
    assert drawn.startswith(f"before\n{bench_table.BEGIN}\n\n### Some CPU @ 2 GHz\n")
    assert drawn.endswith(f"{bench_table.END}\nafter\n")
    assert "From `bench/results/some-cpu-2-ghz/2026-01-02-012345678.json`." in drawn
    assert "| op | jepa_fast | 0.1 | eager | 0.3 | 3.00 |" in drawn
    assert "old" not in drawn
    assert with_tables(drawn, results) == drawn


def test_a_record_of_some_groups_leaves_the_rows_of_others_from_before(tmp_path):
    results = tmp_path / "bench" / "results"
    keep(record(), results)
    part = copy.deepcopy(record())
    part["datetime"] = "2026-01-03"
    for benchmark in part["benchmarks"]:
        benchmark["group"] = f"new {benchmark['group']}"
    keep(part, results)
    drawn = with_tables(f"{bench_table.BEGIN}\n{bench_table.END}\n", results)
    assert drawn.index("2026-01-03") < drawn.index("| new op |") < drawn.index("2026-01-02") < drawn.index("| op |")
    assert drawn.count("###") == 1


def test_the_pages_show_the_stored_results(tmp_path, monkeypatch):
    assert any(RESULTS.glob("*/*.json"))
    for name in ("DOCS", "SPARSE", "README"):
        page = getattr(bench_table, name)
        monkeypatch.setattr(bench_table, name, tmp_path / page.name)
        (tmp_path / page.name).write_text(page.read_text())
    draw_pages()
    for page in (bench_table.ROOT / "docs" / "results.md", bench_table.ROOT / "docs" / "sparse-encoding.md", README):
        assert (tmp_path / page.name).read_text() == page.read_text(), "scripts/bench_table.py draws them"


def test_steps_are_shown_of_every_device_and_the_claim_is_the_least(tmp_path):
    results = tmp_path / "bench" / "results"
    steps = record()
    for benchmark in steps["benchmarks"]:
        benchmark["group"] = STEP if benchmark["group"] == "step" else benchmark["group"]
    keep(steps, results)
    keep(record() | {"datetime": "2027-01-01"}, results)  # newer, without a step
    other, unnamed = copy.deepcopy(steps), copy.deepcopy(steps)
    for benchmark in other["benchmarks"]:
        benchmark["extra_info"] |= {"device": "Another CPU AVX2, 2 threads", "instruction_set": "avx2"}
        benchmark["stats"]["median"] *= 1 if benchmark["extra_info"]["is_ours"] else 0.75
    for benchmark in unnamed["benchmarks"]:
        benchmark["extra_info"]["device"] = "Old CPU, 2 threads"
    keep(other, results)
    keep(unnamed, results)
    assert "3.0 times faster" in claim(results)
    shown = step_table(results)
    assert "| step | Another CPU AVX2, 2 threads, ms | times slower | Some CPU @ 2 GHz, ms | times slower |" in shown
    assert "| **jepa_fast** | 200 | 2.0 | 200 | 2.0 | 300 MB |" in shown
    assert "| jepa_fast, torch.compile'd | 100 |  | 100 |  | 200 MB |" in shown
    assert shown.index("| 300 | 3.0 | 400 | 4.0 | 1,000 MB |") < shown.index(
        "| 1,500 | 15.0 | 2,000 | 20.0 | 3,000 MB |"
    )
    assert "Some CPU @ 2 GHz: torch 2.13, medians of 3 rounds, `bench/results/some-cpu-2-ghz/2026-01-02-" in shown
    assert "Old CPU" not in shown


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "run.json"
    for text in ("{", "[]", '{"benchmarks": [{"stats": {}}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"run\.json: found no record of pytest bench"):
            read_record(path)
    with pytest.raises(InputError, match="found no stored results"):
        bench_table.newest(tmp_path / "absent")
