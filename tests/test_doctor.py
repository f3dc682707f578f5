"""The doctor says what is there; whatever is wrong comes with a remedy and exit status 1."""

import importlib.metadata
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from packaging.specifiers import SpecifierSet

from jepa_fast import diagnosis, doctor
from jepa_fast.data.checks import OTHER_FILES
from jepa_fast.diagnosis import Finding
from jepa_fast.kernels import dispatch, extension
from tests.forked import finished

GB = 10**9
Usage = namedtuple("Usage", "total used free")


def only(findings, topic) -> Finding:
    (found,) = [finding for finding in findings if finding.topic == topic]
    return found


def test_command_ends_with_status_1_where_a_split_is_damaged(tmp_path, two_rooms):
    data = tmp_path / "data"
    shutil.copytree(two_rooms / "train", data / "train")
    next((data / "train").glob("wall*.npy")).write_bytes(b"")
    done = finished("-m", "jepa_fast.doctor", "--data", data)
    assert done.returncode == 1, done.stderr
    assert "! train" in done.stdout
    assert "found 0 bytes, expected" in done.stdout
    assert f"remedy:  remove {data / 'train'} and" in done.stdout
    assert "found, each with a remedy above" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sound_machine_has_nothing_wrong(monkeypatch, capsys):
    monkeypatch.setattr(diagnosis, "diagnose", lambda data: [Finding("torch", "2.13.0"), Finding("disk", "fast")])
    doctor.main(doctor.Arguments())
    assert capsys.readouterr().out == "  torch  2.13.0\n  disk   fast\nNothing is wrong.\n"


@pytest.mark.linux
def test_every_problem_has_a_remedy(tmp_path, monkeypatch):
    """All that can be broken from here at once."""
    monkeypatch.setattr(extension, "load", lambda: "installed without it")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(GB, GB, GB))
    monkeypatch.setattr(diagnosis, "write_mb_s", lambda folder: 3.0)
    monkeypatch.setattr("resource.getrlimit", lambda kind: (20, 20))
    (tmp_path / "train").mkdir()
    problems = [finding for finding in diagnosis.diagnose(tmp_path) if finding.problem is not None]
    assert {finding.topic for finding in problems} >= {"extension", "free space", "write speed", "train", "open files"}
    assert all(finding.remedy for finding in problems)


def test_splits_are_counted(two_rooms):
    found = diagnosis.data_folder(two_rooms)
    assert only(found, "train").found == "48 trajectories in 1 shards"
    assert only(found, "probe_expert/val").problem is None
    assert len(found) == 7


def test_absent_data_is_no_problem_an_empty_folder_is(tmp_path):
    (absent,) = diagnosis.data_folder(tmp_path / "absent")
    assert absent.problem is None
    (empty,) = diagnosis.data_folder(tmp_path)
    assert empty.remedy == f"python -m jepa_fast.generate --out {tmp_path}"


def test_each_op_says_what_it_runs_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(extension, "load", lambda: None)
    compiled = {("vicreg", "cpu"), ("convnext_block_cpu", "cpu")}
    monkeypatch.setattr(extension, "has_kernel", lambda *asked: asked in compiled)
    monkeypatch.setattr(dispatch, "why_no_triton", lambda device: None if device == "cuda" else "not here")
    found = diagnosis.operators()
    assert only(found, "jepa_fast::rollout on cpu").found == "plain PyTorch: not here"
    assert only(found, "jepa_fast::rollout on cuda").found == "Triton kernel"
    assert only(found, "jepa_fast::convnext_block on cpu").found == "compiled kernel"
    assert only(found, "jepa_fast::vicreg on cpu").found == "compiled kernel"
    on_cuda = only(found, "jepa_fast::vicreg on cuda")
    assert on_cuda.problem == "the extension was built without CUDA"
    assert "JEPA_FAST_CUDA=ON" in on_cuda.remedy

    monkeypatch.setattr(extension, "load", lambda: "installed without it")
    monkeypatch.setattr(extension, "has_kernel", lambda operator, device: False)
    found = diagnosis.operators()
    assert only(found, "extension").problem == "installed without it"
    # The one cause is named once.
    assert sum(finding.problem is not None for finding in found) == 1


def test_a_device_without_triton_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch, "why_no_triton", lambda device: "triton is not installed")
    on_cuda = only(diagnosis.operators(), "jepa_fast::rollout on cuda")
    assert on_cuda.problem == "triton is not installed"
    assert "install triton" in on_cuda.remedy


def test_versions_are_compared_as_versions():
    assert diagnosis._version("torch", "2.13.0+cpu", SpecifierSet(">=2.9")).problem is None
    old = diagnosis._version("torch", "2.9.1", SpecifierSet(">=2.11"))
    assert (old.problem, old.remedy) == ("expected >=2.11", "pip install --constraint constraints.txt 'torch>=2.11'")
    assert diagnosis._version("tyro", "missing", SpecifierSet(">=1")).problem == "expected >=1"


@pytest.mark.parametrize(
    ("cuda", "problem"), [(None, "is built without CUDA"), ("12.8", "CUDA 12.8 and sees no device")]
)
def test_a_driver_without_a_device_is_a_problem(monkeypatch, cuda, problem):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert problem in only(diagnosis.devices(), "CUDA device").problem


@pytest.mark.linux
def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    assert "cannot be written" in diagnosis.disk(Path("/proc/data"))[1].problem
    sound = diagnosis.disk(tmp_path / "not" / "yet")
    assert str(tmp_path) in sound[0].found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.linux
def test_open_files_are_counted_from_the_largest_split(two_rooms, monkeypatch):
    manifests = [json.loads(path.read_text()) for path in two_rooms.rglob("manifest.json")]
    files = [sum(len(shard["files"]) for shard in manifest["shards"]) for manifest in manifests]
    assert len(set(files)) > 1
    needed = max(files) + OTHER_FILES
    # The last one is no limit.
    for limit, wrong in ((needed, False), (needed - 1, True), (-1, False)):
        monkeypatch.setattr("resource.getrlimit", lambda kind, limit=limit: (limit, limit))
        assert (diagnosis.open_files(two_rooms).problem is not None) is wrong


@pytest.mark.parametrize(("version", "found"), [("2.4.0", "dali (DALI 2.4.0)"), (None, "dali after: pip install")])
def test_loaders_are_listed_with_how_to_get_the_missing_one(monkeypatch, version, found):
    def look(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", look)
    finding = diagnosis.loaders()
    assert finding.problem is None
    assert finding.found.startswith("host, resident")
    assert found in finding.found
