"""`jepa-fast NAME` is `python -m jepa_fast.NAME`."""

import os
import subprocess
import sys

import pytest

from jepa_fast import commands
from jepa_fast.commands import descriptions, main
from tests.test_layout import COMMANDS, ROOT


def test_every_command_is_listed_with_what_it_does(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert {f"jepa_fast.{name}" for name in descriptions()} == {name for name in COMMANDS if "research" not in name}
    assert all(f"  {description}" in shown for description in descriptions().values())
    main([])
    assert capsys.readouterr().out == shown


def test_a_wrong_name_is_one_line_with_the_one_that_was_meant(capsys):
    for name in ("trian", "../train", "errors"):
        with pytest.raises(SystemExit) as stopped:
            main([name])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {name}: no such command")
    with pytest.raises(SystemExit):
        main(["trian"])
    assert "did you mean train?" in capsys.readouterr().err


def test_a_command_runs_on_several_processes(tmp_path):
    """Workers are spawned, and find by its name the module that was started."""
    program = "from jepa_fast.commands import main; main()"
    words = ["generate", "--out", tmp_path / "data", "--splits", "train", "--trajectories", "1024", "--workers", "2"]
    subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "data" / "train" / "manifest.json").exists()


def test_flags_are_the_command_s_own(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jepa-fast", "export", "--help"])
    # Other tests may have imported it, as no process does that starts a command.
    monkeypatch.delitem(sys.modules, "jepa_fast.export", raising=False)
    with pytest.raises(SystemExit) as stopped:
        commands.main()
    assert stopped.value.code == 0
    assert "Run folder." in capsys.readouterr().out
