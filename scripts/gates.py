"""Compile every CUDA kernel for sm_80 and sm_90 and check its registers, stack and local memory; no GPU needed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gates"

# Registers per thread. Kernels that stream memory want the many warps that 40 registers leave room for; those on the
# tensor cores, 128 threads a block, get four blocks on a multiprocessor up to 128.
REGISTER_CEILINGS = {
    "vicreg_sums_kernel": 40,
    "vicreg_means_kernel": 40,
    "vicreg_scatter_kernel": 128,
    "vicreg_covariance_kernel": 40,
    "vicreg_terms_kernel": 40,
    "vicreg_gradient_kernel": 128,
}


class KernelCost(NamedTuple):
    """What one compiled kernel takes on one architecture; bytes except for registers."""

    name: str  # with template arguments
    architecture: str
    registers: int
    shared: int
    stack: int
    local: int


def find_nvcc() -> str | None:
    """The CUDA compiler, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(str(Path(home, "bin")) for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def find_cuobjdump() -> str | None:
    """The tool that reads compiled kernels, beside nvcc or in the triton package, or None."""
    nvcc = find_nvcc()
    folders = [os.environ.get("PATH", "")]
    if nvcc is not None:
        folders.append(str(Path(nvcc).parent))
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.submodule_search_locations:
        folders.append(str(Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin")))
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


def build() -> Path:
    """Compile and link the CUDA sources; only what changed since the last call. Returns the library."""
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        raise SystemExit("gates: torch is not installed")
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    environment = os.environ | {"PATH": path}
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), f"-DTORCH_DIR={torch.submodule_search_locations[0]}"]
    configure += ["-DJEPA_FAST_CUDA=OFF", "-DJEPA_FAST_CUDA_CHECK=ON"]
    for command in (configure, ["cmake", "--build", str(BUILD), "--target", "cuda_check"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"gates: the CUDA sources do not build\n{done.stdout}{done.stderr}")
    return BUILD / "cuda_check.so"


def read_costs(library: Path, cuobjdump: str) -> list[KernelCost]:
    """Cost of every kernel in `library`, per architecture."""
    command = [cuobjdump, "--dump-resource-usage", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    filter_command = shutil.which("c++filt")
    if filter_command is not None:
        # c++filt wants a name to end in something other than the colon that cuobjdump puts behind it.
        spaced = re.sub(r"(Function \w+):", r"\1 :", listing)
        listing = subprocess.run([filter_command], input=spaced, capture_output=True, text=True, check=True).stdout
    costs = []
    architecture = ""
    name = ""
    for line in listing.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (.+?) ?:$", line):
            name = _short_name(found[1])
        elif line.lstrip().startswith("REG:"):
            fields = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            cost = KernelCost(name, architecture, fields["REG"], fields["SHARED"], fields["STACK"], fields["LOCAL"])
            costs.append(cost)
    return sorted(costs)


def _short_name(name: str) -> str:
    """`chunks_kernel<BFloat16>` from the demangled signature with its namespaces."""
    plain = re.sub(r"\(anonymous namespace\)::|jepa_fast::|^void ", "", name)
    return plain.split("(")[0]


def find_violations(costs: list[KernelCost]) -> list[str]:
    """One line per broken rule: no stack, no local memory, registers under the ceiling, every kernel has a ceiling."""
    violations = []
    for cost in costs:
        where = f"{cost.name} on {cost.architecture}"
        # Where c++filt is missing the name is the mangled one, which contains the plain one.
        ceilings = [ceiling for kernel, ceiling in REGISTER_CEILINGS.items() if kernel in cost.name]
        if cost.stack or cost.local:
            violations.append(f"{where}: {cost.stack} bytes of stack and {cost.local} of local memory, expected none")
        if not ceilings:
            violations.append(f"{where}: no entry in REGISTER_CEILINGS")
        elif cost.registers > ceilings[0]:
            violations.append(f"{where}: {cost.registers} registers, expected at most {ceilings[0]}")
    return violations


def main() -> None:
    """Build, print one row per kernel and architecture, and exit with status 1 if a rule is broken."""
    if find_nvcc() is None:
        raise SystemExit("gates: nvcc not found (searched PATH, CUDA_HOME and /usr/local/cuda)")
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        raise SystemExit("gates: cuobjdump not found (searched PATH, the folder of nvcc and the triton package)")
    costs = read_costs(build(), cuobjdump)
    width = max(len(cost.name) for cost in costs)
    print(f"{'kernel':{width}}  arch   registers  shared  stack  local")
    for cost in costs:
        row = f"{cost.registers:9}  {cost.shared:6}  {cost.stack:5}  {cost.local:5}"
        print(f"{cost.name:{width}}  {cost.architecture}  {row}")
    violations = find_violations(costs)
    for violation in violations:
        print(f"gates: {violation}", file=sys.stderr)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
