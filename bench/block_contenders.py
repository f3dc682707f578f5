"""What the benchmarks of dwconv_norm and convnext_block share: inputs, passes, memory, the floor of issue slots.

A contender is a function of x and the parameters. Baselines run under autocast, as a model of theirs would; one gets x
in NCHW layout, the others channels last, which is a permutation of what the kernels take.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from scripts import triton_floors

Pass = Literal["forward", "backward", "both"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "both")
ON_CUDA = torch.cuda.is_available()
OURS = "jepa_fast" if ON_CUDA else "reference"  # what the op runs on this device
CONTENDERS = (OURS, "eager channels_last", "eager NCHW", "compiled")
# Frames of a batch of 128 trajectories, the windows of their dots, a wide model; on a CPU enough to run every path.
SHAPES = [(4352, 65, 65, 16), (2176, 22, 22, 16), (512, 65, 65, 64)] if ON_CUDA else [(8, 22, 22, 16)]
DTYPE = torch.bfloat16 if ON_CUDA else torch.float32
# Of the op alone, against float64 on the first images; the norm of the error over the norm of the truth.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

Function = Callable[..., Tensor]


class Case(NamedTuple):
    """One contender, ready to be timed."""

    run: Callable[[], object]
    x: Tensor  # channels last, [N, H, W, C]
    parameters: dict[str, Tensor]


def prepare(contender: str, function: Function, plain: Function, shape: tuple[int, ...], parameters: dict[str, Tensor],
            passes: Pass, device: str) -> Case:  # fmt: skip
    """`function` is the op; `plain` the same in PyTorch on x [N, C, H, W]."""
    x = torch.randn(*shape, device=device).to(DTYPE)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in parameters.items()}
    if contender == OURS:
        images = x.detach().requires_grad_()
        step = function
    else:
        images = x.permute(0, 3, 1, 2)
        images = (images.contiguous() if contender == "eager NCHW" else images).detach().requires_grad_()
        step = _compiled(plain) if contender == "compiled" else plain

    def forward() -> Tensor:
        with torch.autocast(device, DTYPE, enabled=ON_CUDA):
            return step(images, **leaves)

    y = forward()
    dy = torch.randn_like(y)
    wanted = [images, *leaves.values()]
    runs: dict[Pass, Callable[[], object]] = {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True),
        "both": lambda: torch.autograd.grad(forward(), wanted, dy),
    }
    return Case(runs[passes], x, leaves)


@functools.cache
def _compiled(plain: Function) -> Function:
    """Once per function, so that passes over the same shape share what was compiled."""
    return torch.compile(plain, dynamic=False)


def check(function: Function, reference: Function, case: Case) -> float:
    """Largest error of the op's output and gradients on two images, against float64. Raises AssertionError."""
    x = case.x[:2]
    ours = [x.detach().requires_grad_(), *(leaf.detach().requires_grad_() for leaf in case.parameters.values())]
    truth = [leaf.detach().double().cpu().requires_grad_() for leaf in ours]
    names = list(case.parameters)
    y = function(ours[0], **dict(zip(names, ours[1:], strict=True)))
    exact = reference(truth[0], **dict(zip(names, truth[1:], strict=True)))
    dy = torch.randn_like(y)
    pairs = zip(torch.autograd.grad(y, ours, dy), torch.autograd.grad(exact, truth, dy.double().cpu()), strict=True)
    errors = [norm_error(y, exact), *(norm_error(gradient, right) for gradient, right in pairs)]
    assert max(errors) < TOLERANCES[DTYPE]
    return max(errors)


def norm_error(ours: Tensor, truth: Tensor) -> float:
    return ((ours.double().cpu() - truth).norm() / truth.norm()).item()


def peak_mb(run: Callable[[], object], device: str) -> float:
    """Most memory that a run takes beyond what is there; on a CPU all that it asks the allocator for."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return round(sum(max(0, event.self_cpu_memory_usage) for event in profiler.events()) / 1e6, 1)


def add_floor(benchmark, op: str, passes: Pass, x: Tensor) -> None:
    """Put the issue floor on this GPU, and how much of it a finished benchmark reached, into its extra_info."""
    if benchmark.stats is None or not ON_CUDA:
        return
    properties = torch.cuda.get_device_properties(0)
    architecture = f"sm_{properties.major}{properties.minor}"
    machine = triton_floors.MACHINES[architecture]._replace(multiprocessors=properties.multi_processor_count)
    rows = triton_floors.newest_rows()
    names = ("forward", "backward") if passes == "both" else (passes,)
    parts = [triton_floors.find_pass(op, name, x.shape[3]) for name in names]
    instructions = sum(triton_floors.instructions_per_output(part, rows, architecture) for part in parts)
    floor = triton_floors.issue_ms(instructions, x.numel(), machine)
    reached = 100 * floor / (1e3 * benchmark.stats.stats.median)
    benchmark.extra_info |= {"issue_floor_ms": round(floor, 3), "percent_of_issue": round(reached, 1)}
