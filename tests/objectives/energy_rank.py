"""One process of test_energy_ranks: its rows of the states in; terms and gradients of every case and task out."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from jepa_fast.models.gated import Encoded
from jepa_fast.models.registry import build_model
from tests.objective_terms import contrast, energy, fused_energy, mixture


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    job = torch.load(folder / "job.pt", weights_only=False)
    results = {}
    for name, compute in (("plain", energy), ("fused", fused_energy)):
        for case, config in job["cases"].items():
            sides = [side.chunk(2)[rank].clone().requires_grad_() for side in job["states"]]
            predicted, encoded, ema = sides
            targets = ema.detach() if config.targets == "ema" else None
            terms = compute(predicted, encoded, job["weights"], config, targets, dist.group.WORLD)
            terms.total.backward()
            results[name, case] = torch.stack(terms).detach(), predicted.grad, encoded.grad
    predicted, encoded = (side.chunk(2)[rank].clone().requires_grad_() for side in job["states"][:2])
    found = contrast(predicted, encoded, job["weights"], job["contrast"], group=dist.group.WORLD)
    found.total.backward()
    results["contrast"] = torch.stack(found).detach(), predicted.grad, encoded.grad
    for name, (config, encoded, actions, weights) in job["one_step"].items():
        torch.manual_seed(0)
        model = build_model(config).double()
        own = Encoded(*(part.chunk(2)[rank] for part in encoded))
        terms, _ = mixture(model, dist.group.WORLD)(own, actions.chunk(2)[rank], weights)
        terms.total.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        results["one step", name] = torch.stack(terms).detach(), gradients
    torch.save(results, folder / f"rank{rank}.pt")


main()
# With what held the group gone, this waits for its thread, which must not meet the end of the interpreter.
dist.destroy_process_group()
