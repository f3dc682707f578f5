"""What the gates of the ConvNeXt kernels mean in time: the table of docs/kernels.md, from kernels/gates.json.

A pass cannot be faster than its bytes take at the memory's bandwidth, nor than its instructions take to be issued, one
per clock and scheduler. Counted are the instructions of the main loops in SASS; what a program does once, and the first
and last rows of an image, come on top.

    python -m scripts.triton_floors --write
"""

import argparse
from typing import NamedTuple

from scripts.marks import between
from scripts.triton_gates import ROWS, Row, read_rows

PAGE = ROWS.parent.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- floors: `make gates` writes this -->\n", "<!-- end of floors -->\n"
CHANNELS = (16, 32, 64, 96, 128)
PIXELS = 4352 * 65 * 65  # frames of 128 trajectories of 17 steps, two channels


class Machine(NamedTuple):
    """What a GPU can do at most."""

    name: str
    multiprocessors: int
    clock_hz: float
    bytes_per_s: float


MACHINES = {"sm_80": Machine("A100", 108, 1.41e9, 2.0e12), "sm_90": Machine("H100", 132, 1.98e9, 3.35e12)}


class Pass(NamedTuple):
    """The kernels of one pass of an op, and the activations that they read and write."""

    builds: tuple[str, ...]
    activations: int


def find_pass(op: str, name: str, channels: int) -> Pass:
    """Pass "forward" or "backward" of an op on bf16 activations of so many channels."""
    conv, case = "depthwise", f"bf16 C={channels}"
    if op == "dwconv_norm":
        backward = (f"{op} backward {case}", f"{conv} {case}", f"{conv} weight gradient {case}")
        return Pass((f"{op} forward {case}",), 3) if name == "forward" else Pass(backward, 7)
    if name == "forward":
        fused = channels <= 64
        return Pass(
            (f"{op} forward {case}",) if fused else (f"{conv} {case}", f"{op} forward {case}"), 3 if fused else 5
        )
    backward = (f"{op} backward {case}", f"{conv} {case} addend", f"{conv} weight gradient {case}")
    if channels == 16:
        return Pass(backward, 8)
    return Pass((*backward, f"{op} weight gradient {case}"), 10)


def instructions_per_output(part: Pass, rows: dict[tuple[str, str], Row], architecture: str) -> float:
    """Instructions of a thread per element of the activation, summed over the kernels of a pass."""
    return sum(rows[build, architecture].per_output for build in part.builds)


def issue_ms(instructions: float, elements: int, machine: Machine) -> float:
    """Milliseconds in which a GPU can issue so many instructions per element."""
    return 1e3 * instructions * elements / 32 / (machine.multiprocessors * 4 * machine.clock_hz)


def newest_rows() -> dict[tuple[str, str], Row]:
    """The rows of the newest Triton by build and architecture."""
    return {(row.build, row.architecture): row for row in sorted(read_rows(), key=lambda row: row.triton)}


def make_table() -> str:
    """Registers, instructions and floors of every pass, as Markdown."""
    rows = newest_rows()
    lines = [
        "| op, pass | C | registers, most | instructions per element | issue floor, ms | byte floor, ms |",
        "|---|---|---|---|---|---|",
    ]
    for op in ("dwconv_norm", "convnext_block"):
        for name in ("forward", "backward"):
            for channels in CHANNELS:
                part = find_pass(op, name, channels)
                counts = {key: instructions_per_output(part, rows, key) for key in MACHINES}
                registers = [max(rows[build, key].registers for build in part.builds) for key in MACHINES]
                issue = [issue_ms(counts[key], PIXELS * channels, machine) for key, machine in MACHINES.items()]
                moved = part.activations * PIXELS * channels * 2
                memory = [1e3 * moved / machine.bytes_per_s for machine in MACHINES.values()]
                cells = [
                    f"{op} {name}",
                    str(channels),
                    " / ".join(str(number) for number in registers),
                    " / ".join(f"{number:.0f}" for number in counts.values()),
                    " / ".join(f"{number:.2f}" for number in issue),
                    " / ".join(f"{number:.2f}" for number in memory),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/kernels.md")
    table = make_table()
    if not parser.parse_args().write:
        print(table)
        return
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, f"\n{table}\n"))


if __name__ == "__main__":
    main()
