"""Probe a trained world model: `python -m jepa_fast.evaluate RUN`."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jepa_fast import cli
from jepa_fast.config import RunConfig, require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Locate the agent from predicted states alone, and print the errors beside the floors."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: Path | None = None
    """Folder of packed splits. Default: the one the run was trained on."""
    seed: int = 0
    """Of the probes and of the untrained floor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""


def main(arguments: Arguments) -> None:
    """Evaluate; the table goes to standard output, the JSON into the run folder."""
    import torch

    from jepa_fast.probing.evaluation import evaluate
    from jepa_fast.runs import CONFIG, load

    has_cuda = torch.cuda.is_available()
    require(arguments.device != "cuda" or has_cuda, "--device", "cuda", "cpu: torch sees no CUDA device")
    device = torch.device("cuda" if has_cuda and arguments.device != "cpu" else "cpu")
    world = load(arguments.run).to(device)
    data = arguments.data or Path(RunConfig.load(arguments.run / CONFIG).data)
    evaluation = evaluate(world, data, arguments.seed)
    path = arguments.run / "evaluation.json"
    path.write_text(json.dumps(evaluation.to_json(), indent=2) + "\n")
    print(evaluation.table())
    logger.info("%s", path)


if __name__ == "__main__":
    cli.run(main, Arguments, "Probe a trained JEPA world model.")
