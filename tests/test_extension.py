import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jepa_fast.kernels import extension
from tests.forked import finished

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.mark.skipif(not extension.LIBRARY.exists(), reason="jepa_fast is installed without its compiled extension")
@pytest.mark.parametrize("left", [64, 0.5, -200])
def test_a_library_that_was_cut_short_is_not_loaded_and_the_doctor_says_so(tmp_path: Path, left: float) -> None:
    """Loaded, it ends the process by SIGBUS: so in a process of its own, which forgets what it has loaded."""
    content = extension.LIBRARY.read_bytes()
    size = int(left * len(content)) if isinstance(left, float) else left
    (tmp_path / "_C.abi3.so").write_bytes(content[:size])
    program = f"""
from pathlib import Path
from jepa_fast.kernels import extension
extension.LIBRARY = Path({str(tmp_path / "_C.abi3.so")!r})
extension.load.cache_clear()
from jepa_fast import diagnosis
print(extension.load())
(found,) = [finding for finding in diagnosis.operators() if finding.topic == "extension"]
print(found.problem, found.remedy)
"""
    done = finished("-c", program)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("_C.abi3.so is cut short: found ")
    assert first in second
    assert "make install" in second


def sealed(content: bytes, tmp_path: Path) -> bytes:
    (tmp_path / "library").write_bytes(content)
    words = ["cmake", f"-DLIBRARY={tmp_path / 'library'}", "-P", ROOT / "csrc" / "seal.cmake"]
    subprocess.run(words, check=True, capture_output=True)
    return (tmp_path / "library").read_bytes()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
def test_a_library_of_which_a_bit_is_flipped_is_not_loaded(tmp_path: Path) -> None:
    content = sealed(bytes(range(256)) * 100, tmp_path)
    assert extension.find_damage(content) is None
    for place in (0, 12_800, len(content) - 100):
        damaged = bytearray(content)
        damaged[place] ^= 1
        assert "its content is not what its checksum was made of" in (extension.find_damage(bytes(damaged)) or "")
    assert "checksum" in (extension.find_damage(content[:1000] + content[2000:]) or "")


def test_operators_are_those_of_the_bindings() -> None:
    sources = [path.read_text() for path in (ROOT / "csrc" / "bindings").glob("*.cpp")]
    defined = {name for text in sources for name in re.findall(r'\bm\.def\(\s*"(\w+)\(', text)}
    assert set(extension.OPERATORS) == defined


@pytest.mark.skipif(not extension.LIBRARY.exists(), reason="jepa_fast is installed without its compiled extension")
def test_a_library_of_older_sources_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = extension.LIBRARY.read_bytes().replace(b"probe_outputs(", b"probe_answers(")
    # Without its seal, of which a checksum is a part.
    (tmp_path / "_C.abi3.so").write_bytes(re.sub(rb"jepa_fast [0-9a-f]{64} \d+\n\Z", b"", older))
    monkeypatch.setattr(extension, "LIBRARY", tmp_path / "_C.abi3.so")
    reason = extension.load.__wrapped__()
    assert reason == "_C.abi3.so was built from older sources, without probe_outputs, reinstall jepa_fast"
