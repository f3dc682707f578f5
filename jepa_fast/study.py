"""Train and probe several presets over several seeds: `python -m jepa_fast.study NAME`."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.generate import generate
from jepa_fast.studies import study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Run what a study still lacks, then draw its tables and plots. Started again, it goes on where it was stopped."""

    name: tyro.conf.Positional[str]
    """Study of jepa_fast/studies.py: ideas, pareto, quick; a wrong name lists them all."""
    data: Path | None = None
    """Folder of packed splits. Default: the study's, generated if absent."""
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
    records: Path = Path("records/study")
    """Where records go, one small JSON file a run: RECORDS/NAME/PRESET-seed-SEED.json. Delete one to measure again."""
    page: Path = Path("docs/study.md")
    """Page whose tables are drawn anew; plots go into the folder images beside it."""


def main(arguments: Arguments) -> None:
    """Measure what is missing, unless only drawing was asked for; then draw."""
    # Plots too: what is missing for them is found out before hours of training.
    from jepa_fast.studying import plots, tables
    from jepa_fast.studying.runner import Runner, load_records

    chosen = study(arguments.name)
    if arguments.seeds is not None:
        chosen = replace(chosen, seeds=arguments.seeds)
    measured = chosen
    if arguments.presets is not None:
        for name in arguments.presets:
            require(name in chosen.presets, "--presets", name, f"some of {', '.join(chosen.presets)}")
        measured = replace(chosen, presets=arguments.presets)
    require(arguments.jobs >= 1, "--jobs", arguments.jobs, "at least 1")
    folder = arguments.records / arguments.name
    if not arguments.draw:
        data = arguments.data
        if data is None:
            data = Path(chosen.data)
            logger.info("no --data: using %s", data)
            generate(data, trajectories=chosen.trajectories)
        Runner(measured, data, arguments.out / arguments.name, folder, arguments.jobs).run()
    records = load_records(chosen, folder)
    require(len(records) > 0, "--draw", folder, "a folder with records of this study")
    shown = tables.tables(chosen, records)
    print(shown)
    tables.insert(arguments.page, arguments.name, shown)
    images = arguments.page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for path in plots.draw(chosen, records, images, arguments.name):
        logger.info("%s", path)


if __name__ == "__main__":
    cli.run(main, Arguments, "Train and probe presets over seeds, and compare them.")
