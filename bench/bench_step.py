"""The whole training step, forward, backward, clip and Adam: ours beside the published loop and a well-tuned plain one.

All contenders start from the same weights on the same batch. Before anything is timed their energies must agree to
rounding, on the same dropout masks or none. float32 throughout.
"""

import gc
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from bench.step_contenders import CONTENDERS, DEVICE, first_batch, packed_split

BATCH = 128 if DEVICE == "cuda" else 32
# Energies of float32 contenders; theirs against float64 are of this size.
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return packed_split(tmp_path_factory.mktemp("two_rooms"))


@pytest.fixture(scope="module")
def batch(split):
    return first_batch(split, BATCH)


@pytest.fixture(scope="module")
def expected(split, batch):
    """The plain step's energy of the batch: in training mode, masks drawn from the clock, and without dropout."""
    # Before the first convolution: the truth is float32 too.
    torch.backends.cudnn.allow_tf32 = False
    contender = CONTENDERS["plain"](split, batch)
    training = float(contender.forward()[0].detach())
    contender.model.eval()
    return {True: training, False: float(contender.forward()[0].detach())}


# The compiler warns of its own deprecated calls.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.benchmark(group=f"step, batch {BATCH}", warmup=False)
def test_step(benchmark, monkeypatch, split, batch, expected, name):
    # float32 is meant: a GPU's convolutions would be rounded to TF32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    contender = CONTENDERS[name](split, batch)
    # The published loop draws masks in its own order: it is compared without.
    contender.model.train(name != "published")
    energy = float(contender.forward()[0].detach())
    assert energy == pytest.approx(expected[contender.model.training], rel=RELATIVE)
    contender.model.train()
    # The first steps compile and touch the pages: they are left out.
    rounds = {"published": 1, "plain": 2, "compiled": 2}.get(name, 10)
    benchmark.pedantic(contender.step, rounds=rounds, warmup_rounds=2 if name.startswith("ours") else 1)
    benchmark.extra_info |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "batch": BATCH}
    benchmark.extra_info["peak_mb"] = round(peak_mb(name))
    gc.collect()


def peak_mb(name: str) -> float:
    """MB of the device that two steps need at most on top of data, weights and libraries; Linux only.

    On a CPU the compiler's own are among them.
    """
    command = f"from bench.bench_step import print_peak; print_peak({name!r})"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def print_peak(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        split = packed_split(Path(folder))
        contender = CONTENDERS[name](split, first_batch(split, BATCH))
        if DEVICE == "cuda":
            before = torch.cuda.memory_allocated()
            contender.step()
            contender.step()
            print((torch.cuda.max_memory_allocated() - before) / 2**20)
            return
        before = resident_mb("VmRSS")
        # Linux: forget the peak so far, that of packing. ru_maxrss would even remember the parent's.
        Path("/proc/self/clear_refs").write_text("5")
        contender.step()
        contender.step()
    print(resident_mb("VmHWM") - before)


def resident_mb(key: str) -> float:
    """Resident memory of this process, now ("VmRSS") or at its peak ("VmHWM")."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[key].split()[0]) / 1024
