"""Training steps on CUDA tensors that hold nothing: what a device would be asked to do, seen without one.

Tensors are those of a FakeTensorMode, on a device that does nothing (guard.cpp, loaded before torch). Custom ops run
their CUDA implementations on them, launches of Triton kernels are noted in place of being made, and `Watch` sees every
op between: which of them a device would launch, which would make the host wait, and which mix devices.
"""

import contextlib
import functools
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from jepa_fast.config import RunConfig
from jepa_fast.data.batches import Batch
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import flips
from jepa_fast.engine import step as step_module
from jepa_fast.kernels import dispatch, extension, rollout
from jepa_fast.kernels.triton import launch
from jepa_fast.models import sparse_encoder
from jepa_fast.models.registry import build_model

MULTIPROCESSORS = 132
CAPABILITY = (9, 0)
# Launches of the ops of csrc/cuda, which only a CUDA build has, and of torch's ops that make more than one.
LAUNCHES = {
    "jepa_fast::vicreg": 5,
    "jepa_fast::vicreg_backward": 1,
    "aten::embedding_dense_backward": 14,
    "aten::convolution_backward": 2,
    "aten::native_layer_norm_backward": 2,
    "aten::native_batch_norm_backward": 2,
    "aten::sort": 4,
    "aten::cumsum": 2,
}
# Memory and views of it.
NO_LAUNCH = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "detach", "alias", "view",
    "_unsafe_view", "_reshape_alias", "as_strided", "expand", "permute", "transpose", "t", "select", "slice", "split",
    "split_with_sizes", "unbind", "unsqueeze", "squeeze", "unfold", "diagonal", "resize_", "set_",
}  # fmt: skip
WAITS = {
    "_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2",
    "bincount",
}  # fmt: skip
# Whose order of sums changes from run to run on CUDA.
ATOMIC = {
    "index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "histc", "put_",
    "grid_sampler_2d_backward", "adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward",
    "upsample_bilinear2d_backward", "reflection_pad2d_backward", "replication_pad2d_backward", "kthvalue", "median",
}  # fmt: skip


class Place(NamedTuple):
    """An op as it was called, and from where."""

    op: str
    frames: str

    def __str__(self) -> str:
        return f"{self.op} at {self.frames}"


def _place(op: str) -> Place:
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if "/jepa_fast/" in frame.filename or "/kernels/" in frame.filename
    ]
    return Place(op, " < ".join(frames[::-1][:4]))


def implementations():
    """What custom ops do on CUDA, by name; compiled ones do nothing that could be seen."""
    from torch._library.custom_ops import OPDEFS

    found = {
        name: definition._backend_fns.get("cuda", definition._init_fn)
        for name, definition in OPDEFS.items()
        if name.startswith("jepa_fast::")
    }
    return found | {
        rollout.OPERATOR: rollout._rollout_cuda,
        rollout.BACKWARD_OPERATOR: rollout._rollout_backward_cuda,
    }


def _layout(tensor: Tensor) -> tuple:
    """What a fake has to have in common with the tensor that it stands for."""
    strides = tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    return tensor.dtype, tuple(tensor.shape), tensor.device.type, strides if tensor.numel() else ()


