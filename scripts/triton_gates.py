"""Compile the Triton kernels for sm_80 and sm_90 with no GPU, and hold each to its gates.

No stack, no local memory (nothing spills), registers under the ceiling of its build (`scripts/triton_builds.py`).
`--write` stores what each build takes in kernels/gates.json, keyed by a hash of the kernels' source: the tests compare
that hash with the source of today, so that a changed kernel cannot pass on old figures. Builds whose row is of today
are not compiled again.

    python -m scripts.triton_gates --write
"""

import argparse
import ast
import functools
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts import gates
from scripts.triton_builds import BUILDS, KERNELS, Build

ROWS = gates.ROOT / "kernels" / "gates.json"
# What one block may have.
MOST_SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


@dataclass(frozen=True, order=True)
class Row:
    """What one build takes on one architecture."""

    build: str
    architecture: str
    triton: str
    source: str  # hash of the kernel's source
    registers: int
    stack: int  # bytes
    local: int  # bytes
    shared: int  # bytes
    instructions: int  # of the whole kernel
    loops: tuple[int, ...]  # instructions in one round of each loop, in order; a loop counts without those inside it
    per_output: float  # instructions of a thread in those loops, per element that its program makes


def source_hash(build: Build) -> str:
    """Hash of what a build is compiled from: the kernels of its file and of those it imports, and its own constants."""
    seen: dict[str, str] = {}
    open_modules = [build.module]
    while open_modules:
        name = open_modules.pop()
        if name not in seen:
            text = (gates.ROOT / "kernels" / "triton" / f"{name}.py").read_text()
            seen[name] = _jitted(text)
            open_modules += re.findall(rf"^from {re.escape(KERNELS)}\.(\w+) import", text, flags=re.MULTILINE)
    parts = [seen[name] for name in sorted(seen)]
    settings = [build.kernel, dict(build.signature), dict(build.constants), build.warps, build.stages]
    settings += [build.most_registers] if build.most_registers is not None else []
    return hashlib.sha256("\n".join([*parts, repr(settings)]).encode()).hexdigest()[:16]


@functools.cache
def _jitted(text: str) -> str:
    """The source of the functions that Triton compiles; not that of launches and tables beside them."""
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    lines = text.splitlines()
    return "\n".join(
        "\n".join(lines[function.decorator_list[0].lineno - 1 : function.end_lineno])
        for function in functions
        if any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)
    )


def compile_build(build: Build, architecture: int, folder: Path) -> Row:
    """Compile one build for one architecture; its binary is left in `folder`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"{KERNELS}.{build.module}"), build.kernel)
    names = list(kernel.arg_names)
    signature = {name: build.signature.get(name, "constexpr") for name in names}
    # torch's allocations are aligned to far more than 16 bytes, and Triton looks for 16 when it is launched.
    aligned: dict[Any, Any] = {
        (names.index(name),): [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, dict(build.constants), aligned)
    options = {"num_warps": build.warps, "num_stages": build.stages, "enable_fp_fusion": True}
    options |= {} if build.most_registers is None else {"maxnreg": build.most_registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    binary = folder / f"{build.name}.sm_{architecture}.cubin".replace(" ", "_").replace("/", "_")
    binary.write_bytes(compiled.asm["cubin"])
    cuobjdump = gates.find_cuobjdump()
    assert cuobjdump is not None  # it comes with triton
    (cost,) = gates.read_costs(binary, cuobjdump)
    total, loops = count_instructions(disassemble(binary))
    main = build.outputs[: len(loops)]
    per_output = sum(32 * build.warps * loop / outputs for loop, outputs in zip(loops, main, strict=False) if outputs)
    return Row(
        build.name,
        f"sm_{architecture}",
        triton.__version__,
        source_hash(build),
        cost.registers,
        cost.stack,
        cost.local,
        compiled.metadata.shared,
        total,
        tuple(loops),
        round(per_output, 1),
    )


def disassemble(binary: Path) -> str:
    """SASS of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return subprocess.run([str(tool), "-c", str(binary)], capture_output=True, text=True, check=True).stdout


