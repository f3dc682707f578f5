"""Layouts of a batch of 32 and centres in its windows: the compiled ops against plain PyTorch, eager and compiled."""

import pytest
import torch
from torch import Tensor

from jepa_fast.kernels import scene

CANDIDATES = {
    "jepa_fast": (scene.read_centres, scene.read_layout),
    "eager": (scene.read_centres_reference, scene.read_layout_reference),
    "compiled": tuple(
        torch.compile(read, dynamic=False) for read in (scene.read_centres_reference, scene.read_layout_reference)
    ),
}


@pytest.mark.parametrize("candidate", CANDIDATES)
# The compiler warns of its own deprecated calls.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def bench_scene(benchmark, device: str, candidate: str) -> None:
    benchmark.group = "scene of 32 x 17 frames"
    generator = torch.Generator().manual_seed(0)
    agents = torch.randint(0, 256, (32, 17, 10, 10), generator=generator, dtype=torch.uint8).to(device)
    corners = torch.randint(0, 55, (32, 17, 2), generator=generator).to(device)
    walls = torch.zeros(32, 65, 65, dtype=torch.uint8, device=device)
    walls[:, :, 5] = walls[:, :, 60] = walls[:, 5] = walls[:, 60] = walls[:, :20, 30] = walls[:, 30:, 30] = 255
    read_centres, read_layout = CANDIDATES[candidate]

    def read() -> tuple[Tensor, Tensor]:
        return read_centres(agents, corners), read_layout(walls)

    for one, other in zip(
        read(), (scene.read_centres_reference(agents, corners), scene.read_layout_reference(walls)), strict=True
    ):
        torch.testing.assert_close(one, other)
    benchmark.pedantic(read, rounds=20, warmup_rounds=3)
