"""What this machine offers to a run, looked at piece by piece, and what to do about the pieces that are wrong."""

import importlib
import importlib.metadata
import math
import os
import pkgutil
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import jepa_fast.kernels
from jepa_fast.data.checks import OTHER_FILES
from jepa_fast.data.dali import INSTALL
from jepa_fast.data.manifest import MANIFEST_NAME
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import SPLITS
from jepa_fast.engine.record import processor
from jepa_fast.errors import InputError
from jepa_fast.kernels import dispatch, extension
from jepa_fast.platforms import available_cores, open_file_limits

WRITTEN_BYTES = 64 * 2**20
LEAST_WRITE_MB_S = 20
LEAST_FREE_GB = 2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; with a `problem` comes a `remedy`."""

    topic: str
    found: str
    problem: str | None = None
    remedy: str | None = None


def diagnose(data: Path) -> list[Finding]:
    """Everything that is looked at: versions, devices, compiled ops, the data folder, limits."""
    return [*versions(), *devices(), *operators(), loaders(), *data_folder(data), *disk(data), open_files(data)]


def versions() -> list[Finding]:
    """Python and every requirement of the installed package."""
    try:
        metadata = importlib.metadata.metadata("jepa_fast")
        requirements = [Requirement(line) for line in importlib.metadata.requires("jepa_fast") or ()]
    except importlib.metadata.PackageNotFoundError:
        remedy = "run `make install`, or: pip install --constraint constraints.txt -e ."
        problem = "runs from a checkout, its requirements are unknown"
        return [
            Finding("jepa_fast", "not installed", problem, remedy),
            Finding("python", platform.python_version()),
            Finding("torch", torch.__version__),
        ]
    found = [Finding("jepa_fast", metadata["Version"])]
    found.append(_version("python", platform.python_version(), SpecifierSet(metadata["Requires-Python"] or "")))
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        found.append(_version(requirement.name, version, requirement.specifier))
    return found


def _version(name: str, version: str, wanted: SpecifierSet) -> Finding:
    if version != "missing" and wanted.contains(version, prereleases=True):
        return Finding(name, version)
    remedy = f"pip install --constraint constraints.txt '{name}{wanted}'"
    if name == "python":
        remedy = f"make the environment anew with a Python {wanted}"
    return Finding(name, version, f"expected {wanted or 'any version'}", remedy)


def devices() -> list[Finding]:
    """The processor, and the CUDA device or why there is none."""
    cores = available_cores()
    found = [Finding("processor", f"{processor()}, {cores} cores, torch uses {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory_gb = properties.total_memory / 1e9
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        text = f"{properties.name}, sm_{properties.major}{properties.minor}, {memory_gb:.0f} GB, {bf16}"
        return [*found, Finding("CUDA device", text)]
    if not Path("/dev/nvidiactl").exists():
        return [*found, Finding("CUDA device", "none: this machine has no NVIDIA driver; runs use the processor")]
    if torch.version.cuda is None:
        problem, remedy = f"torch {torch.__version__} is built without CUDA", "install a CUDA build of torch"
    else:
        problem = f"torch is built for CUDA {torch.version.cuda} and sees no device"
        remedy = "compare with the driver's version in nvidia-smi, and look at CUDA_VISIBLE_DEVICES"
    return [*found, Finding("CUDA device", "a driver is there, a device is not used", problem, remedy)]


def operators() -> list[Finding]:
    """The compiled extension, and for every op and device what it will run on and why."""
    missing = extension.load()
    if missing is None:
        found = [Finding("extension", f"{extension.LIBRARY.name} is loaded")]
    elif sys.platform == "win32":
        found = [Finding("extension", "none: it is not built on Windows, plain PyTorch is used")]
    else:
        remedy = "install a C++ compiler and run `make install`"
        found = [Finding("extension", "not used", missing, remedy)]
    devices_used: list[Literal["cpu", "cuda"]] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for module in pkgutil.iter_modules(jepa_fast.kernels.__path__):
        loaded = importlib.import_module(f"jepa_fast.kernels.{module.name}")
        operator = getattr(loaded, "OPERATOR", None)
        if operator is None:
            continue
        name = operator.split("::")[1]
        is_triton = (Path(str(loaded.__file__)).parent / "triton" / f"{module.name}.py").exists()
        for device in devices_used:
            topic = f"{operator} on {device}"
            if device == "cpu" and extension.has_kernel(f"{name}_cpu", device):
                found.append(Finding(topic, "compiled kernel"))
            elif is_triton:
                found.append(_triton_operator(topic, device))
            elif extension.has_kernel(name, device):
                found.append(Finding(topic, "compiled kernel"))
            elif missing is not None or device == "cpu":
                found.append(Finding(topic, "plain PyTorch: no compiled kernel is loaded for it"))
            else:
                remedy = "put nvcc on the PATH and run `JEPA_FAST_CUDA=ON make install`"
                problem = "the extension was built without CUDA"
                found.append(Finding(topic, "plain PyTorch", problem, remedy))
    return found


def _triton_operator(topic: str, device: Literal["cpu", "cuda"]) -> Finding:
    """What an op with Triton kernels runs on."""
    missing = dispatch.why_no_triton(device)
    if missing is None:
        return Finding(topic, "Triton kernel")
    if device == "cpu":
        return Finding(topic, f"plain PyTorch: {missing}")
    return Finding(topic, "plain PyTorch", missing, "install triton and a C compiler, or use a newer device")


def loaders() -> Finding:
    """Which loaders a run can ask for: DALI is an extra, and nothing is wrong without it."""
    try:
        version = importlib.metadata.version("nvidia-dali-cuda130")
    except importlib.metadata.PackageNotFoundError:
        return Finding("loaders", f"host, resident; dali after: {INSTALL}")
    return Finding("loaders", f"host, resident, dali (DALI {version})")


def data_folder(data: Path) -> list[Finding]:
    """Every split of the data folder: whether it opens, and how many trajectories it holds."""
    if not data.exists():
        return [Finding("data", f"{data} is not there yet: training without --data generates it")]
    found = []
    for name in SPLITS:
        if not (data / name / MANIFEST_NAME).is_file():
            if (data / name).exists():
                remedy = f"finish it: python -m jepa_fast.generate --out {data}"
                found.append(Finding(name, "no manifest", "its packing did not finish", remedy))
            continue
        try:
            split = open_split(data / name)
        except InputError as error:
            remedy = f"remove {data / name} and generate or pack it anew"
            found.append(Finding(name, "does not open", str(error), remedy))
            continue
        found.append(Finding(name, f"{split.count:,} trajectories in {len(split.manifest.shards)} shards"))
    if not found:
        remedy = f"python -m jepa_fast.generate --out {data}"
        found = [Finding("data", f"{data} holds no split", "there is nothing to train on", remedy)]
    elif not (data / "train").exists():
        found.append(Finding("train", f"not in {data}: it can be probed on, not trained on"))
    return found


def disk(data: Path) -> list[Finding]:
    """Free space where the data lies or will lie, and how fast it is written, synced."""
    folder = next(parent for parent in (data.absolute(), *data.absolute().parents) if parent.is_dir())
    free_gb = shutil.disk_usage(folder).free / 1e9
    found = [Finding("free space", f"{free_gb:.1f} GB in {folder}")]
    if free_gb < LEAST_FREE_GB:
        problem = f"data, checkpoints and logs want {LEAST_FREE_GB} GB"
        found = [Finding("free space", found[0].found, problem, "free some, or name another place with --data")]
    try:
        speed = write_mb_s(folder)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        remedy = "choose another place with --data, or change its owner"
        return [*found, Finding("write speed", str(folder), problem, remedy)]
    text = f"{speed:,.0f} MB/s, synced, in {folder}"
    if speed < LEAST_WRITE_MB_S:
        remedy = "put data and runs on a local disk"
        return [
            *found,
            Finding("write speed", text, f"below {LEAST_WRITE_MB_S} MB/s checkpoints hold up steps", remedy),
        ]
    return [*found, Finding("write speed", text)]


def write_mb_s(folder: Path) -> float:
    """MB/s of writing a file to the disk itself; the file is removed.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    # Random, because some file systems compress.
    content = os.urandom(WRITTEN_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN_BYTES / 1e6 / (time.perf_counter() - start)


def open_files(data: Path) -> Finding:
    """The limit on open files against what the largest split of the data folder needs: one for each file."""
    soft, hard = open_file_limits()
    files = (sum(1 for _ in (data / name).glob("*.npy")) for name in SPLITS)
    needed = max(files) + OTHER_FILES
    now, most = ("unlimited" if limit == math.inf else f"{limit:,}" for limit in (soft, hard))
    raised = "" if now == most else f", can be raised to {most}"
    text = f"{now}{raised}; {needed:,} are needed"
    if needed <= hard:
        return Finding("open files", text)
    remedy = f"raise the hard limit (ulimit -Hn {needed}), or pack fewer, larger shards"
    return Finding("open files", text, "the largest split cannot be opened", remedy)