class Watch(TorchDispatchMode):
    """Counts what a device would launch, by the custom op that it is in or "", and notes what it should not be asked.

    Custom ops run their implementation too, and what it returns is compared with their fake.
    """

    current: "Watch | None" = None

    def __init__(self):
        super().__init__()
        self.launches = Counter()  # (custom op or "", op) -> how many
        self.calls = Counter()  # of custom ops
        self.waits, self.mixes, self.atomics, self.copies = Counter(), Counter(), Counter(), Counter()
        self.lies = set()  # of fakes
        self.inside = ""
        # In compiled code torch's own ops are Inductor's to count.
        self.is_compiled = False
        self.implementations = implementations()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled code runs under it."""
        return True

    def __enter__(self):
        Watch.current = self
        return super().__enter__()

    def launched(self, name: str, count: int = 1) -> None:
        self.launches[self.inside, name] += count

    @property
    def count(self) -> int:
        """Launches in all."""
        return sum(self.launches.values())

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        name = function.overloadpacket._qualified_op_name
        if name in self.implementations:
            return self._custom(name, function, arguments, keywords)
        if function.namespace == "prim":
            return function(*arguments, **keywords)
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:
                parts = function.decompose(*arguments, **keywords)
            if parts is not NotImplemented:
                return parts
        short = name.split("::")[1]
        given = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        if any(tensor.is_cuda for tensor in given) and (
            short in WAITS or (short == "index" and any(_is_mask(index) for index in arguments[1]))
        ):
            self.waits[_place(name)] += 1
        out = function(*arguments, **keywords)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        # A number on the host beside others is an argument of the launch.
        numbers = len(given) > 1
        devices = {tensor.device.type for tensor in given if tensor.dim() or not numbers}
        devices |= {tensor.device.type for tensor in made}
        if "cuda" in devices and "cpu" in devices:
            (self.copies if short in ("_to_copy", "copy_") else self.mixes)[_place(name)] += 1
        if any(tensor.is_cuda for tensor in given + made) and self._is_work(function, short, given, made):
            if self._is_atomic(short, arguments):
                self.atomics[_place(name)] += 1
            if self.inside or not self.is_compiled or function.namespace == "jepa_fast":
                self.launched(name, LAUNCHES.get(name, 1))
        return out

    @staticmethod
    def _is_atomic(short, arguments) -> bool:
        if short == "convolution_backward":
            return not torch.backends.cudnn.deterministic
        if "index_put" in short:
            return len(arguments) > 3 and bool(arguments[3])
        if short == "cumsum":
            # One row takes several blocks, and each what it finds of those before it.
            x = arguments[0]
            return x.is_floating_point() and x.numel() == x.shape[arguments[1]]
        return short in ATOMIC

    def _is_work(self, function, short, given, made) -> bool:
        if short in NO_LAUNCH:
            return False
        writes = any(
            argument.alias_info is not None and argument.alias_info.is_write for argument in function._schema.arguments
        )
        if writes:
            return True
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        return any(tensor.untyped_storage()._cdata not in storages for tensor in made) or not made

    def _custom(self, name, function, arguments, keywords):
        if not self.inside:
            self.calls[name] += 1
        fake = function(*arguments, **keywords)
        outer, self.inside = self.inside, self.inside or name
        try:
            with self:
                real = self.implementations[name](*arguments, **keywords)
        finally:
            self.inside = outer
        for number, (ours, theirs) in enumerate(zip(tree_leaves(real), tree_leaves(fake), strict=True)):
            if isinstance(ours, Tensor) and _layout(ours) != _layout(theirs):
                self.lies.add(f"{name}, output {number}: really {_layout(ours)}, its fake {_layout(theirs)}")
        return fake


def _is_mask(index) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _launch(kernel, *arguments, grid, warmup, **keywords):
    """In place of a launch of a Triton kernel."""
    for argument in [*arguments, *keywords.values()]:
        assert not isinstance(argument, Tensor) or argument.is_cuda, (
            f"{kernel.fn.__name__}: a tensor on {argument.device}"
        )
    assert not callable(grid)
    assert all(side > 0 for side in grid), f"{kernel.fn.__name__}: grid {grid}"
    if Watch.current is not None:
        Watch.current.launched(f"triton::{kernel.fn.__name__}")


def _fused_adam(*tensors, **options) -> None:
    """In place of the fused optimiser, which has no fake: one launch for each list of parameters."""
    assert all(leaf.is_cuda for leaf in tree_leaves((tensors, options)) if isinstance(leaf, Tensor))
    if Watch.current is not None:
        Watch.current.launched("aten::_fused_adam_", 2)


class _Adam(torch.optim.Adam):
    """Adam that does not look at the value of its learning rate when it is made."""

    def __init__(self, parameters, lr, **options):
        fused = options.pop("fused", None)
        super().__init__(parameters, lr=0.0, **options)
        for group in self.param_groups:
            group["lr"], group["fused"] = lr, fused

    def _cuda_graph_capture_health_check(self) -> None:
        pass


def ignored(*arguments, **keywords) -> None:
    """What there is nothing to do for."""


class Stream:
    """All work on it is done as soon as it is asked for."""

    def __init__(self, *arguments, **keywords):
        pass

    wait_stream = wait_event = synchronize = ignored


class Event(Stream):
    """It has happened."""

    record = wait = ignored

    def query(self) -> bool:
        return True

    def elapsed_time(self, other) -> float:
        return 0.0


class Graph:
    """Of a step that has been run while it was recorded; nothing is left to do."""

    replay = ignored


def recording(graph, **options):
    """In place of torch.cuda.graph."""
    assert isinstance(graph, Graph)
    assert options["capture_error_mode"] == "thread_local"
    return contextlib.nullcontext()


def pretend(monkeypatch) -> None:
    """A CUDA device, for as long as the fixture lasts."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    for name, value in {
        "is_bf16_supported": True, "get_device_capability": CAPABILITY, "is_current_stream_capturing": False,
        "current_device": 0, "device_count": 1,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    # Numbers stay on the host, and no context is made where torch could make one.
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", True)
    monkeypatch.setattr(fake_tensor, "init_gpu_context", ignored)
    monkeypatch.setattr(extension, "has_kernel", lambda operator, device: operator.split("::")[-1] != "dropout_mask")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    # Fakes are not of the types that fused loops over parameters look for.
    monkeypatch.setattr(torch.nn.utils.clip_grad, "_has_foreach_support", lambda *_: True)
    monkeypatch.setattr(launch, "_multiprocessors", lambda device: MULTIPROCESSORS)
    monkeypatch.setattr(JITFunction, "run", _launch)
    monkeypatch.setattr(torch, "_fused_adam_", _fused_adam)
    monkeypatch.setattr(torch.optim, "Adam", _Adam)
    for name, value in {
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "current_stream": Stream, "set_stream": ignored,
        "stream": contextlib.nullcontext, "graph": recording, "synchronize": ignored,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    for cached in (dispatch.why_no_triton, dispatch._why_no_compiled_blocks):
        cached.cache_clear()
    # What is found out from the values of base images, once, when a trainer is made.
    for module, name in ((sparse_encoder, "_find_nesting"), (flips, "_with_mirror_images")):
        monkeypatch.setattr(module, name, functools.partial(_of_values, getattr(module, name)))


def _of_values(function, images):
    with unset_fake_temporarily():
        found = function(images.values)
    if found is None:
        return None
    parts = map(fake, found)
    return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)


