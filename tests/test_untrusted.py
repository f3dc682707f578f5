"""Files of others: whatever they hold, a command says one line or succeeds, and no traceback, and never nothing.

FUZZ_EXAMPLES=100000 draws as many damaged files per test; with FUZZ_CHARTS=1 reports draw their charts, which is slow.
"""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jepa_fast
from jepa_fast import cli
from jepa_fast.config import JEPAConfig, Recipe, RunConfig, read_model_config
from jepa_fast.data.manifest import Manifest
from jepa_fast.engine import record as engine_record
from jepa_fast.engine.record import Record
from jepa_fast.errors import InputError, printable
from jepa_fast.probing.results import DistanceBin, Evaluation, Example, ProbeSetResult, Scores
from jepa_fast.reading import MALFORMED, parse_json
from jepa_fast.report import probes, report, training
from jepa_fast.report.run import read_run
from jepa_fast.runs import create_run
from research import jsonl
from tests.forked import finished

ROOT = Path(jepa_fast.__file__).parents[1]
CHARTS = "FUZZ_CHARTS" in os.environ
# A file of 50,000 brackets is meant to be large.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")), deadline=None, suppress_health_check=list(HealthCheck),
    database=None,
)  # fmt: skip

ODD = [
    None, True, -1, 0, 1.5, -0.0, 1e-320, 1e308, 10**30, -(10**30), 2**63, "", "fp8", "\x1b[31m", "\ud800", "a\0b",
    [], {}, [[]], [None], {"": 0}, "<script>", "nan", math.nan, math.inf,
]  # fmt: skip
RAW = [
    b"", b"\xff\xfe\x00", b"\x80\x04K*.", b"{", b"[1e400]", b"NaN", b"[" * 50_000, b'{"a":' * 500, b"1" * 5000,
    b"null",
]  # fmt: skip
leaf = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=4)
odd = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)


def places(value, path=()):
    """The path of every value inside a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@st.composite
def damaged(draw, value):
    """JSON text of `value` in which up to three values are odd, missing, or under another name; or other bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(RAW) | st.binary(max_size=30))
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        inside = value
        for key in way:
            inside = inside[key]
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del inside[last]
        elif kind == 1 and isinstance(inside, dict):
            inside[draw(st.text(max_size=3))] = inside.pop(last)
        elif kind == 2:
            inside[last] = draw(st.floats() | st.integers(-(2**64), 2**64))
        else:
            # What is drawn may be damaged in turn, and is drawn again.
            inside[last] = copy.deepcopy(draw(odd))
    text = json.dumps(value).encode()
    return text if draw(st.integers(0, 9)) else text[: draw(st.integers(0, len(text)))]