def count_instructions(sass: str) -> tuple[int, list[int]]:
    """Instructions in all, and in one round of each loop: between a label and a later jump back to it."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in sass.splitlines():
        if found := re.match(r"(\.L_\w+):", line):
            labels[found[1]] = len(instructions)
        elif (found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.+?)\s*;", line)) and not found[1].startswith("NOP"):
            instructions.append(found[1])
    spans = set()
    for end, instruction in enumerate(instructions):
        found = re.search(r"BRA.*`\((\.L_\w+)\)", instruction)
        # A kernel ends with a jump to itself that nothing reaches.
        if found and labels.get(found[1], end) < end:
            spans.add((labels[found[1]], end + 1))
    loops = []
    for start, end in sorted(spans):
        inner = [span for span in spans if start <= span[0] and span[1] <= end and span != (start, end)]
        covered = set[int]().union(*(range(*span) for span in inner))
        loops.append(end - start - len(covered))
    return len(instructions), loops


def find_violations(rows: Iterable[Row]) -> list[str]:
    """One line per broken gate."""
    ceilings = {build.name: build.registers for build in BUILDS}
    violations = []
    for row in rows:
        where = f"{row.build} on {row.architecture}, Triton {row.triton}"
        if row.stack or row.local:
            violations.append(f"{where}: {row.stack} bytes of stack and {row.local} of local memory, expected none")
        if row.shared > MOST_SHARED[row.architecture]:
            violations.append(
                f"{where}: {row.shared} bytes of shared memory, a block has {MOST_SHARED[row.architecture]}"
            )
        if row.registers > ceilings[row.build]:
            violations.append(f"{where}: {row.registers} registers, expected at most {ceilings[row.build]}")
    return violations


def read_rows() -> list[Row]:
    """The rows of kernels/gates.json."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    return [Row(**{**row, "loops": tuple(row["loops"])}) for row in rows]


def find_fresh() -> dict[tuple[str, str], Row]:
    """Stored rows of this Triton and of the source as it is, by build and architecture."""
    import triton

    today = {(build.name, triton.__version__, source_hash(build)) for build in BUILDS}
    rows = (row for row in read_rows() if (row.build, row.triton, row.source) in today)
    return {(row.build, row.architecture): row for row in rows}


def write_rows(rows: list[Row]) -> None:
    """Put `rows` in the place of older ones of the same Triton; those of builds that are no more go too."""
    names = {build.name for build in BUILDS}
    compiled = {(row.build, row.triton) for row in rows}
    kept = [row for row in read_rows() if row.build in names and (row.build, row.triton) not in compiled]
    lines = [json.dumps(asdict(row)) for row in sorted(kept + rows)]
    ROWS.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main() -> None:
    """Compile, print one row per build and architecture, and exit with status 1 if a gate is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the rows in kernels/gates.json")
    parser.add_argument("--only", default="", help="builds whose name contains this")
    options = parser.parse_args()
    chosen = [build for build in BUILDS if options.only in build.name]
    fresh = find_fresh() if options.write else {}
    width = max((len(build.name) for build in chosen), default=0)
    print(f"{'build':{width}}  arch   registers  stack  local  shared  instructions  per output  loops")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for build in chosen:
            for number in build.architectures:
                row = fresh.get((build.name, f"sm_{number}")) or compile_build(build, number, Path(folder))
                figures = f"{row.registers:9}  {row.stack:5}  {row.local:5}  {row.shared:6}  {row.instructions:12}"
                print(
                    f"{row.build:{width}}  {row.architecture}  {figures}  {row.per_output:10}  {list(row.loops)}",
                    flush=True,
                )
                rows.append(row)
            if options.write and rows[-1] not in fresh.values():
                write_rows(rows)
    violations = find_violations(rows)
    for violation in violations:
        print(f"gates: {violation}", file=sys.stderr)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
