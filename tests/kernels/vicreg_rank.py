"""One process of test_vicreg_ranks: its rows in, terms and gradients out, for the group of all and of the first two."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from jepa_fast.kernels.vicreg import vicreg


def main() -> None:
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    pair = dist.new_group([0, 1])
    job = torch.load(folder / "job.pt")
    results = {}
    for name, group, ranks in (("all", dist.group.WORLD, world_size), ("pair", pair, 2)):
        if rank >= ranks:
            continue
        for case in job["cases"]:
            # Uneven on purpose: every process has its own number of rows.
            first, last = (job["cuts"][ranks][index] for index in (rank, rank + 1))
            x, target = (job[case["dtype"]][side][:, first:last].clone().requires_grad_() for side in (0, 1))
            terms = vicreg(x, target if case["target"] else None, divisor=case["divisor"], process_group=group)
            (terms * job["weights"]).sum().backward()
            results[name, str(case)] = terms.detach(), x.grad, target.grad
    torch.save(results, folder / f"rank{rank}.pt")


main()
# With what held the groups gone, this waits for their threads, which must not meet the end of the interpreter.
dist.destroy_process_group()
