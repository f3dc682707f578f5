"""Which term of the objective makes latents plan: `python -m research.planner_ablation --data data/full`.

Trains the preset `planner` with one term changed at a time, probes it by ridge regression and lets it plan. One line of
research/records/planner_ablation.jsonl for every run; runs that are there are kept. The table of docs/planning.md is
written from them.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_fast import cli
from research.jsonl import append, read

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from jepa_fast.models.model import Model
    from jepa_fast.probing.rollouts import Rollouts

    Float64 = NDArray[np.float64]

RECORDS = Path(__file__).parent / "records" / "planner_ablation.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
BEGIN, END = "<!-- ablation: python -m research.planner_ablation -->", "<!-- end of ablation -->"
# What is changed of the preset's objective, by the name of the row.
CHANGES: dict[str, dict[str, float | int]] = {
    "as it is": {},
    "without inverse dynamics": {"inverse": 0.0},
    "without variance and covariance": {"variance": 0.0, "covariance": 0.0},
    "without covariance": {"covariance": 0.0},
    "with temporal similarity, weight 4": {"similarity": 4.0},
    "SIGReg, weight 1, in place of variance and covariance": {
        "variance": 0.0, "covariance": 0.0, "sigreg": 1.0, "projections": 64,
    },
    "one step at a time": {"horizon": 1},
}  # fmt: skip
SPLITS = ("probe_normal/val", "probe_wall/val", "probe_wall_other/val", "probe_expert/val")


@dataclass(frozen=True)
class Arguments:
    """Train, probe and plan with one term changed at a time.

    Attributes:
        data: folder of the full set.
        steps: of every run.
        seed: of every run.
        episodes: planned with each.
        out: folder for the runs.
        draw: write the table from the records alone.
    """

    data: Path = Path("data/full")
    steps: int = 1000
    seed: int = 0
    episodes: int = 100
    out: Path = Path("runs/planner_ablation")
    draw: bool = False


def main(arguments: Arguments) -> None:
    """Make the runs that are missing, then the table."""
    done = {line["row"] for line in read(RECORDS)}
    for number, (row, changes) in enumerate(CHANGES.items()):
        if row in done or arguments.draw:
            continue
        append(RECORDS, {"row": row} | measure(arguments, changes, arguments.out / str(number)))
    lines = read(RECORDS)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(lines)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def measure(arguments: Arguments, changes: dict[str, float | int], folder: Path) -> dict[str, Any]:
    """One run's errors, successes and cost."""
    import torch

    import jepa_fast as jf
    from jepa_fast.planning.control import ModelWorld, walk
    from jepa_fast.planning.planner_config import PLANNERS
    from jepa_fast.planning.protocol import PROTOCOLS, draw_episodes
    from jepa_fast.planning.results import outcome
    from jepa_fast.presets import preset
    from jepa_fast.train import Arguments as TrainArguments
    from jepa_fast.train import DataArguments, start

    recipe = preset("planner")
    objective = jf.DynamicsConfig(**changes)  # type: ignore[arg-type]
    begun = time.process_time()
    start(
        TrainArguments(
            preset="planner", out=folder, steps=arguments.steps, seed=arguments.seed,
            data=DataArguments(arguments.data),
            model=recipe.model, objective=objective, optimizer=recipe.optimizer, stages=recipe.stages,
        )
    )  # fmt: skip
    train_cpu_s = time.process_time() - begun
    model = jf.load(folder)
    errors = ridge_errors(model, arguments.data)
    episodes, protocol = draw_episodes(arguments.episodes), PROTOCOLS["cross_room"]
    walked = walk(ModelWorld(model, torch.device("cpu")), episodes, protocol, PLANNERS["icem"])
    found = outcome("model", walked, episodes, protocol)
    return {
        "changes": changes, "steps": arguments.steps, "seed": arguments.seed, "train_cpu_s": round(train_cpu_s, 1),
        "errors_px2": errors, "final": found.final, "ever": found.ever, "episodes": found.episodes,
        "torch": torch.__version__,
    }  # fmt: skip


def ridge_errors(model: "Model", data: Path) -> dict[str, float]:
    """Squared errors in px^2 of places read off predicted latents by ridge regression, per probing set."""
    from jepa_fast.data.shards import open_split
    from jepa_fast.probing.rollouts import rollout_split

    known = rollout_split(model, open_split(data / "probe_normal/train"), "train")
    weights, mean, std = _ridge(known)
    errors = {}
    for name in SPLITS:
        shown = rollout_split(model, open_split(data / name), name)
        gap = _features(shown.latents.numpy(), mean, std) @ weights - shown.locations.numpy()
        errors[name] = round(float((gap**2).mean()), 4)
    return errors


def _ridge(known: "Rollouts") -> "tuple[Float64, Float64, Float64]":
    import numpy as np

    latents = known.latents.flatten(0, 1).double().numpy()
    mean, std = latents.mean(axis=0), latents.std(axis=0) + 1e-9
    rows = _features(latents, mean, std)
    gram = rows.T @ rows + 1e-6 * len(rows) * np.eye(rows.shape[1])
    return np.linalg.solve(gram, rows.T @ known.locations.flatten(0, 1).double().numpy()), mean, std


def _features(latents: "Float64", mean: "Float64", std: "Float64") -> "Float64":
    import numpy as np

    return np.concatenate([(latents - mean) / std, np.ones((*latents.shape[:-1], 1))], axis=-1)


def table(lines: list[dict[str, Any]]) -> str:
    """The records as a table."""
    from jepa_fast.planning.results import wilson

    rows = [
        "| objective | normal | wall | wall_other | expert | cross_room, final | 95% interval |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        errors, final, episodes = line["errors_px2"], line["final"], line["episodes"]
        low, high = wilson(final, episodes)
        cells = " | ".join(f"{errors[name]:.2f}" for name in SPLITS)
        rows.append(f"| {line['row']} | {cells} | {final / episodes:.0%} | {low:.0%} to {high:.0%} |")
    return "\n".join(rows)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.INFO)
    cli.run(main, Arguments, "Ablate the objective of the model to plan with.")
