"""Train to a fixed quality against the clock: `python -m jepa_fast.speedrun --rung r1`; `--check` verifies a record."""

import logging
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jepa_fast import cli, train
from jepa_fast.config import Kernels, RunConfig, require
from jepa_fast.errors import InputError, RunError
from jepa_fast.racing.records import Record, problems
from jepa_fast.racing.rungs import CHECKS, PROBES, meets, results_of, schedule, summary_of, thresholds_of

if TYPE_CHECKING:
    from jepa_fast.models.model import Model

logger = logging.getLogger(__name__)

DEFAULT_OUT = Path("records/speedrun")
# Steps and trajectories a step that were found to do, by preset and rung (docs/speedrun.md tells how); other presets
# are asked for --steps.
COURSES: dict[str, dict[str, tuple[int, int]]] = {
    "features20k": {"r1": (45, 16), "r2": (200, 16), "r3": (330, 16), "r4": (4592, 128)},
}
# A record keeps the weights of a model with at most so many parameters.
MOST_KEPT = 100_000


@dataclass(frozen=True)
class DataArguments:
    """Where trajectories and probe sets come from."""

    path: Path = Path("data/full")
    """Folder of packed splits, as jepa_fast.generate makes it."""
    batch_size: int | None = None
    """Trajectories per step. Default: what was found to do for this rung and preset; with --steps, the recipe's."""


@dataclass(frozen=True)
class Arguments:
    """Train to a rung's thresholds, once for each seed, and keep the record; or check one."""

    rung: Literal["r1", "r2", "r3", "r4"] | None = None
    """How far to come: the largest errors are in docs/speedrun.md."""
    preset: str = "features20k"
    """Named recipe."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the trainings, one after the other. All count."""
    steps: int | None = None
    """Steps of a run, fixed beforehand. Default: what was found to do for this rung and preset."""
    checks: int = CHECKS
    """How often a run is probed, evenly spread over its steps."""
    out: Path | None = None
    """Folder of the record, to be created. Default: records/speedrun/<rung>-<preset>."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    kernels: Literal["auto", Kernels] = "auto"
    """As in jepa_fast.train."""
    data: DataArguments = field(default_factory=DataArguments)
    check: Path | None = None
    """A record to verify from its raw log, in place of a run."""
    rescore: bool = False
    """With --check: also probe the weights that the record keeps, on the sets in --data.path."""


def main(arguments: Arguments) -> None:
    """Race or check."""
    if (arguments.rung is None) == (arguments.check is None):
        given = "neither" if arguments.rung is None else "both"
        raise InputError(f"--rung, --check: got {given}, expected one of them")
    if arguments.check is not None:
        verify(arguments.check, arguments.data.path if arguments.rescore else None)
    else:
        run(arguments)


def run(arguments: Arguments) -> None:
    """Race every seed and write the record.

    Raises:
        InputError: an argument is out of range, or the record's folder is there already.
    """
    from jepa_fast.models.registry import build_model
    from jepa_fast.racing.race import WARM_UP_STEPS, race, warm_up

    assert arguments.rung is not None
    out = arguments.out or DEFAULT_OUT / f"{arguments.rung}-{arguments.preset}"
    require(not out.exists(), "--out", str(out), "a folder that is not there yet")
    require(0 < len(arguments.seeds) == len(set(arguments.seeds)), "--seeds", arguments.seeds, "different seeds")
    steps, batch_size = course(arguments)
    checks, thresholds = schedule(steps, arguments.checks), thresholds_of(arguments.rung)
    configs = [resolve(arguments, steps, batch_size, seed) for seed in arguments.seeds]
    first = configs[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there when it is whole: an interrupted race leaves nothing.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        environment = environment_of(first, Path(folder))
        warm_up(first)
        outcomes = [race(one, Path(folder) / f"run-{one.seed}", checks, thresholds) for one in configs]
        log = [event for outcome in outcomes for event in outcome.log]
        results = results_of(log, list(arguments.seeds))
        parameters = sum(parameter.numel() for parameter in build_model(first.recipe.model).parameters())
        record = Record(
            rung=arguments.rung,
            thresholds=thresholds,
            preset=arguments.preset,
            config={name: value for name, value in asdict(first).items() if name not in ("seed", "data")},
            parameters=parameters,
            seeds=list(arguments.seeds),
            checks=checks,
            warm_up_steps=WARM_UP_STEPS,
            environment=environment,
            results=results,
            summary=summary_of(results),
            log=log,
        )
        keep(record, [outcome.model for outcome in outcomes], Path(folder) / "record")
        (Path(folder) / "record").rename(out)
    print(record.table())
    logger.info("%s", out)


def course(arguments: Arguments) -> tuple[int, int | None]:
    """Steps of a run and trajectories a step, None for the recipe's: those asked for, or what was found to do.

    Raises:
        InputError: --steps is not given, and nothing is known of this rung with this preset.
    """
    if arguments.steps is not None:
        return arguments.steps, arguments.data.batch_size
    known = COURSES.get(arguments.preset, {}).get(arguments.rung or "")
    if known is None:
        raise InputError(f"--steps: not given, and none is known for {arguments.rung} with {arguments.preset}")
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


def keep(record: Record, models: "list[Model | None]", folder: Path) -> None:
    """Write the record into a new folder, and the weights of a small model, seed by seed."""
    from jepa_fast.weights import save_weights

    folder.mkdir()
    record.save(folder)
    if record.parameters <= MOST_KEPT:
        for result, model in zip(record.results, models, strict=True):
            if model is not None:
                save_weights(model, folder / f"seed-{result['seed']}", {"preset": record.preset, **result})


def verify(folder: Path, data: Path | None) -> None:
    """Recompute a record from its raw log and, with `data`, probe its weights again; print what it says.

    Raises:
        RunError: it is not what it claims to be.
    """
    record = Record.load(folder)
    found = problems(record)
    if data is not None and not found:
        found = rescored(record, folder, data)
    if found:
        raise RunError(f"{folder}: {'; '.join(found)}")
    print(record.table())
    logger.info("%s: the record follows from its log", folder)


def rescored(record: Record, folder: Path, data: Path) -> list[str]:
    """Seeds that met the rung, but whose weights do not when probes of the log's seeds are trained again.

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
        again = score(load_weights(folder / f"seed-{seed}"), data, list(record.thresholds), event["probe_seed"])
        scores = {name: {probe: getattr(one, probe) for probe in PROBES} for name, one in again.items()}
        logger.info(
            "seed %d, probe seed %d: in the log %s, again %s", seed, event["probe_seed"], event["scores"], scores
        )
        if not meets(scores, record.thresholds):
            found.append(f"seed {seed}: its weights score {scores} with probe seed {event['probe_seed']}")
    return found


if __name__ == "__main__":
    cli.run(main, Arguments, "Train to a fixed quality against the clock.")
