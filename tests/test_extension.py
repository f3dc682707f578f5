from pathlib import Path

import pytest

from jepa_fast.kernels import extension


def test_absent_library_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "LIBRARY", tmp_path / "_C.abi3.so")
    assert extension.load.__wrapped__() == "jepa_fast was installed without its compiled extension"


def test_library_that_does_not_load_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "_C.abi3.so"
    library.write_text("built for\nanother torch\n")
    monkeypatch.setattr(extension, "LIBRARY", library)
    reason = extension.load.__wrapped__()
    assert reason is not None
    assert reason.startswith("_C.abi3.so does not fit torch ")
    assert "reinstall jepa_fast" in reason
    assert "\n" not in reason


def test_unknown_operator_has_no_kernel() -> None:
    assert not extension.has_kernel("no_such_operator", "cpu")
