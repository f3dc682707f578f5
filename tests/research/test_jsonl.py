"""Lines are appended whole, whoever else appends and however the last writer ended."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jepa_fast.errors import InputError
from research import jsonl

ROOT = Path(jsonl.__file__).parents[1]


def test_what_is_appended_is_read_back_in_order(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    assert jsonl.read(path) == []
    lines = [{"a": 1, "b": [0.1, None]}, {"text": "two\nlines, µ"}, {}]
    for line in lines:
        jsonl.append(path, line)
    assert jsonl.read(path) == lines
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 5, 14])
def test_a_half_written_last_line_is_ignored_and_the_next_one_takes_its_place(tmp_path, cut):
    path = tmp_path / "records.jsonl"
    jsonl.append(path, {"seed": 0})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seed": 10000}\n'[:cut])
    assert jsonl.read(path) == [{"seed": 0}]
    jsonl.append(path, {"seed": 2})
    assert path.read_bytes() == whole + b'{"seed": 2}\n'


def test_a_file_of_half_a_line_alone_holds_nothing(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"seed": 0')
    assert jsonl.read(path) == []
    jsonl.append(path, {"seed": 1})
    assert jsonl.read(path) == [{"seed": 1}]


def test_threads_and_processes_append_at_the_same_time(tmp_path):
    path = tmp_path / "records.jsonl"
    program = "import sys; from pathlib import Path; from research import jsonl\n"
    program += "for i in range(50): jsonl.append(Path(sys.argv[1]), {'who': 'process', 'i': i, 'pad': 'x' * 5000})"
    other = subprocess.Popen([sys.executable, "-c", program, path], env=os.environ | {"PYTHONPATH": str(ROOT)})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: jsonl.append(path, {"who": "thread", "i": i, "pad": "y" * 5000}), range(50)))
    assert other.wait() == 0
    found = {(line["who"], line["i"]) for line in jsonl.read(path)}
    assert found == {(who, i) for who in ("process", "thread") for i in range(50)}


@pytest.mark.linux
def test_a_write_that_the_system_refuses_leaves_the_file_as_it_was(tmp_path):
    """In a process that may not write files of more than 4096 bytes."""
    path = tmp_path / "records.jsonl"
    jsonl.append(path, {"seed": 0})
    before = path.read_bytes()
    program = "import resource, signal, sys; from pathlib import Path; from research import jsonl\n"
    program += (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    )
    program += "jsonl.append(Path(sys.argv[1]), {'pad': 'x' * 10000})"
    words = [sys.executable, "-c", program, path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert f"File too large: '{path}'" in done.stderr
    assert path.read_bytes() == before


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"seed": 0}) + "\n{\n")
    with pytest.raises(InputError, match=r"records\.jsonl, line 2: not JSON .* remove the line"):
        jsonl.read(path)
    path.write_text('{"error": NaN}\n')
    with pytest.raises(InputError, match=r"line 1: not JSON \(NaN is not a finite number\)"):
        jsonl.read(path)
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(InputError, match=r"line 1: not JSON \(nested too deeply\)"):
        jsonl.read(path)
    path.write_text("[1]\n")
    with pytest.raises(InputError, match=r"line 1: found a list, expected a JSON object"):
        jsonl.read(path)
