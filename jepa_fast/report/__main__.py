"""Show what a run has become: `python -m jepa_fast.report RUN`, or several runs compared."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.errors import printable
from jepa_fast.locking import output


@dataclass(frozen=True)
class Arguments:
    """Write one HTML page with figures and words, which opens anywhere without a network."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders: one to report on, several to compare."""
    out: Path | None = None
    """File to write. Default: report.html in the run folder, comparison.html beside the first of several."""


def main(arguments: Arguments) -> None:
    """Write the page and print its path."""
    from jepa_fast.data.writing import write_text
    from jepa_fast.report.report import comparison, report
    from jepa_fast.report.run import read_run

    require(len(arguments.runs) > 0, "RUN", "none", "at least one run folder")
    runs = [read_run(folder) for folder in arguments.runs]
    default = arguments.runs[0] / "report.html"
    if len(runs) > 1:
        default = arguments.runs[0].resolve().parent / "comparison.html"
    path = arguments.out or default
    with output(path):
        # Names of files may hold what is no character: it is shown as a question mark.
        page = (report(runs[0]) if len(runs) == 1 else comparison(runs)).encode(errors="replace").decode()
        write_text(path, page)
    print(printable(str(path)))


if __name__ == "__main__":
    cli.run(main, Arguments, "Report on a run, or compare several.")
