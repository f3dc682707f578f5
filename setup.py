"""Builds jepa_fast._C by calling CMake, or says in one line why it installs without it. Metadata is in pyproject.toml.

Environment: JEPA_FAST_CUDA = ON, OFF or AUTO (the default), CMAKE_ARGS = further arguments for CMake,
JEPA_FAST_EXTENSION = OFF leaves the extension out.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
if not (ROOT / "jepa_fast" / "kernels").is_dir():
    raise SystemExit(
        "jepa_fast: this checkout has no links, and jepa_fast/kernels is one to kernels; on Windows turn on developer "
        "mode, then: git config core.symlinks true && git checkout -f ."
    )
# Tools installed beside this interpreter come first: a virtual environment need not be activated.
SEARCH_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def find_torch() -> Path | None:
    """Folder of the torch package, found without importing it.

    Inside pip's isolated build torch is not importable, but sysconfig still points at the environment installed into.
    """
    spec = importlib.util.find_spec("torch")
    folders = list(spec.submodule_search_locations or []) if spec else []
    folders += [str(Path(sysconfig.get_path(name), "torch")) for name in ("purelib", "platlib")]
    return next((Path(folder) for folder in folders if Path(folder, "include/torch/csrc/stable").is_dir()), None)


def find_compiler() -> str | None:
    """The C++ compiler CMake will use."""
    wanted = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    return next(filter(None, (shutil.which(name, path=SEARCH_PATH) for name in wanted)), None)


class CMakeBuild(build_ext):
    """Runs CMakeLists.txt and puts its _C.so where setuptools expects the extension."""

    def run(self) -> None:
        """Build, or leave the extension out where a tool is missing and CUDA was not asked for by name."""
        found = {
            "a C++ compiler": find_compiler(),
            "cmake": shutil.which("cmake", path=SEARCH_PATH),
            "torch 2.11 or newer": find_torch(),
            # CMakeLists.txt speaks to GCC and Clang.
            "a build for Windows": None if sys.platform == "win32" else ROOT,
        }
        why = " and ".join(name for name, place in found.items() if place is None)
        missing = f"missing {why}" if why else ""
        if os.environ.get("JEPA_FAST_EXTENSION") == "OFF":
            missing = "JEPA_FAST_EXTENSION is OFF"
        if missing and os.environ.get("JEPA_FAST_CUDA") == "ON":
            raise SystemExit(f"jepa_fast: JEPA_FAST_CUDA=ON cannot be met: {missing}")
        if missing:
            print(f"jepa_fast: installed without jepa_fast._C, plain PyTorch is used instead: {missing}")
            self.extensions = []
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and copy."""
        build = Path(self.build_temp).resolve()
        environment = os.environ | {"PATH": SEARCH_PATH}
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DTORCH_DIR={find_torch()}"]
        configure.append(f"-DJEPA_FAST_CUDA={os.environ.get('JEPA_FAST_CUDA', 'AUTO')}")
        if shutil.which("ninja", path=SEARCH_PATH):
            configure += ["-G", "Ninja"]
        try:
            subprocess.run(configure + shlex.split(os.environ.get("CMAKE_ARGS", "")), check=True, env=environment)
            subprocess.run(["cmake", "--build", str(build), "--target", "_C"], check=True, env=environment)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "jepa_fast: building jepa_fast._C failed, CMake says why above; "
                "JEPA_FAST_EXTENSION=OFF installs without it"
            ) from error
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build / "_C.so", target)


setup(
    ext_modules=[Extension("jepa_fast._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": CMakeBuild},
    # _C holds no Python: one wheel serves every version from 3.11 on.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
