"""The tables of the loaders' page say what the stored results say."""

import json

from research.loader_table import BEGIN, END, PAGE, RESULTS, drawn, newest_with_loaders


def row(what, candidate, speed, **extra):
    info = {
        "candidate": candidate, "is_ours": candidate.startswith("ours"), "device": "Some CPU, 2 threads",
        "torch": "2.13", "trajectories_per_s": speed, "gb_s": 1.234, "percent_of_memcpy": 81.6, "memcpy_gb_s": 20.04,
        "batch_bytes": 18_400_000, "private_mb": 71, "resident_mb": 1618,
    }  # fmt: skip
    return {"group": f"loader, {what}, batch 128", "extra_info": info | extra}


def record():
    names = {"DataLoader, float32": 4_000, "DataLoader, float32, tuned malloc": 10_000, "ours, host": 146_000}
    whats = ("full frames", "windows")
    rows = [row(what, name, speed) for what in whats for name, speed in {**names, "ours, resident": 150_000}.items()]
    return {"benchmarks": [*rows, {"group": "step, batch 32", "extra_info": {}}, {"group": None, "extra_info": {}}]}


def test_the_page_is_drawn_from_the_newest_results_with_loaders(tmp_path):
    results = tmp_path / "bench" / "results"
    for name, content in {
        "a/2026-01-01-aaa.json": {"benchmarks": []},
        "a/2026-01-02-bbb.json": record(),
        "b/2026-01-03-ccc.json": {"benchmarks": [{"group": "step", "extra_info": {}}]},
    }.items():
        path = results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    assert newest_with_loaders(results) == results / "a" / "2026-01-02-bbb.json"
    page = drawn(f"before\n{BEGIN}\nold\n{END}\nafter\n", results)
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| ours, host | 146,000 | 1.23 | 82% | 71 | 1,618 |" in page
    # Once among the full frames, not again among the windows.
    assert page.count("| DataLoader, float32 |") == 1
    assert "- host, full frames: 36.5 times DataLoader, float32\n" in page
    assert "- host, full frames: 14.6 times DataLoader, float32, tuned malloc\n" in page
    assert "- resident, windows: 1.03 times host\n" in page
    assert drawn(page, results) == page


def test_the_committed_page_is_the_drawn_one():
    assert drawn(PAGE.read_text(), RESULTS) == PAGE.read_text()
