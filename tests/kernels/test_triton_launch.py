"""What every launch of a Triton kernel shares, seen from a process of its own, where Triton is met first."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, triton
places = [triton.knobs.cache.dir]
from jepa_fast.kernels.triton import launch
from torch._inductor.runtime.cache_dir_utils import triton_cache_dir
print(json.dumps([*places, triton.knobs.cache.dir, triton_cache_dir(0)]))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("named", ["TRITON_HOME", "TRITON_CACHE_DIR"])
def test_inductor_keeps_compiled_kernels_where_ours_are(named, tmp_path):
    # Inductor names a folder of its own in the middle of a run unless one is named: ours would compile again.
    others = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=others | {named: str(tmp_path)}, capture_output=True, text=True, check=True
    )
    alone, ours, inductors = json.loads(done.stdout)
    assert alone.startswith(str(tmp_path))
    assert alone == ours == inductors
