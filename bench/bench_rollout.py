"""All steps of the predictor, forward, backward and both, against the plain predictor in eager mode and compiled.

On a GPU under bfloat16 autocast and in float32; every candidate is captured in a CUDA graph, so that what is timed is
its kernels, and "eager, launched" shows what launching them one by one costs. On a CPU in float32, and a planner's
batch forward alone.
"""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor

from bench.steps import Step, captured, costs
from jepa_fast.config import JEPAConfig, Kernels
from jepa_fast.kernels import dispatch
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.kernels.rollout import rollout_reference
from jepa_fast.models.predictor import MLPPredictor

# Trajectories and steps: a batch of training; the longest evaluation.
SHAPES = [(128, 16), (256, 90)]
# A batch of training, short enough to be compiled and whole; a planner's candidates.
CPU_SHAPES = [(32, 4), (32, 16), (2000, 10)]
MOST_WITH_GRADIENTS = 256  # trajectories, on a CPU
PARTS = ("forward", "backward", "both")
KINDS = [torch.bfloat16, torch.float32]
CANDIDATES = ("jepa_fast", "eager", "compiled", "eager, launched")
# Of the states and of the gradients, norm over norm.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Question:
    """A predictor with the default sizes and what it is asked."""

    def __init__(self, batch: int, steps: int, kind: torch.dtype, candidate: str, device: str) -> None:
        torch.manual_seed(0)
        config = JEPAConfig()
        ours: Kernels = "triton" if device == "cuda" else "fused"
        kernels: Kernels = ours if candidate == "jepa_fast" else "reference"
        self.predictor = MLPPredictor(config.dim, dropout=config.dropout, kernels=kernels).to(device)
        self.first = torch.randn(batch, config.dim, device=device, requires_grad=True)
        self.actions = torch.randn(batch, steps, 2, device=device)
        self.gradient = torch.randn(batch, steps, config.dim, device=device)
        self.clock = new_clock().to(device)
        self.kind, self.device = kind, device
        self.function = torch.compile(self.predictor) if candidate == "compiled" else self.predictor

    def states(self) -> Tensor:
        with torch.autocast(self.device, self.kind, enabled=self.kind == torch.bfloat16):
            out: Tensor = self.function(self.first, self.actions, self.clock)
            return out

    def gradients(self, states: Tensor, keep: bool) -> tuple[Tensor, ...]:
        leaves = [self.first, *self.predictor.parameters()]
        return torch.autograd.grad(states, leaves, self.gradient.to(states.dtype), retain_graph=keep)

    def step(self, part: str) -> Step:
        if part == "forward":

            def evaluate() -> Any:
                with torch.no_grad():
                    return self.states()

            return evaluate
        if part == "backward":
            states = self.states()
            return lambda: self.gradients(states, keep=True)

        def both() -> Any:
            states = self.states()
            return states.detach(), *self.gradients(states, keep=False)

        return both

    @functools.cached_property
    def error(self) -> float:
        """The largest error of states and gradients against float64, relative to its norm."""
        states = self.states()
        ours = [states, *self.gradients(states, keep=False)]
        first = self.first.detach().double().requires_grad_()
        wide = [weight.detach().double().requires_grad_() for weight in self.predictor.weights()]
        weights = type(self.predictor.weights())(*wide)
        options = (self.predictor.dropout, self.predictor.residual, self.predictor.activation)
        exact = rollout_reference(first, self.actions.double(), weights, self.clock, *options)
        truth = [exact, *torch.autograd.grad(exact, [first, *wide], self.gradient.double())]
        pairs = zip(ours, truth, strict=True)
        return max(((one.double() - other).norm() / other.norm()).item() for one, other in pairs)


# Those of one shape and type: what is compiled serves all parts.
ask = functools.lru_cache(maxsize=len(CANDIDATES))(Question)


def shapes() -> list[tuple[int, int]]:
    return SHAPES if torch.cuda.is_available() else CPU_SHAPES


@pytest.fixture(autouse=True, scope="module")
def reusable_buffers() -> Iterator[None]:
    """A compiled backward that is run again and again must keep what it reads."""
    before = torch._functorch.config.donated_buffer
    torch._functorch.config.donated_buffer = False
    yield
    torch._functorch.config.donated_buffer = before


# torch's own use of what it deprecates, met when its compiler looks at the options of autocast.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", shapes(), ids=str)
def bench_rollout(benchmark, device: str, shape: tuple[int, int], kind: torch.dtype, part: str, candidate: str) -> None:
    batch, steps = shape
    benchmark.group = f"rollout {part} B={batch} {steps} steps {kind}"
    on_gpu = device == "cuda"
    missing = dispatch.why_no_triton("cuda") if on_gpu else dispatch.why_no_compiled_rollout()
    if candidate == "jepa_fast" and missing is not None:
        pytest.skip(missing)
    if not on_gpu and kind == torch.bfloat16:
        pytest.skip("on a CPU the compiled kernels are of float32")
    if not on_gpu and part != "forward" and batch > MOST_WITH_GRADIENTS:
        pytest.skip("a planner asks for latents alone")
    if candidate == "eager, launched" and not on_gpu:
        pytest.skip("on a CPU nothing is captured")
    if candidate == "compiled" and steps > (16 if on_gpu else 4):
        pytest.skip("compiling so many unrolled steps takes minutes")
    question = ask(batch, steps, kind, candidate, device)
    if candidate == "jepa_fast":
        assert question.error <= TOLERANCES[kind]
    if on_gpu and candidate != "eager, launched":
        timed = captured(lambda: question.step(part))
    else:
        timed = question.step(part)
        timed()
    benchmark.extra_info |= {"error": question.error, **costs(question.step(part), device)}
    benchmark(timed)
