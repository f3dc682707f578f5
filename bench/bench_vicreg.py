"""One step of the VICReg loss, forward and backward: x and target in, the gradients of both out.

On a GPU every candidate is captured in a CUDA graph first: what is timed is the kernels, not the launching. Beside the
benchmark there is a form for busy machines, in which the candidates take turns, step by step:

    python -m bench.bench_vicreg                 # [2048, 128] and [131072, 128]
    python -m bench.bench_vicreg 512 64          # rows and columns of your own
"""

import sys
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.steps import Step, captured, costs
from jepa_fast.kernels import extension
from jepa_fast.kernels.vicreg import vicreg, vicreg_reference

# A batch of predictions (128 trajectories of 16 steps), larger models, and whole data sets. A million rows are for a
# GPU: on a CPU the baselines take seconds.
SHAPES = [(2048, 128), (2048, 512), (8192, 1024), (131072, 128), (1048576, 128)]
SHAPES_HERE = SHAPES if torch.cuda.is_available() else SHAPES[:-1]
DTYPES = [torch.float32, torch.bfloat16]
WEIGHTS = (25.0, 25.0, 1.0)
# Of the op alone; the baselines' errors are reported.
TOLERANCES = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-5, 4e-3)}


def formulas(x: Tensor, target: Tensor) -> Tensor:
    """The terms as one would write them, in float32."""
    x, target = x.float(), target.float()
    centred = x - x.mean(dim=1, keepdim=True)
    covariance = (centred.transpose(1, 2) @ centred / (x.shape[1] - 1))[0]
    diagonal = torch.eye(len(covariance), dtype=torch.bool, device=x.device)
    variance = F.relu(1 - (covariance.diagonal() + 1e-4).sqrt()).mean()
    off_diagonal = covariance.masked_fill(diagonal, 0).square().sum() / len(covariance)
    return torch.stack([F.mse_loss(x, target), variance, off_diagonal])


CANDIDATES = {"jepa_fast": vicreg, "eager": formulas, "compiled": torch.compile(formulas)}


def make_step(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> Step:
    weights = torch.tensor(WEIGHTS, device=x.device)

    def step() -> Tensor:
        x.grad = target.grad = None
        terms = function(x, target)
        (terms * weights).sum().backward()
        return terms.detach()

    return step


def errors(step: Step, x: Tensor, target: Tensor) -> tuple[float, float]:
    """Largest relative error of a term, and error of both gradients relative to their norm, against float64."""
    terms = step().double()
    wide = [state.detach().double().requires_grad_() for state in (x, target)]
    truth = vicreg_reference(*wide)
    (truth * truth.new_tensor(WEIGHTS)).sum().backward()
    gradients = zip((x.grad, target.grad), (state.grad for state in wide), strict=True)
    return (
        ((terms - truth.detach()) / truth.detach()).abs().max().item(),
        max(((ours.double() - exact).norm() / exact.norm()).item() for ours, exact in gradients),
    )


# torch's own use of what it deprecates, met when its compiler sees a diagonal.
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES_HERE, ids=str)
def bench_vicreg(benchmark, report, device: str, shape: tuple[int, int], dtype: torch.dtype, candidate: str) -> None:
    benchmark.group = f"vicreg forward + backward {shape} {dtype}"
    if candidate == "jepa_fast" and not extension.has_kernel("vicreg", device):
        pytest.skip(f"no compiled kernel for {device}")
    rows, columns = shape
    # Below the hinge, so that the variance term is at work.
    x, target = ((0.8 * torch.randn(1, *shape, device=device)).to(dtype).requires_grad_() for _ in range(2))
    step = make_step(CANDIDATES[candidate], x, target)
    value_error, gradient_error = errors(step, x, target)
    if candidate == "jepa_fast":
        value_tolerance, gradient_tolerance = TOLERANCES[dtype]
        assert value_error <= value_tolerance
        assert gradient_error <= gradient_tolerance
    benchmark.extra_info |= {"value_error": value_error, "gradient_error": gradient_error, **costs(step, device)}
    timed = captured(lambda: step) if device == "cuda" else step
    if rows * columns >= 2**23:
        many = device == "cuda" or candidate == "jepa_fast"
        benchmark.pedantic(timed, rounds=10 if many else 3, warmup_rounds=2 if many else 1)
    else:
        benchmark(timed)
    # x and its gradient, target and its gradient; x is read twice forward and once backward.
    report(7 * rows * columns * x.element_size())


def take_turns(sizes: dict[tuple[int, int], int]) -> None:
    """Print median and best step of every candidate, from steps that alternate; the first two are left out.

    `sizes` has the number of steps by rows and columns.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for shape, rounds in sizes.items():
        for dtype in DTYPES:
            pair = [(0.8 * torch.randn(1, *shape, device=device)).to(dtype).requires_grad_() for _ in range(2)]
            names = [name for name in CANDIDATES if name != "jepa_fast" or extension.has_kernel("vicreg", device)]
            steps = {name: make_step(CANDIDATES[name], *pair) for name in names}
            if device == "cuda":
                steps = {name: captured(lambda step=step: step) for name, step in steps.items()}
            taken: dict[str, list[float]] = {name: [] for name in names}
            for number in range(rounds):
                for name, step in steps.items():
                    start = time.perf_counter()
                    step()
                    if device == "cuda":
                        torch.cuda.synchronize()
                    if number >= 2:
                        taken[name].append(1e3 * (time.perf_counter() - start))
            figures = (f"{name} {sorted(ms)[len(ms) // 2]:.2f} ({min(ms):.2f})" for name, ms in taken.items())
            print(f"{shape} {dtype}, {torch.get_num_threads()} threads, median (best) ms: {', '.join(figures)}")


def main() -> None:
    given = tuple(map(int, sys.argv[1:]))
    if len(given) not in (0, 2):
        raise SystemExit(f"usage: python -m bench.bench_vicreg [ROWS COLUMNS]; got {sys.argv[1:]}")
    take_turns({given: 20} if given else {(2048, 128): 300, (131072, 128): 9})


if __name__ == "__main__":
    main()
