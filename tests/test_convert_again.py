"""Converting what was converted before, wholly or in part: what is there is kept if it is the source's."""

import logging
import signal
import time
from pathlib import Path

import pytest

from jepa_fast.convert import convert
from jepa_fast.data import conversion
from jepa_fast.data.writing import write_text
from jepa_fast.errors import InputError
from tests.course_layout import course_arrays, save
from tests.forked import Command

ROOT = Path(__file__).parents[1]
TWO_ROOMS = ("agent:1", "wall:1")


def test_the_round_trip_finds_any_change_on_disk(tmp_path, monkeypatch):
    states, actions, locations = course_arrays(12)
    files = save(tmp_path / "course", states, actions, locations)
    convert(**files, out=tmp_path / "split", groups=TWO_ROOMS, workers=1)
    assert convert(**files, out=tmp_path / "split", groups=TWO_ROOMS, workers=1).trajectories == 12
    for name in ("agent.pixels", "wall.pixels", "actions", "target.locations"):
        path = tmp_path / "split" / f"{name}-00000.npy"
        intact = path.read_bytes()
        content = bytearray(intact)
        content[128 + (len(intact) - 128) * 7 // 12 + 20] ^= 1
        path.write_bytes(content)
        what = {"agent.pixels": "agent pixels", "wall.pixels": "wall pixels"}.get(name, name.removeprefix("target."))
        with pytest.raises(InputError, match=f"split: trajectory 7: its {what} are not those of .*states"):
            convert(**files, out=tmp_path / "split", groups=TWO_ROOMS, workers=1)
        path.write_bytes(intact)


def test_other_content_under_the_same_names_is_not_taken_for_the_same_set(tmp_path):
    states, actions, _ = course_arrays(5)
    convert(**save(tmp_path / "course", states, actions), out=tmp_path / "split", workers=1)
    files = save(tmp_path / "course", states, actions + 1)
    with pytest.raises(InputError, match=r"holds another finished split: source\.sha256: found"):
        convert(**files, out=tmp_path / "split", workers=1)


def test_frames_that_changed_where_the_source_was_not_sampled_are_found_by_comparing(tmp_path, monkeypatch, caplog):
    """The hash of a source is of some of its frames; what an earlier run left is compared with all of them."""
    monkeypatch.setattr(conversion, "MOST_SAMPLE", 3)
    monkeypatch.setattr("jepa_fast.data.packing.SHARD_BYTES", 1_500_000)
    monkeypatch.setattr("jepa_fast.data.packing.CHUNK_ROWS", 4)
    states, actions, _ = course_arrays(40)
    files, written = save(tmp_path / "course", states, actions), []

    def interrupted(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write_text(*arguments))

    with monkeypatch.context() as patched:
        patched.setattr("jepa_fast.data.packing.write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(**files, out=tmp_path / "parts", encoding="dense", workers=1)
    # Shard 0 is of trajectories 0 to 3 or more; the sample is of the first, the middle and the last.
    states[2, 5, 0, 30, 7] ^= 1
    save(tmp_path / "course", states, actions)
    with caplog.at_level(logging.INFO):
        convert(**files, out=tmp_path / "parts", encoding="dense", workers=1)
    assert "written again" in caplog.text
    assert "kept 1 finished shards of an earlier run" in caplog.text
    convert(**files, out=tmp_path / "whole", encoding="dense", workers=1)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()} == whole
    states[9, 1, 1, 2, 2] ^= 1
    save(tmp_path / "course", states, actions)
    with pytest.raises(InputError, match=r"whole: trajectory 9: its frames pixels are not those of .*choose another"):
        convert(**files, out=tmp_path / "whole", encoding="dense", workers=1)


def test_a_killed_conversion_is_continued_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_fast.data.packing.SHARD_BYTES", 1_500_000)
    states, actions, locations = course_arrays(1500)
    files = save(tmp_path / "course", states, actions, locations)
    convert(**files, out=tmp_path / "whole", workers=1)
    code = (
        "import sys; from pathlib import Path; import jepa_fast.data.packing as p\n"
        "from jepa_fast.convert import convert\n"
        "p.SHARD_BYTES = 1_500_000\n"
        "f = Path(sys.argv[1]); convert(f / 'states.npy', f / 'actions.npy', Path(sys.argv[2]), f / 'locations.npy', "
        "workers=1)"
    )
    parts = tmp_path / "parts"
    process = Command("-c", code, tmp_path / "course", parts)
    deadline = time.monotonic() + 300
    while not (parts / "shard-00000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (parts / "manifest.json").exists(), "the conversion was done before it was killed"
    convert(**files, out=parts, workers=1)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in parts.iterdir()} == whole
