"""Time to target: train until errors are low enough, against the clock.

    python -m research.speedrun --target r1
    python -m research.speedrun --check research/records/speedrun/r1.jsonl

The second line recomputes what the stored records claim from their raw logs.
"""

import logging
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jepa_fast import cli, train
from jepa_fast.config import Kernels, RunConfig, require
from jepa_fast.errors import InputError, RunError
from jepa_fast.presets import canonical
from research.targets import (
    CHECKS,
    PROBES,
    Record,
    meets,
    problems,
    read_records,
    results_of,
    schedule,
    summary_of,
    thresholds_of,
)

if TYPE_CHECKING:
    from jepa_fast.models.model import Model

logger = logging.getLogger(__name__)

# Steps, and trajectories per step, that were found to do, by preset and target (docs/results.md tells how); other
# presets need --steps.
BUDGETS: dict[str, dict[str, tuple[int, int]]] = {
    "gated_features": {"r1": (45, 16), "r2": (200, 16), "r3": (330, 16), "r4": (4592, 128)},
}
# A record keeps the weights of a model with at most so many parameters.
MOST_KEPT = 100_000


@dataclass(frozen=True)
class DataArguments:
    """Where trajectories and probe sets come from."""

    path: Path = Path("data/full")
    """Folder of packed splits, as jepa_fast.generate makes it."""
    batch_size: int | None = None
    """Trajectories per step. Default: what was found to do for this target and preset; with --steps, the recipe's."""


@dataclass(frozen=True)
class Arguments:
    """Train to a target's thresholds, once for each seed, and keep the record; or check records."""

    target: Literal["r1", "r2", "r3", "r4"] | None = None
    """Errors to reach; docs/results.md lists them."""
    preset: str = "gated_features"
    """Named recipe."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the trainings, one after the other. All count."""
    steps: int | None = None
    """Steps of a run, fixed beforehand. Default: what was found to do for this target and preset."""
    checks: int = CHECKS
    """How often a run is probed, evenly spread over its steps."""
    name: str | None = None
    """Name of the new record; with --check, of the one to verify. Default: TARGET-PRESET; with --check, all."""
    out: Path = Path("research/records/speedrun")
    """Folder of records: the new one is a line of OUT/TARGET.jsonl; a small model's weights go to OUT/weights/NAME."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    kernels: Literal["auto", Kernels] = "auto"
    """As in jepa_fast.train."""
    data: DataArguments = field(default_factory=DataArguments)
    check: Path | None = None
    """A file of records to verify from their raw logs, in place of a run."""
    rescore: bool = False
    """With --check: also probe the weights that the records keep, on the sets in --data."""


def main(arguments: Arguments) -> None:
    """Train to the target, or check."""
    if (arguments.target is None) == (arguments.check is None):
        given = "neither" if arguments.target is None else "both"
        raise InputError(f"--target, --check: got {given}, expected one of them")
    if arguments.check is not None:
        verify(arguments.check, arguments.name, arguments.data.path if arguments.rescore else None)
    else:
        run(replace(arguments, preset=canonical(arguments.preset)))


def run(arguments: Arguments) -> None:
    """Train every seed to the target and write the record.

    Raises:
        InputError: an argument is out of range, or there is a record of that name already.
    """
    from jepa_fast.models.registry import build_model
    from research.time_to_target import WARM_UP_STEPS, run_to_target, warm_up

    assert arguments.target is not None
    name, path = arguments.name or f"{arguments.target}-{arguments.preset}", arguments.out / f"{arguments.target}.jsonl"
    taken = {record.name for one in arguments.out.glob("*.jsonl") for record in read_records(one)}
    require(name not in taken, "--name", name, f"one that no record in {arguments.out} has")
    require(re.fullmatch(r"\w[\w.-]*", name) is not None, "--name", name, "letters, digits, -, _ and . alone")
    require(0 < len(arguments.seeds) == len(set(arguments.seeds)), "--seeds", arguments.seeds, "different seeds")
    steps, batch_size = budget(arguments)
    checks, thresholds = schedule(steps, arguments.checks), thresholds_of(arguments.target)
    configs = [resolve(arguments, steps, batch_size, seed) for seed in arguments.seeds]
    first = configs[0]
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Beside its place, and written there when all seeds are done: an interruption leaves nothing.
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix=f".{name}-") as folder:
        environment = environment_of(first, Path(folder))
        warm_up(first)
        outcomes = [run_to_target(one, Path(folder) / f"run-{one.seed}", checks, thresholds) for one in configs]
        log = [event for outcome in outcomes for event in outcome.log]
        results = results_of(log, list(arguments.seeds))
        parameters = sum(parameter.numel() for parameter in build_model(first.recipe.model).parameters())
        record = Record(
            name=name,
            target=arguments.target,
            thresholds=thresholds,
            preset=arguments.preset,
            config={key: value for key, value in asdict(first).items() if key not in ("seed", "data")},
            parameters=parameters,
            seeds=list(arguments.seeds),
            checks=checks,
            warm_up_steps=WARM_UP_STEPS,
            environment=environment,
            results=results,
            summary=summary_of(results),
            log=log,
        )
        keep(record, [outcome.model for outcome in outcomes], path, Path(folder) / "weights")
    print(record.table())
    logger.info("%s", path)


def budget(arguments: Arguments) -> tuple[int, int | None]:
    """Steps of a run and trajectories per step, None for the recipe's: those asked for, or what was found to do.

    Raises:
        InputError: --steps is not given, and nothing is known of this target with this preset.
    """
    if arguments.steps is not None:
        return arguments.steps, arguments.data.batch_size
    known = BUDGETS.get(arguments.preset, {}).get(arguments.target or "")
    if known is None:
        raise InputError(f"--steps: not given, and none is known for {arguments.target} with {arguments.preset}")
    return known[0], arguments.data.batch_size or known[1]


def resolve(arguments: Arguments, steps: int, batch_size: int | None, seed: int) -> RunConfig:
    """The configuration of one seed's run, as the command train would make it.

    Raises:
        InputError: an argument is out of range, or the data are not there.
    """
    from jepa_fast.engine.fallbacks import without_what_is_missing

    path = arguments.data.path
    data = train.DataArguments(path, batch_size)
    flags = train.Arguments(
        preset=arguments.preset, steps=steps, seed=seed, device=arguments.device, kernels=arguments.kernels, data=data
    )
    return without_what_is_missing(train.resolve(flags, cli.choose_device(arguments.device), path))


def environment_of(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Versions, device, commit and threads, without what is the machine's own business."""
    import torch

    from jepa_fast.engine.record import read_environment, write_environment

    write_environment(folder, torch.device(config.device))
    return read_environment(folder)