CONFIG = RunConfig(
    preset="test", recipe=Recipe(model=JEPAConfig(channels=2, blocks=1, dim=8)), seed=3, steps=30, batch_size=8,
    amp="off", compile=False, device="cpu", data="nowhere", loader="host", kernels="reference", sparse=True,
)  # fmt: skip
SCORES = Scores(1.5, 1.25, [1.0, 2.0], [0.5, 2.0])
EXAMPLES = [
    Example(kind, 0, 0.5, [(1.0, 2.0), (2.0, 3.0)], [(1.5, 2.0), (2.0, 3.5)], [(0, 0, 5, 1)])
    for kind in ("best", "median", "worst")
]
EVALUATION = Evaluation(
    "nowhere", 0, 1000, 8, 2.0,
    [ProbeSetResult(name, 8, 8, SCORES, SCORES, 3.0, [DistanceBin(0.0, 5, 1.0, 1.0)], (65, 65), EXAMPLES)
     for name in ("probe_normal/val", "probe_wall/val")],
)  # fmt: skip
LINES = [
    {"step": step, "total": 3.0, "invariance": 1.0, "variance": 0.5, "covariance": 0.1, "gradient_norm": 2.0,
     "latent_std_mean": 1.0, "learning_rate": 1e-3, "stage": 1, "trajectories_per_s": 100.0}
    for step in (10, 20)
]  # fmt: skip
SPECTRUM = {"step": 10, "rank": 4.0, "rankme": 4.0, "size": 1.0, "std": [0.5, 1.0], "singular_values": [2.0, 1.0]}
ENVIRONMENT = {"command": ["python", "x"], "commit": None, "torch": "2", "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run folder as training and probing leave it, of a few lines."""
    folder = tmp_path_factory.mktemp("untrusted") / "run"
    create_run(folder, CONFIG)
    record = Record(folder, 0)
    for line in LINES:
        record.write(line)
    record.close()
    (folder / "spectra.jsonl").write_text(json.dumps(SPECTRUM) + "\n")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    EVALUATION.save(folder / "evaluation.json")
    return folder


CONTENTS = {
    "config.json": json.loads(json.dumps(asdict(CONFIG))),
    "evaluation.json": json.loads(json.dumps(asdict(EVALUATION))),
    "environment.json": ENVIRONMENT,
    "metrics.jsonl": LINES[0],
    "spectra.jsonl": SPECTRUM,
}


def refused(read):
    """Runs `read`: whether it was refused, in a line that can be printed and says something."""
    try:
        read()
    except (InputError, OSError) as error:
        line = printable(" ".join(str(error).split()))
        assert 10 < len(line) < 3000
        assert line.isprintable()
        return True
    return False


def checked_chart(series, x_label, y_label, log=False, bands=()):
    """In the place of a chart, which takes a second to draw: its numbers."""
    assert all(math.isfinite(value) for one in series for value in (*one.x, *one.y))
    return report.NO_HTML


@pytest.mark.parametrize("name", CONTENTS)
def test_a_report_of_a_damaged_run_is_refused_or_made(whole, name, monkeypatch):
    path, content = whole / name, (whole / name).read_bytes()
    if not CHARTS:
        for module in (probes, report, training):
            monkeypatch.setattr(module, "line_chart", checked_chart)
    outcomes = []

    @fuzz
    @given(damaged(CONTENTS[name]))
    def check(text):
        path.write_bytes(text + b"\n" if name.endswith("l") else text)

        def read():
            page = report.report(read_run(whole))
            report.comparison([read_run(whole)] * 2)
            assert page.count("<script") <= 1
            page.encode(errors="replace")

        outcomes.append(refused(read))

    assert not refused(lambda: report.report(read_run(whole)))
    try:
        check()
    finally:
        path.write_bytes(content)
    # An evaluation that is damaged is told in the page.
    assert (True in outcomes) is (name != "evaluation.json")


def test_a_damaged_manifest_is_refused_or_read(two_rooms):
    manifest = json.loads((two_rooms / "train" / "manifest.json").read_text())

    @fuzz
    @given(damaged(manifest))
    def check(text):
        refused(lambda: Manifest.parse(text, Path("manifest.json")))

    check()


def test_a_damaged_model_of_exported_weights_is_refused_or_read():
    @fuzz
    @given(damaged(CONTENTS["config.json"]["recipe"]["model"]))
    def check(text):
        def read():
            try:
                read_model_config(parse_json(text))
            except MALFORMED as error:
                raise InputError(f"config.json: {error!r}") from error

        refused(read)

    check()


def test_damaged_records_are_refused_or_read(tmp_path):
    @fuzz
    @given(damaged(LINES[0]))
    def check(text):
        (tmp_path / "records.jsonl").write_bytes(text + b"\n")
        refused(lambda: jsonl.read(tmp_path / "records.jsonl"))

    check()


@pytest.mark.parametrize("name", CONTENTS)
def test_a_folder_in_the_place_of_a_file_is_named(whole, name):
    path, content = whole / name, (whole / name).read_bytes()
    path.unlink()
    path.mkdir()
    try:
        if name == "evaluation.json":
            assert "damaged" in read_run(whole).no_evaluation
        else:
            with pytest.raises(InputError, match=name):
                read_run(whole)
    finally:
        path.rmdir()
        path.write_bytes(content)


def test_names_with_escape_codes_do_not_reach_the_terminal(tmp_path):
    done = finished("-m", "jepa_fast.verify", tmp_path / "\x1b]0;title\x07\x1b[31mred")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert r"\x1b[31mred" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "\x07" not in done.stderr + done.stdout


@pytest.mark.posix
def test_a_terminal_of_ascii_and_a_name_that_is_no_text_are_no_problem(whole):
    out = os.fsencode(whole) + b"/\xff\xc3\xa9.html"
    words = [sys.executable, "-m", "jepa_fast.report", whole, "--out", os.fsdecode(out)]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | ascii_only
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "px²" in Path(os.fsdecode(out)).read_text(encoding="utf-8")
    assert done.stdout.isascii()
    Path(os.fsdecode(out)).unlink()


@pytest.mark.posix
def test_a_reader_of_the_help_who_leaves_early_sees_no_error():
    command = f"{sys.executable} -m jepa_fast.train --help | head -1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)
    assert done.stdout.lower().startswith(b"usage:")
    assert done.stderr == b""


@pytest.mark.posix
@pytest.mark.parametrize("after_s", [0.15, 0.6, 1.2, 2.5])
def test_ctrl_c_in_the_first_seconds_leaves_no_traceback(tmp_path, two_rooms, after_s):
    words = [
        "--data.path",
        str(two_rooms),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "100000",
        "--data.batch-size",
        "4",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jepa_fast.train", *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs these tests may ignore it, and commands leave that so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    # 130: stopped, or saved and stopped; or ended by the signal itself, before Python could handle it.
    assert process.returncode in (130, -signal.SIGINT), error
    assert "Traceback" not in error


class Nothing:
    pass


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_memory_that_is_used_up_is_one_line(monkeypatch, capsys, error):
    def main(_):
        raise error

    monkeypatch.setattr(cli, "parse", lambda *_: Nothing())
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, Nothing, "")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: out of memory")


def test_the_recorded_commit_is_the_projects_own_or_none(tmp_path, monkeypatch):
    """Not that of a repository around an installed package, nor that which a hook of git names."""
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert engine_record._commit() == head.stdout.strip()
    other = tmp_path / "other"
    package = other / "venv" / "jepa_fast" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    git = ["git", "-C", str(other), "-c", "user.name=me", "-c", "user.email=me@here"]
    (other / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    if head.returncode == 0:
        assert engine_record._commit() == head.stdout.strip()
    monkeypatch.setattr(jepa_fast, "__file__", str(package))
    assert engine_record._commit() is None
    # A copy of the package at the top of another project's repository is not the project's either.
    copied = other / "jepa_fast" / "__init__.py"
    copied.parent.mkdir()
    copied.write_text("")
    monkeypatch.setattr(jepa_fast, "__file__", str(copied))
    assert engine_record._commit() is None
