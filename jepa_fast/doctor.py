"""Look at this machine before a run does: `python -m jepa_fast.doctor`."""

from dataclasses import dataclass
from pathlib import Path

from jepa_fast import cli
from jepa_fast.errors import RunError


@dataclass(frozen=True)
class Arguments:
    """Print versions, devices, what each op runs on, the data folder and its disk, and what is wrong with a remedy.

    Exit status 1 if something is wrong.
    """

    data: Path = Path("data/two_rooms")
    """Folder of packed splits."""


def main(arguments: Arguments) -> None:
    """Print all findings, then the problems.

    Raises:
        RunError: there are problems.
    """
    from jepa_fast.diagnosis import diagnose

    findings = diagnose(arguments.data)
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        mark = " " if finding.problem is None else "!"
        print(f"{mark} {finding.topic:<{width}}  {finding.found}")
        if finding.problem is not None:
            print(f"  {'':<{width}}  problem: {finding.problem}\n  {'':<{width}}  remedy:  {finding.remedy}")
    problems = sum(finding.problem is not None for finding in findings)
    if problems:
        raise RunError(f"{problems} {'problem' if problems == 1 else 'problems'} found, each with a remedy above")
    print("Nothing is wrong.")


if __name__ == "__main__":
    cli.run(main, Arguments, "Look at this machine and its data, and say what is wrong.")
