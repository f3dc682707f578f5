"""What `--kernels` means on machines of every kind."""

import importlib.util
import shutil

import pytest
import torch

from jepa_fast.backends import choose_kernels
from jepa_fast.config import GatedConvNeXtConfig, GatedFeaturesConfig, JEPAConfig
from jepa_fast.errors import InputError
from jepa_fast.kernels import dispatch, extension
from jepa_fast.models.registry import build_model


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with or without the extension's kernels, triton, a compiler, a new enough device."""

    def pretend(fused=True, triton=True, compiler=True, capability=(9, 0), cuda_kernels=True):
        dispatch.why_no_triton.cache_clear()
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(extension, "load", lambda: None if fused else "no library here")
        devices = {"cpu", "cuda"} if cuda_kernels else {"cpu"}
        monkeypatch.setattr(extension, "has_kernel", lambda operator, device: fused and device in devices)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if compiler else None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    yield pretend
    dispatch.why_no_triton.cache_clear()


@pytest.mark.parametrize(
    ("device", "has", "expected"),
    [
        ("cuda", {}, "triton"),
        ("cuda", {"fused": False}, "triton"),
        ("cuda", {"triton": False}, "fused"),
        ("cuda", {"compiler": False}, "fused"),
        ("cuda", {"capability": (7, 5)}, "fused"),
        ("cuda", {"triton": False, "fused": False}, "reference"),
        ("cpu", {}, "fused"),
        ("cpu", {"fused": False}, "reference"),
    ],
)
def test_auto_takes_the_fastest_that_the_machine_has(machine, device, has, expected):
    machine(**has)
    assert choose_kernels("auto", device, 128) == expected


@pytest.mark.parametrize("flag", ["triton", "fused", "reference"])
def test_ops_asked_for_by_name_are_taken_where_they_are(machine, flag):
    machine()
    assert choose_kernels(flag, "cuda", 128) == flag


@pytest.mark.parametrize(
    ("flag", "device", "has", "message"),
    [
        ("triton", "cpu", {}, "--kernels: got 'triton', expected auto, fused or reference: Triton kernels run on CUDA"),
        ("triton", "cuda", {"triton": False}, "--kernels: got 'triton', .*: triton is not installed"),
        ("triton", "cuda", {"compiler": False}, "--kernels: got 'triton', .*: Triton finds no C compiler"),
        ("triton", "cuda", {"capability": (7, 5)}, "--kernels: got 'triton', .*: the device is sm_75, .* need sm_80"),
        ("fused", "cpu", {"fused": False}, "--kernels: got 'fused', expected auto or reference: no library here"),
    ],
)
def test_ops_asked_for_by_name_and_missing_are_refused(machine, flag, device, has, message):
    machine(**has)
    with pytest.raises(InputError, match=message):
        choose_kernels(flag, device, 128)


def test_states_too_wide_for_the_compiled_ops_leave_them_out(machine):
    machine()
    assert choose_kernels("auto", "cpu", 2048) == "reference"
    with pytest.raises(InputError, match=r"model\.dim is 2048, the compiled ops take at most 1024"):
        choose_kernels("fused", "cpu", 2048)


@pytest.mark.parametrize(
    ("kernels", "device", "model", "expected"),
    [
        ("triton", "cuda", {}, "Triton kernel"),
        ("triton", "cuda", {"dim": 100}, "plain PyTorch: model.dim is 100, the kernel takes 16, 32, 64, 128"),
        ("triton", "cuda", {"history": 4}, "plain PyTorch: model.history is 4, the kernel takes 0"),
        ("triton", "cpu", {}, "plain PyTorch: Triton kernels run on CUDA devices alone"),
        ("fused", "cuda", {}, "plain PyTorch"),
    ],
)
def test_the_log_says_what_the_rollout_runs_on(machine, kernels, device, model, expected):
    machine()
    assert build_model(JEPAConfig(**model)).ops(kernels, device)["rollout"] == expected


def test_every_op_is_described(machine):
    machine()
    assert build_model(JEPAConfig()).ops("fused", "cuda")["vicreg"] == "compiled cuda kernel"
    assert set(build_model(JEPAConfig()).ops("reference", "cuda").values()) == {"plain PyTorch"}
    assert build_model(GatedFeaturesConfig()).ops("fused", "cuda") == {"mixture": "plain PyTorch"}
    assert set(build_model(GatedConvNeXtConfig()).ops("fused", "cuda")) == {"mixture", "convnext_block"}


@pytest.mark.parametrize("kernels", ["triton", "fused"])
@pytest.mark.parametrize(
    ("has", "reason"),
    [({"cuda_kernels": False}, "jepa_fast was compiled without cuda kernels"), ({"fused": False}, "no library here")],
)
def test_the_log_says_why_a_loss_has_no_compiled_kernel(machine, kernels, has, reason):
    machine(**has)
    assert build_model(JEPAConfig()).ops(kernels, "cuda")["vicreg"] == f"plain PyTorch: {reason}"


@pytest.mark.parametrize(
    ("kernels", "channels", "expected"),
    [
        ("triton", 16, "Triton kernel"),
        ("triton", 24, "plain PyTorch: model.channels is 24, the kernel takes 16, 32, 64, 96, 128"),
        ("fused", 16, "plain PyTorch"),
    ],
)
def test_the_log_says_what_the_blocks_run_on(machine, kernels, channels, expected):
    machine()
    assert build_model(JEPAConfig(channels=channels)).ops(kernels, "cuda")["convnext_block"] == expected
