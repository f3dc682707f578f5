"""Records of races: a folder with record.json, the raw log in log.jsonl and, of small models, the weights that met it.

`problems` recomputes everything that record.json claims from the raw log. No torch import.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jepa_fast.errors import InputError
from jepa_fast.racing.rungs import PROBES, RUNGS, meets, results_of, schedule, summary_of, thresholds_of

RECORD, LOG = "record.json", "log.jsonl"

Event = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What a race was and what came of it.

    Attributes:
        rung: name of the rung.
        thresholds: largest errors in pixels^2, by validation split, under both probes.
        preset: name of the recipe.
        config: of the runs, without seed and data folder.
        parameters: of the model.
        seeds: all that were run, in order.
        checks: steps after which the world was probed.
        warm_up_steps: on dummy data, before the first seed's clock starts.
        environment: versions, device, threads.
        results: seed by seed, as `results_of` gives them.
        summary: over all seeds, as `summary_of` gives it.
        log: every event, as `race` gives them.
    """

    rung: str
    thresholds: dict[str, float]
    preset: str
    config: dict[str, Any]
    parameters: int
    seeds: list[int]
    checks: list[int]
    warm_up_steps: int
    environment: dict[str, Any]
    results: list[dict[str, Any]]
    summary: dict[str, Any]
    log: list[Event]

    def save(self, folder: Path) -> None:
        """Write record.json, one field a line, and log.jsonl, one event a line, into `folder`, which is there."""
        fields = {name: value for name, value in vars(self).items() if name != "log"}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
        (folder / RECORD).write_text("{\n" + ",\n".join(lines) + "\n}\n")
        (folder / LOG).write_text("".join(json.dumps(event) + "\n" for event in self.log))

    def table(self) -> str:
        """Seconds and last errors of every seed, for people."""
        head = f"{self.rung} with {self.preset}: {self.summary['met']} of {self.summary['seeds']} seeds"
        if (mean := self.summary["mean_clock_s"]) is not None:
            head += f", mean {mean:.2f} s, {self.summary['mean_processor_s']:.2f} s of processor"
        lines = [head, f"{'seed':>6}{'step':>8}{'clock s':>10}{'processor s':>13}  largest error of the two probes"]
        for result in self.results:
            times = f"{result['seed']:>6}{result['step']:>8}{result['clock_s']:>10.2f}{result['processor_s']:>13.2f}"
            told = [event for event in self.log if event["seed"] == result["seed"] and "scores" in event]
            errors = [f"{name.split('/')[0]} {max(one.values()):.3f}" for name, one in told[-1]["scores"].items()]
            lines.append(f"{times}  {', '.join(errors)}{'' if result['met'] else '  NOT MET'}")
        return "\n".join(lines)

    @staticmethod
    def load(folder: Path) -> "Record":
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or is not of a record.
        """
        for name in (RECORD, LOG):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: has no {name}; expected a record's folder")
        try:
            log = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
            return Record(**json.loads((folder / RECORD).read_text()), log=log)
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{folder}: not a record ({error})") from error


def problems(record: Record) -> list[str]:
    """What is wrong with a record, nothing if its claims follow from its raw log."""
    try:
        found = _claims(record)
        for seed in record.seeds:
            events = [event for event in record.log if event["seed"] == seed]
            found += [f"seed {seed}: {problem}" for problem in _race(record, events)]
        # Of a log that is not in order the results mean nothing.
        return found or _results(record)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        return [f"a field is missing or of another kind: {type(error).__name__} {error}"]


def _claims(record: Record) -> list[str]:
    found = []
    if record.rung not in RUNGS:
        return [f"rung: got {record.rung!r}, expected one of {', '.join(RUNGS)}"]
    if record.thresholds != thresholds_of(record.rung):
        found.append(f"thresholds: got {record.thresholds}, those of {record.rung} are {thresholds_of(record.rung)}")
    expected = schedule(record.config["steps"], len(record.checks))
    if record.checks != expected:
        found.append(f"checks: got {record.checks}, expected {expected} for {record.config['steps']} steps")
    if not record.seeds or len(set(record.seeds)) != len(record.seeds):
        found.append(f"seeds: got {record.seeds}, expected different ones")
    strangers = {event["seed"] for event in record.log} - set(record.seeds)
    if strangers:
        found.append(f"seeds: the log has {sorted(strangers)}, which the record does not count")
    return found


def _race(record: Record, events: list[Event]) -> list[str]:
    """What is wrong with one seed's events."""
    kinds = ("check", "confirmation", "failure")
    told = [event for event in events if event["event"] in kinds]
    checks = [event for event in told if event["event"] == "check"]
    found = []
    steps = [check["step"] for check in checks]
    if steps != record.checks[: len(steps)]:
        found.append(f"checks at steps {steps}, scheduled were {record.checks}")
    for event in told:
        if event["event"] != "failure":
            found += _scores(record, event)
    for before, after in pairwise(told):
        # The clock stands while the world is probed.
        same = after["event"] == "confirmation"
        for name in ("clock_s", "processor_s"):
            if not (after[name] == before[name] if same else after[name] > before[name]):
                found.append(f"{name}: {before[name]} at step {before['step']}, then {after[name]} at {after['step']}")
    found += [f"{name}: got {told[0][name]} at first" for name in ("clock_s", "processor_s") if not told[0][name] > 0]
    found += _order(record, told)
    readings = [event["step"] for event in events if event["event"] == "reading"]
    ended = told[-1]["step"]
    if readings != sorted(set(readings)) or (told[-1]["event"] != "failure" and max(readings, default=0) > ended):
        found.append(f"readings: at steps {readings}, expected ascending ones up to {ended}")
    return found


