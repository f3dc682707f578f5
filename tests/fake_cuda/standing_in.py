"""Runs a module as a program on a CUDA device that does nothing, of whatever build of torch:

    python -m tests.fake_cuda.standing_in MODULE ARGUMENTS

The program finds one device, trains on it, compiles, captures graphs and replays them. Numbers that it reads from the
device are 0 and truths are true: what it computes means nothing; that it ends as it should, and what it writes, does.
"""

import ctypes
import functools
import os
import runpy
import sys

from tests.fake_cuda import guard


def main() -> None:
    if os.environ.get("JEPA_FAST_FAKE_CUDA") != "1":
        command = [sys.executable, "-m", "tests.fake_cuda.standing_in", *sys.argv[1:]]
        os.execve(sys.executable, command, guard.environment())
    import torch

    # A build of torch with CUDA has put its own in the place.
    ctypes.CDLL(os.environ["LD_PRELOAD"]).take_over()

    import pytest
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tests.fake_cuda.device import pretend
    from tests.fake_cuda.inductor import compiling

    patch = pytest.MonkeyPatch()
    pretend(patch)
    compiling(patch)
    answer(patch)
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def answer(patch) -> None:
    """What a whole program asks beyond a step: data that holds values, modules that move, numbers that are read."""
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

    from jepa_fast.data import host
    from jepa_fast.data.batches import Batch
    from tests.fake_cuda.device import fake

    def real(function):
        @functools.wraps(function)
        def made(*arguments):
            with unset_fake_temporarily():
                return function(*arguments)

        return made

    bases, gather = real(host.group_bases), real(host.gather)

    def gathered(split, rows):
        parts = gather(split, rows).tensors().items()
        return Batch.of({name: None if part is None else fake(part, device="cpu") for name, part in parts})

    patch.setattr(host, "gather", gathered)
    patch.setattr(host, "group_bases", lambda split, device: tuple(map(fake, bases(split))))

    def moved(self, device):
        # Of fakes the default, which swaps what tensors hold, cannot.
        known = {}
        for module in self.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor not in known:
                        new = tensor.detach().to(device)
                        known[tensor] = nn.Parameter(new, tensor.requires_grad) if held is module._parameters else new
                    held[name] = None if tensor is None else known[tensor]
        return self

    patch.setattr(nn.Module, "to", moved)

    def read(tensor):
        if tensor.constant is not None:
            return tensor.constant.tolist()
        value = True if tensor.dtype == torch.bool else 0.0 if tensor.dtype.is_floating_point else 0
        return functools.reduce(lambda inner, size: [inner] * size, reversed(tensor.shape), value)

    patch.setattr(FakeTensor, "tolist", read)
    patch.setattr(FakeTensor, "item", read, raising=False)
    for kind in (bool, int, float):
        patch.setattr(FakeTensor, f"__{kind.__name__}__", lambda self, kind=kind: kind(read(self)), raising=False)


if __name__ == "__main__":
    main()
