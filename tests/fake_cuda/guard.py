"""The device of guard.cpp as a library, for LD_PRELOAD: it has to be there before torch."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
FOLDER = SOURCE.parents[2] / "build" / "fake_cuda"


def why_none() -> str | None:
    """Why it cannot be built here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if sys.platform == "linux" and _compiler() is not None else "no C++ compiler, or no LD_PRELOAD"


def built() -> Path:
    """The library, compiled for this torch unless that has been done."""
    library = FOLDER / f"guard-{version('torch')}.so"
    if library.exists() and library.stat().st_mtime >= SOURCE.stat().st_mtime:
        return library
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    place, compiler = Path(spec.origin).parent, _compiler()
    assert compiler is not None
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        new = Path(folder) / library.name
        command = [compiler, "-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-I{place / 'include'}", str(SOURCE)]
        libraries = [f"-L{place / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{place / 'lib'}"]
        subprocess.run([*command, *libraries, "-o", str(new)], check=True)
        # Another process may be doing the same.
        new.replace(library)
    return library


def environment() -> dict[str, str]:
    """That of a process which has the device."""
    return dict(os.environ) | {"LD_PRELOAD": str(built()), "JEPA_FAST_FAKE_CUDA": "1", "OMP_NUM_THREADS": "1"}


def _compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++")
