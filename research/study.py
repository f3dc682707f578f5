"""Train and probe several presets over several seeds: `python -m research.study NAME`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.generate import generate
from jepa_fast.presets import canonical
from research.studies import Study, study

if TYPE_CHECKING:
    from research.runner import Job

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Run what a study still lacks, then draw its tables and plots. Started again, it resumes where it was stopped."""

    name: tyro.conf.Positional[str]
    """Study of research/studies.py: ideas, pareto, quick; a wrong name lists them all."""
    data: Path | None = None
    """Folder of packed splits. Default: the study's, generated if a run is missing and the folder is absent."""
    seeds: tuple[int, ...] | None = None
    """Default: the study's."""
    presets: tuple[str, ...] | None = None
    """Measure these alone. Default: the study's."""
    jobs: int = 1
    """Runs at once; from two on each has its share of the cores."""
    draw: bool = False
    """Run nothing, only draw what was measured."""
    out: Path = Path("runs/study")
    """Where run folders go: OUT/NAME/PRESET/seed-SEED."""
    records: Path = Path("research/records/study")
    """Where records go: RECORDS/NAME.jsonl, a line per finished run. Remove a line to measure that run again."""
    page: Path = Path("docs/results.md")
    """Page whose tables are drawn anew; plots go into the folder images beside it."""


def main(arguments: Arguments) -> None:
    """Say what is missing and measure it, unless only drawing was asked for; then draw."""
    # matplotlib and all: what is missing on this machine is found out before hours of training.
    from research import study_page
    from research.runner import Runner, load_records, missing_jobs

    chosen = study(arguments.name)
    if arguments.seeds is not None:
        chosen = replace(chosen, seeds=arguments.seeds)
    measured = chosen
    if arguments.presets is not None:
        names = tuple(map(canonical, arguments.presets))
        for name in names:
            require(name in chosen.presets, "--presets", name, f"some of {', '.join(chosen.presets)}")
        measured = replace(chosen, presets=names)
    require(arguments.jobs >= 1, "--jobs", arguments.jobs, "at least 1")
    path = arguments.records / f"{arguments.name}.jsonl"
    images = arguments.page.parent / "images"
    if not arguments.draw:
        missing = missing_jobs(measured, path)
        logger.info("%s", plan(arguments, measured, missing, path))
        if missing:
            data = arguments.data
            if data is None:
                data = Path(chosen.data)
                generate(data, trajectories=chosen.trajectories)
            Runner(measured, data, arguments.out / arguments.name, path, arguments.jobs).run()
    records = load_records(chosen, path)
    require(len(records) > 0, "--records", path, "a file with records of this study")
    shown = study_page.tables(chosen, records)
    print(shown)
    study_page.insert(arguments.page, arguments.name, shown)
    images.mkdir(parents=True, exist_ok=True)
    for picture in study_page.draw(chosen, records, images, arguments.name):
        logger.info("%s", picture)


def plan(arguments: Arguments, measured: Study, missing: "Sequence[Job]", path: Path) -> str:
    """What the command is about to do, in a few lines."""
    every = len(measured.presets) * len(measured.seeds)
    budget = f"{measured.steps} steps" if measured.steps is not None else "the recipe's steps"
    if measured.batch_size is not None:
        budget += f" of {measured.batch_size} trajectories"
    lines = [f"{arguments.name}: {len(measured.presets)} presets x {len(measured.seeds)} seeds, {budget} each"]
    lines.append(f"{every - len(missing)} of {every} runs are in {path}")
    if missing:
        by_preset: dict[str, list[str]] = {}
        for job in missing:
            by_preset.setdefault(job.preset, []).append(str(job.seed))
        left = ", ".join(f"{name} (seed {', '.join(seeds)})" for name, seeds in by_preset.items())
        lines.append(f"to run, {arguments.jobs} at a time: {left}")
        source = arguments.data or f"{measured.data}, which is generated where it is not there yet"
        lines.append(f"data: {source}; run folders: {arguments.out / arguments.name}")
    else:
        lines.append("nothing to run")
    lines.append(f"then tables go into {arguments.page} and plots into {arguments.page.parent / 'images'}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, Arguments, "Train and probe presets over seeds, and compare them.")