def fake(tensor, count: int | None = None, device="cuda"):
    """A tensor of the running mode, like the one given, which it remembers; `count` rows of it."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    shape = tensor.shape if count is None else (count, *tensor.shape[1:])
    made = torch.empty(shape, dtype=tensor.dtype, device=device)
    made.values = tensor
    return made


# Ops of CUDA builds for which torch has no fake.
FAKES = torch.library.Library("aten", "IMPL", "Meta")


@torch.library.impl(FAKES, "cudnn_grid_sampler")
def _grid_sampler(images, grid):
    return images.new_empty(*images.shape[:2], *grid.shape[1:3])


@torch.library.impl(FAKES, "cudnn_grid_sampler_backward")
def _grid_sampler_backward(images, grid, gradient):
    return torch.empty_like(images), torch.empty_like(grid)


class Run(NamedTuple):
    """A trainer of a preset and a batch for it."""

    trainer: step_module.Trainer
    batch: Batch
    spec: FrameSpec
    bases: tuple


@contextlib.contextmanager
def running(data: Path, recipe, batch_size: int, amp="off", compile=False):
    """A run of a recipe on the device, in the mode that its tensors belong to."""
    split = open_split(data / "train")
    config = RunConfig(
        preset="fake", recipe=recipe, seed=0, steps=100, batch_size=batch_size, amp=amp, compile=compile, device="cuda",
        data=str(data), loader="host", kernels="triton", sparse=True, capture=True,
    )  # fmt: skip
    real = gather(split, np.arange(min(split.count, config.batch_size)))
    images = group_bases(split)
    with FakeTensorMode(allow_non_fake_inputs=True):
        bases = tuple(map(fake, images))
        batch = Batch.of(
            {name: None if part is None else fake(part, config.batch_size) for name, part in real.tensors().items()}
        )
        with torch.device("cuda"):
            model = build_model(recipe.model, recipe.objective, config.kernels)
        # Parameters of fakes cannot move.
        model.to = lambda device: model
        trainer = step_module.Trainer(config, split.spec, bases, model=model)
        yield Run(trainer, batch, split.spec, bases)