def _scores(record: Record, event: Event) -> list[str]:
    where = f"{event['event']} at step {event['step']}"
    if list(event["scores"]) != list(record.thresholds):
        return [f"{where}: sets {list(event['scores'])}, expected {list(record.thresholds)}"]
    for name, one in event["scores"].items():
        if list(one) != list(PROBES) or not all(math.isfinite(value) and value >= 0 for value in one.values()):
            return [f"{where}: {name}: got {one}, expected an error for each of {', '.join(PROBES)}"]
    if event["met"] != meets(event["scores"], record.thresholds):
        return [f"{where}: said to be {'met' if event['met'] else 'not met'}, the scores say otherwise"]
    return []


def _order(record: Record, told: list[Event]) -> list[str]:
    """Checks that are met are confirmed by probes of another seed; the first one borne out, or the last, ends it."""
    found = []
    for number, event in enumerate(told):
        before, after = told[number - 1] if number else None, told[number + 1] if number + 1 < len(told) else None
        where, confirms = f"step {event['step']}", after is not None and after["event"] == "confirmation"
        if event["event"] == "check" and event["met"] != confirms:
            found.append(f"{where}: a check that was {'met has no' if event['met'] else 'not met has a'} confirmation")
        if event["event"] == "confirmation":
            if before is None or before["event"] != "check" or before["step"] != event["step"]:
                found.append(f"{where}: a confirmation without its check")
            if event["probe_seed"] in {one["probe_seed"] for one in told if one["event"] == "check"}:
                found.append(f"{where}: confirmed with probe seed {event['probe_seed']}, which a check has used")
        # Borne out or broken down, it ends.
        over = event["event"] == "failure" or (event["event"] == "confirmation" and event["met"])
        if over and after is not None:
            found.append(f"{where}: {event['event']}, but the run goes on")
        if not over and after is None and event["step"] != record.checks[-1]:
            found.append(f"{where}: the log ends, though checks were left")
    return found


def _results(record: Record) -> list[str]:
    found = []
    results = results_of(record.log, record.seeds)
    for claimed, result in zip(record.results, results, strict=False):
        if claimed != result:
            found.append(f"results: got {claimed}, the log gives {result}")
    if len(record.results) != len(results):
        found.append(f"results: got {len(record.results)}, expected one for each of {len(results)} seeds")
    summary = summary_of(results)
    if record.summary != summary:
        found.append(f"summary: got {record.summary}, the log gives {summary}")
    return found
