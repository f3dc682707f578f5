"""One process of test_dynamics: its rows of the latents in; terms and gradients out."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.objectives.dynamics_terms import compute


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    job = torch.load(folder / "job.pt", weights_only=False)
    for count in (4, 2):
        group = dist.new_group(list(range(count)))
        if rank < count:
            sides = [side.chunk(count)[rank].clone() for side in job]
            torch.save(compute(*sides, group=group), folder / f"rank{rank}of{count}.pt")


main()
# With what held the group gone, this waits for its thread, which must not meet the end of the interpreter.
dist.destroy_process_group()