def weights_of(path: Path, name: str) -> Path:
    """Where the records in `path` keep the weights of the one called `name`: a folder per seed."""
    return path.parent / "weights" / name


def keep(record: Record, models: "list[Model | None]", path: Path, temporary: Path) -> None:
    """Add the record to `path` and, of a small model, the weights beside it; these are first written to `temporary`."""
    from jepa_fast.weights import save_weights

    if record.parameters <= MOST_KEPT:
        for result, model in zip(record.results, models, strict=True):
            if model is not None:
                save_weights(model, temporary / f"seed-{result['seed']}", {"preset": record.preset, **result})
    folder = weights_of(path, record.name)
    # Left by a process that was killed between these lines: no record has that name.
    shutil.rmtree(folder, ignore_errors=True)
    if temporary.exists():
        folder.parent.mkdir(exist_ok=True)
        temporary.rename(folder)
    record.append(path)


def verify(path: Path, name: str | None, data: Path | None) -> None:
    """Recompute records from their raw logs and, with `data`, probe their weights again; print what they say.

    Raises:
        InputError: no such file, or no record of that name in it.
        RunError: one is not what it claims to be.
    """
    records = [record for record in read_records(path) if name in (None, record.name)]
    what = "records of time-to-target runs" if name is None else f"a record called {name}"
    require(len(records) > 0, "--check", str(path), f"a file with {what}")
    wrong = []
    for record in records:
        found = problems(record)
        if data is not None and not found:
            found = rescored(record, weights_of(path, record.name), data)
        if found:
            wrong.append(f"{record.name}: {'; '.join(found)}")
        else:
            print(record.table())
            logger.info("%s: %s follows from its log", path, record.name)
    if wrong:
        raise RunError(f"{path}: {'; '.join(wrong)}")


def rescored(record: Record, weights: Path, data: Path) -> list[str]:
    """Seeds that met the target, but whose weights do not when probes of the log's seeds are trained again.

    Raises:
        InputError: the record keeps no weights, or the sets are not there.
    """
    from jepa_fast.probing.evaluation import score
    from jepa_fast.weights import load_weights

    steps = {result["seed"]: result["step"] for result in record.results if result["met"]}
    found = []
    for event in record.log:
        seed = event["seed"]
        if "scores" not in event or event["step"] != steps.get(seed):
            continue
        again = score(load_weights(weights / f"seed-{seed}"), data, list(record.thresholds), event["probe_seed"])
        scores = {name: {probe: getattr(one, probe) for probe in PROBES} for name, one in again.items()}
        logger.info(
            "seed %d, probe seed %d: in the log %s, again %s", seed, event["probe_seed"], event["scores"], scores
        )
        if not meets(scores, record.thresholds):
            found.append(f"seed {seed}: its weights score {scores} with probe seed {event['probe_seed']}")
    return found


if __name__ == "__main__":
    cli.run(main, Arguments, "Time to target: train until errors are low enough, against the clock.")
