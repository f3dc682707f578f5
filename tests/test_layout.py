import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = [
    "CMakeLists.txt",
    "setup.py",
    "pyproject.toml",
    "constraints.txt",
    "Makefile",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    ".ci/run",
    ".github/workflows/ci.yml",
    "bench",
    "csrc",
    "examples",
    "jepa_fast",
    "kernels",
    "research",
    "tests",
]
SOURCES = [
    path
    for folder in ("jepa_fast", "kernels", "csrc", "bench", "examples", "research", "tests", "scripts")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".cpp", ".cu", ".h", ".sh"}
]
OPS = sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if "register_fake" in path.read_text())


def has_main_guard(path: Path) -> bool:
    """Whether the module can be run as a command."""
    tree = ast.parse(path.read_text())
    return any(isinstance(node, ast.If) and "__name__ == '__main__'" in ast.unparse(node.test) for node in tree.body)


COMMANDS = sorted(
    f"jepa_fast.{path.parent.stem if path.stem == '__main__' else path.stem}"
    for path in (ROOT / "jepa_fast").glob("**/*.py")
    if has_main_guard(path)
)
COMMANDS += ["research.speedrun", "research.study"]


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_top_level_is_complete(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.posix
def test_kernels_are_one_folder_under_two_names() -> None:
    link = ROOT / "jepa_fast" / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")
    # With an __init__.py, `import kernels` from the repository root would shadow a package of that name.
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_test_a_benchmark_and_a_row_in_the_table(op: str) -> None:
    assert (ROOT / "tests" / "kernels" / f"test_{op}.py").exists()
    assert (ROOT / "bench" / f"bench_{op}.py").exists()
    rows = [line for line in (ROOT / "docs" / "kernels.md").read_text().splitlines() if line.startswith(f"| `{op}` |")]
    assert len(rows) == 1
    # op | formula | bytes moved | FLOPs | test | bench
    assert len(re.split(r"(?<!\\)\|", rows[0])) - 2 == 6


def test_ops_are_found() -> None:
    assert "vicreg" in OPS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_file_stays_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("room", ["jepa_fast", "kernels"])
def test_the_package_imports_nothing_of_research(room: str) -> None:
    importers = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            importers += [
                path.name for name in names if name.split(".")[0] in ("research", "scripts", "tests", "bench")
            ]
    assert importers == []


def test_nothing_but_the_package_is_installed() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    found = {name.split(".")[0] for name in setuptools.find_namespace_packages(str(ROOT), include=include)}
    assert found == {"jepa_fast"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_explains_itself_in_a_second_without_torch(command: str) -> None:
    # CPU time, that of user and system: others may hold the processors.
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    after = os.times()
    took_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage:" in done.stdout.lower()
    imported = re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, flags=re.MULTILINE)
    assert "torch" not in imported
    assert took_s < 1
