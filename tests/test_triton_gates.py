from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from scripts import triton_floors, triton_gates
from scripts.triton_builds import BUILDS, KERNELS

VERSIONS = ("3.6.0", "3.9.0")
DEFAULTS = [build for build in BUILDS if build.is_default]
SASS = """
k:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   LDG.E R1, [R2.64] ;
.L_x_0:
        /*0020*/                   FFMA R1, R1, R1, R1 ;
        /*0030*/              @P0 BRA `(.L_x_0) ;
        /*0040*/                   FADD R1, R1, R1 ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
        /*0080*/                   NOP;
"""


def test_every_kernel_has_builds_and_one_default():
    folder = triton_gates.gates.ROOT / "kernels" / "triton"
    kernels = {
        (path.stem, line.split("(")[0].removeprefix("def "))
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def _") and line.split("(")[0].endswith("_kernel")
    }
    assert kernels == {(build.module, build.kernel) for build in BUILDS}
    assert {(build.module, build.kernel) for build in DEFAULTS} == kernels
    assert len({build.name for build in BUILDS}) == len(BUILDS)


def test_stored_rows_are_those_of_the_kernels_as_they_are():
    rows = triton_gates.read_rows()
    sources = {build.name: triton_gates.source_hash(build) for build in BUILDS}
    assert [row for row in rows if row.source != sources.get(row.build)] == [], "to be renewed by `make gates`"
    wanted = {
        (build.name, f"sm_{number}", triton)
        for build in BUILDS
        for number in build.architectures
        for triton in VERSIONS
    }
    assert {(row.build, row.architecture, row.triton) for row in rows} == wanted


def test_stored_rows_keep_to_the_gates():
    assert triton_gates.find_violations(triton_gates.read_rows()) == []


@pytest.mark.parametrize(
    ("build", "architecture"),
    [(build, architecture) for build in DEFAULTS for architecture in build.architectures],
    ids=lambda value: getattr(value, "kernel", value),
)
def test_kernel_compiles_within_its_gates(build, architecture, tmp_path):
    assert triton_gates.find_violations([triton_gates.compile_build(build, architecture, tmp_path)]) == []


def test_gates_name_a_kernel_that_spills():
    row = triton_gates.Row(BUILDS[0].name, "sm_80", "3.9.0", "", BUILDS[0].registers, 0, 0, 0, 1, (), 0.0)
    assert triton_gates.find_violations([row]) == []
    assert triton_gates.find_violations([replace(row, local=8)]) == [
        f"{row.build} on sm_80, Triton 3.9.0: 0 bytes of stack and 8 of local memory, expected none"
    ]
    assert triton_gates.find_violations([replace(row, registers=row.registers + 1)]) != []


def test_a_loop_is_counted_without_the_loops_inside_it():
    assert triton_gates.count_instructions(SASS) == (8, [3, 2])


def test_a_hash_covers_imported_kernels_and_constants_but_no_launches(tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "triton"
    folder.mkdir(parents=True)
    kernel = "@triton.jit\ndef part():\n    return {}\n\n\ndef launch():\n    return {}\n"
    (folder / "base.py").write_text(kernel.format(1, 1))
    (folder / "op.py").write_text(f"from {KERNELS}.base import part\n")
    monkeypatch.setattr(triton_gates.gates, "ROOT", tmp_path)
    build = replace(BUILDS[0], module="op")
    before = triton_gates.source_hash(build)
    (folder / "base.py").write_text(kernel.format(1, 2))
    assert triton_gates.source_hash(build) == before
    assert triton_gates.source_hash(replace(build, warps=16)) != before
    (folder / "base.py").write_text(kernel.format(2, 2))
    assert triton_gates.source_hash(build) != before


def test_the_table_of_floors_is_that_of_the_stored_rows():
    assert triton_floors.make_table() in triton_floors.PAGE.read_text(), "to be renewed by `make gates`"


def test_an_issue_floor_is_instructions_over_issue_slots():
    machine = triton_floors.Machine("", multiprocessors=10, clock_hz=1e9, bytes_per_s=1)
    assert triton_floors.issue_ms(80.0, 32 * 10**6, machine) == pytest.approx(2.0)
