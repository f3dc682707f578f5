import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from scripts import gates

ROOT = Path(__file__).resolve().parent.parent
NO_NETWORK = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir"]
MISSING_COMPILER = "jepa_fast: installed without jepa_fast._C, plain PyTorch is used instead: missing a C++ compiler"
# What a source archive would hold of the top level.
PARTS = {
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "csrc",
    "jepa_fast",
    "kernels",
    "pyproject.toml",
    "setup.py",
}


def leave_out(folder: str, names: list[str]) -> set[str]:
    built = {name for name in names if name == "__pycache__" or name.endswith(".so")}
    return built | (set(names) - PARTS if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as someone would unpack it: no git, nothing built."""
    target = tmp_path_factory.mktemp("build") / "jepa_fast"
    shutil.copytree(ROOT, target, ignore=leave_out, symlinks=True)
    return target


def pip(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in {"CC", "CXX", "JEPA_FAST_CUDA", "CMAKE_ARGS"}
    }
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=540, check=False
    )


def test_without_compiler_installs_plain_and_says_so_in_one_line(sources: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    target = tmp_path / "site"
    installed = pip("install", "-v", *NO_NETWORK, "--target", str(target), ".", cwd=sources, PATH=str(empty))
    output = installed.stdout + installed.stderr
    assert installed.returncode == 0, output
    assert [line.strip() for line in output.splitlines() if "without jepa_fast._C" in line] == [MISSING_COMPILER]
    assert (target / "jepa_fast" / "py.typed").exists()
    assert not list(target.rglob("_C*"))
    program = (
        "import torch, jepa_fast.kernels.vicreg as m; x = torch.tensor([[1.0, 2.0], [3.0, 6.0]]);"
        "print(m.__file__); print(m.vicreg(x, x + 1).tolist())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    place, values = ran.stdout.splitlines()
    assert Path(place).is_relative_to(target)
    assert values == "[1.0, 0.0, 16.0]"
    assert ran.stderr.splitlines() == [
        "jepa_fast::vicreg on cpu runs in plain PyTorch: jepa_fast was installed without its compiled extension"
    ]
    plays(target, tmp_path)


def plays(installed: Path, place: Path) -> None:
    """`jepa-fast play` works right after an installation, away from the sources."""
    program = "import sys; from jepa_fast.commands import main; main(sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    script = installed / "bin" / "jepa-fast"
    start = [str(script)] if script.exists() else [sys.executable, "-c", program]
    page = place / "play.html"
    done = subprocess.run(
        [*start, "play", "--out", str(page)], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gated_pixels" in page.read_text()


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_wheel_holds_the_library_and_the_kernels_as_files(sources: Path, tmp_path: Path) -> None:
    built = pip("wheel", *NO_NETWORK, "--wheel-dir", str(tmp_path), ".", cwd=sources, JEPA_FAST_CUDA="OFF")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        kernel = archive.read("jepa_fast/kernels/vicreg.py")
        archive.extractall(tmp_path / "site")
    assert {"jepa_fast/_C.abi3.so", "jepa_fast/py.typed"} <= names
    data = {path for path in (ROOT / "jepa_fast").rglob("*") if path.suffix in {".html", ".css", ".js", ".safetensors"}}
    assert {str(path.relative_to(ROOT)) for path in data} <= names
    assert "jepa-fast = jepa_fast.commands:main" in next((tmp_path / "site").glob("*/entry_points.txt")).read_text()
    assert wheel.stat().st_size < 1_500_000
    plays(tmp_path / "site", tmp_path)
    assert not {name for name in names if not name.startswith(("jepa_fast/", "jepa_fast-"))}
    assert kernel == (ROOT / "kernels" / "vicreg.py").read_bytes()


@pytest.mark.posix
def test_source_archive_holds_all_that_a_build_needs(sources: Path) -> None:
    program = "import setuptools.build_meta as backend; print(backend.build_sdist('dist'))"
    built = subprocess.run([sys.executable, "-c", program], cwd=sources, capture_output=True, text=True, check=True)
    archive = sources / "dist" / built.stdout.splitlines()[-1]
    shutil.unpack_archive(archive, sources / "dist", filter="data")
    unpacked = Path(str(archive).removesuffix(".tar.gz"))
    wanted = {"CMakeLists.txt", "setup.py", "jepa_fast/kernels/vicreg.py"}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert [name for name in sorted(wanted) if not (unpacked / name).is_file()] == []
    assert not (unpacked / "jepa_fast" / "kernels").is_symlink()


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.skipif(
    any(Path(torch.__path__[0], "lib").glob("libc10_cuda*")), reason="torch is a CUDA build: CUDA=ON can be met"
)
def test_cuda_on_with_a_cpu_torch_is_refused(sources: Path, tmp_path: Path) -> None:
    built = pip("wheel", *NO_NETWORK, "--wheel-dir", str(tmp_path), ".", cwd=sources, JEPA_FAST_CUDA="ON")
    assert built.returncode != 0
    output = " ".join((built.stdout + built.stderr).split())
    assert "JEPA_FAST_CUDA=ON cannot be met: missing" in output
    assert "a CUDA build of torch (no libc10_cuda in" in output
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.posix
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("flag", ["AUTO", "ON"])
def test_an_nvcc_that_cannot_is_left_out_with_one_line_or_refused(tmp_path: Path, flag: str) -> None:
    place, folder = Path(torch.__path__[0]), tmp_path / "torch"
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(place / "include")
    (folder / "lib" / "libtorch_cpu.so").symlink_to(place / "lib" / "libtorch_cpu.so")
    for name in ("libc10_cuda.so", "libtorch_cuda.so"):
        (folder / "lib" / name).touch()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'error: -- unsupported GNU version!' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    command = ["cmake", "-S", ROOT, "-B", tmp_path / "build", f"-DTORCH_DIR={folder}", f"-DJEPA_FAST_CUDA={flag}"]
    environment = os.environ | {"PATH": path, "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert f"missing an nvcc that compiles C++20 for sm_90 ({nvcc}: error: -- unsupported GNU version!)" in said
    assert (done.returncode == 0) == (flag == "AUTO"), said
    assert ("jepa_fast._C: CUDA OFF" in said) == (flag == "AUTO")


def test_cuda_on_without_a_compiler_is_refused(sources: Path, tmp_path: Path) -> None:
    built = pip(
        "wheel", *NO_NETWORK, "--wheel-dir", str(tmp_path), ".", cwd=sources, PATH=str(tmp_path), JEPA_FAST_CUDA="ON"
    )
    assert built.returncode != 0
    assert "jepa_fast: JEPA_FAST_CUDA=ON cannot be met: missing a C++ compiler" in built.stdout + built.stderr


@pytest.mark.skipif(gates.find_nvcc() is None, reason="nvcc not found in PATH, CUDA_HOME or /usr/local/cuda")
@pytest.mark.skipif(gates.find_cuobjdump() is None, reason="cuobjdump not found in PATH, beside nvcc or in triton")
def test_cuda_kernels_compile_without_stack_or_local_memory() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/gates.py"], cwd=ROOT, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in gates.REGISTER_CEILINGS:
        rows = [line for line in done.stdout.splitlines() if kernel in line]
        assert {architecture for row in rows for architecture in row.split() if architecture.startswith("sm_")} == {
            "sm_80",
            "sm_90",
        }


def test_gates_name_a_kernel_that_spills() -> None:
    cost = gates.KernelCost("vicreg_means_kernel<float>", "sm_80", registers=32, shared=0, stack=16, local=8)
    assert gates.find_violations([cost]) == [
        "vicreg_means_kernel<float> on sm_80: 16 bytes of stack and 8 of local memory, expected none"
    ]
    assert gates.find_violations([cost._replace(stack=0, local=0)]) == []
    assert gates.find_violations([cost._replace(stack=0, local=0, registers=200)]) != []
    assert gates.find_violations([cost._replace(stack=0, local=0, name="unknown_kernel")]) != []
