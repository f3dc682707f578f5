"""What `make install` adds to the environment of `make demo`."""

import re

import pytest

from scripts.extras import requirements


def test_extras_are_lists_for_pip():
    assert requirements("") == []
    dev = requirements("dev")
    assert any(re.match(r"pytest>=", line) for line in dev)
    # Kernels are interpreted by it; it has wheels for Linux alone.
    assert any(re.fullmatch(r"triton==[\d.]+; sys_platform == 'linux'", line) for line in dev)
    assert requirements("dev,onnx")[: len(dev)] == dev
    assert not any("dali" in line for line in dev)


def test_a_wrong_name_is_one_line():
    with pytest.raises(SystemExit, match="EXTRAS: got 'dve', expected some of dali, "):
        requirements("dve")
