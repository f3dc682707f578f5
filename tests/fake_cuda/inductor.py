"""What torch.compile would launch for the step's parts: Inductor's CUDA code, generated and counted, never run."""

import copy
import re
from collections import Counter, namedtuple

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.fx_passes.joint_graph as joint_graph
import torch._inductor.scheduler as scheduler
import torch.utils._triton as triton_utilities
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config
from torch._inductor.compile_fx import _recursive_post_grad_passes, select_decomp_table, view_to_reshape
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tests.fake_cuda.device import CAPABILITY, MULTIPROCESSORS, Watch, ignored

Properties = namedtuple(
    "Properties",
    "name major minor total_memory multi_processor_count regs_per_multiprocessor max_threads_per_multi_processor "
    "warp_size shared_memory_per_block_optin shared_memory_per_block L2_cache_size gcnArchName max_threads_per_block "
    "shared_memory_per_multiprocessor",
)
HOPPER = Properties(
    "none", *CAPABILITY, 80 << 30, MULTIPROCESSORS, 65536, 2048, 32, 232448, 49152, 50 << 20, "", 1024, 233472
)


# Those of the run, and no work in other processes; constants are not folded, for there is nothing to compute them on.
OPTIONS = {
    "deterministic": True, "shape_padding": False, "compile_threads": 1, "joint_graph_constant_folding": False,
}  # fmt: skip


class Driver:
    """Triton's view of the device."""

    def get_current_target(self):
        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cuda", 0)

    def get_device_interface(self):
        return torch.cuda

    def is_active(self):
        return True

    class utils:
        @staticmethod
        def get_device_properties(device):
            return {"max_shared_mem": 232448, "multiprocessor_count": MULTIPROCESSORS, "warpSize": 32}


class Part:
    """The code of one compiled graph, forward or backward."""

    def __init__(self, kind: str, code: str) -> None:
        self.kind, self.code = kind, code
        body = code[code.index("def call(") :]
        self.triton = re.findall(r"^\s+(\w+)\.run\(", body, re.MULTILINE)
        self.extern = Counter(re.findall(r"extern_kernels\.(\w+)\(", body))
        # Ops without a lowering, by their own kernels; ours are counted where they run.
        self.others = Counter(
            name for name in re.findall(r"torch\.ops\.([\w.]+)\(", body) if not name.startswith("jepa_fast.")
        )
        self.copies = len(re.findall(r"\.copy_\(", body))

    @property
    def launches(self) -> int:
        """How many kernels it launches beside our ops."""
        return len(self.triton) + sum(self.extern.values()) + sum(self.others.values()) + self.copies


class Compiler:
    """A backend of torch.compile that keeps the code it would have run, in the order of compilation, in `parts`."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def __call__(self, graph, inputs):
        def partition(joint, arguments, **options):
            with config.patch(OPTIONS):
                joint_graph.joint_graph_passes(joint)
                return min_cut_rematerialization_partition(joint, arguments, compiler="inductor", **options)

        return aot_autograd(
            fw_compiler=self._compiler("forward"),
            bw_compiler=self._compiler("backward"),
            inference_compiler=self._compiler("inference"),
            partition_fn=partition,
            decompositions=select_decomp_table(),
        )(graph, inputs)

    def _compiler(self, kind):
        def compile_graph(graph, inputs):
            part = Part(kind, self._code(copy.deepcopy(graph), inputs, kind))
            self.parts.append(part)

            def run(*arguments):
                watch = Watch.current
                if watch is None:
                    return graph(*arguments)
                watch.launched(f"inductor::{kind}", part.launches)
                before, watch.is_compiled = watch.is_compiled, True
                try:
                    return graph(*arguments)
                finally:
                    watch.is_compiled = before

            return make_boxed_func(run)

        return compile_graph

    @staticmethod
    def _code(graph, inputs, kind) -> str:
        mode = torch._guards.detect_fake_mode(inputs)
        with V.set_fake_mode(mode), DebugContext(), config.patch(OPTIONS):
            view_to_reshape(graph)
            _recursive_post_grad_passes(graph, is_inference=kind == "inference")
            lowering = GraphLowering(
                graph, example_inputs=inputs, is_inference=kind == "inference", is_backward=kind == "backward"
            )
            with V.set_graph_handler(lowering):
                lowering.run(*inputs)
                code = lowering.codegen()[0]
        return getattr(code, "value", code)


def compiling(monkeypatch) -> Compiler:
    """Has torch.compile go through a `Compiler`, for as long as the fixture lasts."""
    compiler = Compiler()
    compile_ = torch.compile

    def compiled(function, dynamic, options=None):
        assert (options or {}).items() <= OPTIONS.items()
        return compile_(function, backend=compiler, dynamic=dynamic, fullgraph=True)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "get_device_properties": HOPPER, "_get_device_properties": HOPPER, "is_available": True, "_lazy_init": None,
        "set_rng_state": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, _value=value, **__: _value, raising=False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.empty(16, dtype=torch.uint8))
    # Patterns of attention, which no model here has, are traced on the device.
    monkeypatch.setattr(joint_graph, "lazy_init", ignored)
    for module in (triton_utilities, scheduler):
        monkeypatch.setattr(module, "has_triton", lambda *_, **__: True)
    interface = device_interface.CudaInterface
    for owner, name, value in (
        (interface, "is_available", True),
        (interface, "get_compute_capability", 10 * CAPABILITY[0] + CAPABILITY[1]),
        (interface, "current_device", 0),
        (interface.Worker, "get_device_properties", HOPPER),
        (interface.Worker, "current_device", 0),
    ):
        monkeypatch.setattr(owner, name, staticmethod(lambda *_, _value=value: _value))
    driver.set_active(Driver())
    return compiler
