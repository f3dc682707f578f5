"""What a machine lacks is left out with one line that says why; a run that goes on keeps computing what it computed."""

import logging
import shutil

import pytest
import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from jepa_fast.config import Recipe, RunConfig
from jepa_fast.engine import fallbacks


def configuration(**changes):
    fields = {
        "preset": "test", "recipe": Recipe(), "seed": 0, "steps": 1, "batch_size": 2, "amp": "off", "compile": False,
        "device": "cpu", "data": "data", "loader": "host", "kernels": "reference", "sparse": True,
    }  # fmt: skip
    return RunConfig(**{**fields, **changes})


def test_capture_on_a_cpu_is_left_out_with_one_line(caplog):
    with caplog.at_level(logging.WARNING):
        assert not fallbacks.without_what_is_missing(configuration(capture=True)).capture
    assert caplog.messages == ["capture: off: CUDA graphs need a CUDA device"]


def test_bf16_without_instructions_becomes_float32_in_a_new_run_alone(monkeypatch, caplog):
    monkeypatch.setattr(fallbacks.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    config = configuration(amp="bf16")
    with caplog.at_level(logging.WARNING):
        assert fallbacks.without_what_is_missing(config).amp == "off"
    assert caplog.messages == [
        "amp: float32 in place of bf16: the processor has no bf16 instructions (avx512_bf16 or amx)"
    ]
    assert fallbacks.without_what_is_missing(config, keep_amp=True) == config


def test_compile_without_a_compiler_is_left_out_with_one_line(monkeypatch, caplog):
    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with caplog.at_level(logging.WARNING):
        assert not fallbacks.without_what_is_missing(configuration(compile=True)).compile
    assert caplog.messages == ["compile: off: torch.compile finds no C++ compiler (g++, clang++ or CXX)"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compile_with_a_compiler_stays(caplog):
    assert fallbacks.without_what_is_missing(configuration(compile=True)).compile


def test_nsys_without_a_device_becomes_torchs_profiler(caplog):
    with caplog.at_level(logging.WARNING):
        assert fallbacks.profile_here("nsys", "cpu") == "torch"
        assert fallbacks.profile_here("off", "cpu") == "off"
    assert caplog.messages == ["profile: torch in place of nsys: NVTX ranges need a CUDA device"]
