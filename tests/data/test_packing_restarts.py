"""Packing that is interrupted, repeated, contended or refused: nothing finished is lost, nothing half done opens."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.errors import InputError

ROOT = Path(__file__).parents[2]
ENCODINGS = ("window", "static", "dense")


def test_a_finished_split_is_kept_untouched(tmp_path, draw_source, caplog):
    source = draw_source()
    first = pack(source, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    source.asked.clear()
    # What a run leaves that is killed right after the manifest.
    (tmp_path / "shard-00000.json").write_text(first.to_json())
    with caplog.at_level(logging.INFO):
        assert pack(source, tmp_path) == first
    assert source.asked == []
    assert "already there" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


@pytest.mark.parametrize(
    ("change", "encoding", "what"),
    [
        (lambda s: setattr(s, "description", {"made": "otherwise"}), "window", r"source\.made"),
        (lambda s: s.description.update(more={"a": 1}), "window", r"source\.more"),
        (lambda s: s.description.clear(), "window", r"source\.made"),
        (lambda s: setattr(s, "dots", s.dots[:20]), "window", "trajectories"),
        (lambda s: setattr(s, "scale", 0.25), "window", "scale"),
        (lambda s: None, "dense", "encoding"),
    ],
)
def test_a_finished_split_of_another_description_is_not_overwritten(
    tmp_path, draw_source, folder_bytes, change, encoding, what
):
    source = draw_source()
    pack(source, tmp_path)
    before = folder_bytes(tmp_path)
    change(source)
    with pytest.raises(InputError, match=f"holds another finished split: {what}: found"):
        pack(source, tmp_path, encoding)
    assert folder_bytes(tmp_path) == before


def test_an_interrupted_source_goes_on_after_the_finished_shards(tmp_path, draw_source, folder_bytes, monkeypatch):
    monkeypatch.setattr("jepa_fast.data.packing.CHUNK_ROWS", 5)
    source = draw_source()
    source.dots[23, 2] = 0
    source.dots[23, 2, 3:9, 5:10] = 7
    pack(source, tmp_path / "whole", shard_rows=10)

    def fail_late(start, stop):
        # Once for all trajectories to be looked at, as one does not fit; not again to be written.
        if (start, stop) in source.asked and start >= 30:
            raise KeyboardInterrupt
        return type(source).chunk(source, start, stop)

    source.asked.clear()
    source.chunk = fail_late
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "parts", shard_rows=10)
    names = {path.name for path in (tmp_path / "parts").iterdir()}
    assert {name for name in names if name.startswith("shard-")} == {f"shard-{index:05d}.json" for index in range(3)}
    assert not any(name.endswith((".tmp", "-00003.npy")) for name in names)
    # One finished shard rots in the meantime: it is noticed and written again.
    with (tmp_path / "parts" / "wall.pixels-00001.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    del source.chunk
    source.asked.clear()
    pack(source, tmp_path / "parts", shard_rows=10)
    # The first chunk is looked at for the layout; then only what is missing is computed.
    assert source.asked == [(0, 5), (10, 15), (15, 20), (30, 35), (35, 40)]
    assert folder_bytes(tmp_path / "parts") == folder_bytes(tmp_path / "whole")


def test_shards_of_another_size_are_written_again(tmp_path, draw_source, folder_bytes):
    source = draw_source()

    def fail_late(start, stop):
        if start >= 30:
            raise KeyboardInterrupt
        return type(source).chunk(source, start, stop)

    source.chunk = fail_late
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "parts", shard_rows=10)
    del source.chunk
    pack(source, tmp_path / "parts", shard_rows=8)
    pack(source, tmp_path / "whole", shard_rows=8)
    assert folder_bytes(tmp_path / "parts") == folder_bytes(tmp_path / "whole")


def test_unfinished_shards_of_another_source_are_not_kept(tmp_path, draw_source, folder_bytes, monkeypatch):
    source, other = draw_source(seed=0), draw_source(seed=1)
    other.description = {"made": "otherwise"}
    pack(source, tmp_path / "expected", shard_rows=10)
    pack(other, tmp_path / "used", shard_rows=10)
    manifest = open_split(tmp_path / "used").manifest
    records = [type(manifest)(**{**vars(manifest.header()), "shards": (shard,)}) for shard in manifest.shards]
    for index, record in enumerate(records):
        (tmp_path / "used" / f"shard-{index:05d}.json").write_text(record.to_json())
    (tmp_path / "used" / "manifest.json").unlink()
    (tmp_path / "used" / "shard-00003.json").write_text("{")
    (tmp_path / "used" / "notes.txt").write_text("mine")
    found_when_measured = []
    disk_usage = shutil.disk_usage

    def look(folder):
        found_when_measured.append([path.name for path in folder.iterdir() if path.name != ".lock"])
        return disk_usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", look)
    pack(source, tmp_path / "used", shard_rows=10)
    # Their space is free before it is measured.
    assert found_when_measured == [["notes.txt"]]
    assert folder_bytes(tmp_path / "used") == {**folder_bytes(tmp_path / "expected"), "notes.txt": b"mine"}


PACK_TRAIN = """
import sys
from pathlib import Path
from jepa_fast.data.packing import pack
from jepa_fast.data.two_rooms.source import TwoRoomsSource
pack(TwoRoomsSource("train", 6_000, 5), Path(sys.argv[1]), workers=2, shard_rows=512)
"""


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.linux
def test_a_killed_packer_leaves_no_worker_and_its_finished_shards_are_kept(tmp_path, folder_bytes):
    source = TwoRoomsSource("train", 6_000, 5)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    packer = subprocess.Popen([sys.executable, "-c", PACK_TRAIN, str(parts)], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not (parts / "shard-00001.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = children(packer.pid)
    packer.send_signal(signal.SIGKILL)
    assert packer.wait() == -signal.SIGKILL
    assert not (parts / "manifest.json").exists(), "the packer was done before it was killed"
    assert len(workers) >= 2
    while alive := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.01)
    with pytest.raises(InputError, match="packing did not finish"):
        open_split(parts)

    finished = {path: path.stat().st_mtime_ns for path in parts.glob("*.pixels-0000[01].npy")}
    assert len(finished) == 4
    pack(source, parts, workers=2, shard_rows=512)
    pack(source, whole, workers=1, shard_rows=512)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert folder_bytes(parts) == folder_bytes(whole)


def test_two_packers_do_not_share_a_folder(tmp_path, draw_source):
    source = draw_source()

    def pack_again(start, stop):
        pack(draw_source(), tmp_path)

    source.chunk = pack_again
    with pytest.raises(InputError, match="in use by process"):
        pack(source, tmp_path)


def test_too_little_disk_space_is_told_before_writing(tmp_path, draw_source, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_000_000))
    with pytest.raises(InputError, match=r"found 0\.00 GB free, expected 0\.06 GB"):
        pack(draw_source(), tmp_path)
    assert list(tmp_path.iterdir()) == []


WRITE_LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
sys.argv = ["generate", "--out", sys.argv[1], "--splits", "train", "--trajectories", "2000", "--workers", "1"]
runpy.run_module("jepa_fast.generate", run_name="__main__")
"""


@pytest.mark.linux
def test_a_refused_write_is_one_line_and_leaves_nothing_half_done(tmp_path):
    # A limit on file sizes: the system refuses write() in the middle of a shard, as it does on a full disk.
    done = subprocess.run(
        [sys.executable, "-c", WRITE_LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"error: File too large: {tmp_path}/train/wall.pixels-00000.npy\n"
    assert list((tmp_path / "train").iterdir()) == []
