"""The runs of a study: each trained and evaluated in processes of its own, at most once; stopped and resumed."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from jepa_fast.config import RunConfig, read_recipe, require
from jepa_fast.data.writing import write_text
from jepa_fast.engine.checkpoint import newest_step
from jepa_fast.engine.pace import StopSignal
from jepa_fast.errors import InputError, RunError
from jepa_fast.locking import Lock
from jepa_fast.platforms import available_cores
from jepa_fast.presets import canonical, preset
from jepa_fast.probing.results import BLOCKED, FREE
from jepa_fast.progress import duration
from jepa_fast.reading import MALFORMED, read_json
from jepa_fast.runs import CONFIG
from research import jsonl
from research.process import Command, Cost
from research.run_record import RunRecord, record_of
from research.studies import Study

logger = logging.getLogger(__name__)

PROBE_SEED = 1000  # plus the training seed: used for nothing else
ENDED_ITSELF = 1  # a RunError's exit status


@dataclass(frozen=True)
class Job:
    """One run: a preset and a seed."""

    preset: str
    seed: int

    def __str__(self) -> str:
        return f"{self.preset} seed {self.seed}"

    def folder(self, runs: Path) -> Path:
        """Its run folder."""
        return runs / self.preset / f"seed-{self.seed}"


def jobs_of(study: Study) -> Iterator[Job]:
    """All runs, the first seed of every preset before the second of any: stopped early, presets still compare."""
    return (Job(preset, seed) for seed in study.seeds for preset in study.presets)


def load_records(study: Study, path: Path) -> list[RunRecord]:
    """The study's records in `path`, in the order of `jobs_of`; what is there of other presets and seeds is left alone.

    Raises:
        InputError: one is damaged, there twice, or was measured on another budget than the study's or by another recipe
            than the preset is now.
    """
    found: dict[Job, RunRecord] = {}
    wanted = list(jobs_of(study))
    for number, fields in enumerate(jsonl.read(path), 1):
        where = f"{path}, line {number}"
        name = fields.get("preset")
        job = Job(canonical(name) if isinstance(name, str) else "", fields.get("seed", -1))
        if job in wanted:
            require(job not in found, where, str(job), "one record of each run; remove one of the lines")
            found[job] = RunRecord.parse(fields, where)
            _require_of_study(study, found[job], where)
    return [found[job] for job in wanted if job in found]


def missing_jobs(study: Study, path: Path) -> list[Job]:
    """The runs of `study` that have no record in `path` yet. Raises what `load_records` does."""
    done = {Job(record.preset, record.seed) for record in load_records(study, path)}
    return [job for job in jobs_of(study) if job not in done]


def _require_of_study(study: Study, record: RunRecord, where: str) -> None:
    for key, expected in (("steps", study.steps), ("batch_size", study.batch_size)):
        value = record.config[key]
        require(
            expected in (None, value),
            f"{where}: {key}",
            value,
            f"the study's {expected}; remove the line or measure anew",
        )
    try:
        recipe = read_recipe(record.config["recipe"])
    except (KeyError, TypeError, InputError):  # of another version: its fields or their values are not today's
        recipe = None
    if recipe != preset(record.preset):
        raise InputError(f"{where}: its recipe is not what {record.preset} is now; remove the line or measure anew")


class Runner:
    """Measures what a study lacks, `jobs` runs at a time."""

    def __init__(self, study: Study, data: Path, runs: Path, records: Path, jobs: int) -> None:
        """`data` holds packed splits; `runs` gets a folder per preset and seed, `records` a line per finished run."""
        self._study, self._data, self._runs, self._records, self._jobs = study, data, runs, records, jobs
        self._threads = None if jobs == 1 else max(1, available_cores() // jobs)
        # Commands at work, by run; none is added once the study stops.
        self._at_work: dict[Job, Command] = {}
        self._stopping = False
        self._guard = threading.Lock()
        self._lock_descriptor = -1

    def run(self) -> None:
        """Measure every run that has no record yet. A run that fails by itself has one that says so.

        Raises:
            InputError: another process measures into the same folder, or a record is not of this study.
            RunError: some runs could be neither finished nor recorded as failed.
            SystemExit: a stop signal, after runs at work have saved.
        """
        if not missing_jobs(self._study, self._records):
            return
        self._runs.mkdir(parents=True, exist_ok=True)
        # Runs hold the lock as well: a study killed alone leaves them at work.
        with Lock(self._runs) as lock:
            self._lock_descriptor = lock.descriptor
            self._run_all()

    def _run_all(self) -> None:
        # Again: whoever held the lock before may have measured some of them.
        missing = missing_jobs(self._study, self._records)
        every = len(self._study.presets) * len(self._study.seeds)
        unfinished: list[str] = []
        started, done = time.monotonic(), 0
        with StopSignal() as stop, ThreadPoolExecutor(self._jobs) as pool:
            futures = {pool.submit(self._measure, job): job for job in missing}
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                if stop.received and not self._stopping:
                    self._stop()
                for future in finished:
                    job, error = futures[future], future.exception()
                    if isinstance(error, (RunError, InputError)):
                        if not self._stopping:
                            logger.info("%s: %s", job, error)
                            unfinished.append(str(job))
                        continue
                    done += 1
                    left_s = (time.monotonic() - started) / done * (len(missing) - done)
                    progress = f"{every - len(missing) + done} of {every} runs, {duration(left_s)} left"
                    logger.info("%s: %s; %s", job, describe(future.result()), progress)
        if stop.received:
            logger.info("%s: stopped; start it again to go on", stop.received.name)
            raise SystemExit(128 + stop.received)
        if unfinished:
            raise RunError(f"not finished, and tried again at the next start: {', '.join(unfinished)}")

    def _stop(self) -> None:
        """Ask what is at work to save and end, and let nothing else begin."""
        with self._guard:
            self._stopping = True
            commands = list(self._at_work.values())
        logger.info("stopping: %d runs save", len(commands))
        for command in commands:
            command.stop()

    def _measure(self, job: Job) -> RunRecord:
        """Train and evaluate one run and keep its record.

        Raises:
            RunError: it was stopped, or ended in a way that says nothing about the preset.
        """
        if self._stopping:
            raise RunError("stopped")
        folder, log = job.folder(self._runs), job.folder(self._runs).with_suffix(".log")
        costs = folder.with_suffix(".costs.json")
        newest = newest_step(folder)
        if newest is None and folder.exists():
            # Killed before its first checkpoint: nothing to go on with.
            shutil.rmtree(folder)
        if newest is None:
            costs.unlink(missing_ok=True)
            log.unlink(missing_ok=True)
        failure = None
        if newest is None or newest < RunConfig.load(folder / CONFIG).steps:
            log.parent.mkdir(parents=True, exist_ok=True)
            failure = self._train(job, folder, newest is not None, log, costs)
        if failure is None:
            # The untrained floor is half of an evaluation: once, of what the others are compared with.
            first = job == next(jobs_of(self._study))
            flags = ["--seed", str(PROBE_SEED + job.seed), "--floor" if first else "--no-floor"]
            self._require_done(
                job, self._command(job, log, "jepa_fast.evaluate", folder, "--data", self._data, *flags), log
            )
        record = record_of(folder, _total(costs), PROBE_SEED + job.seed, failure)
        record.append(self._records)
        return record

    def _train(self, job: Job, folder: Path, resume: bool, log: Path, costs: Path) -> str | None:
        """Train to the end; gives why the run failed, None where it did not."""
        flags: list[str | Path] = ["--preset", job.preset, "--seed", str(job.seed), "--data", self._data]
        if self._study.steps is not None:
            flags += ["--steps", str(self._study.steps)]
        if self._study.batch_size is not None:
            flags += ["--data.batch-size", str(self._study.batch_size)]
        known = _costs(costs) if costs.exists() else []
        # What a killed process has cost stays unknown.
        write_text(costs, json.dumps({"costs": [*known, None]}))
        cost = self._command(job, log, "jepa_fast.train", *flags, "--resume" if resume else "--out", folder)
        write_text(costs, json.dumps({"costs": [*known, cost]}))
        failure = _error(log)
        if cost.status == ENDED_ITSELF and failure is not None:
            return failure
        self._require_done(job, cost, log)
        return None

    def _command(self, job: Job, log: Path, module: str, *flags: str | Path) -> Cost:
        with self._guard:
            if self._stopping:
                raise RunError("stopped")
            command = Command(module, *flags, log=log, threads=self._threads, keep_open=(self._lock_descriptor,))
            self._at_work[job] = command
        try:
            return command.wait()
        finally:
            del self._at_work[job]

    def _require_done(self, job: Job, cost: Cost, log: Path) -> None:
        if cost.status != 0:
            raise RunError(f"{_error(log) or f'ended with status {cost.status}'}; {log} tells more")


def describe(record: RunRecord) -> str:
    """A finished run in a few words."""
    if record.failure is not None:
        return f"failed, {record.failure}"
    errors = {name: record.probe_sets[name].trained.converged for name in (FREE, BLOCKED) if name in record.probe_sets}
    parts = [f"{name} {error:.3f} px²" for name, error in errors.items()]
    if record.collapse is not None and record.collapse.collapsed:
        parts.append("latents have collapsed")
    if record.train_wall_s is not None:
        parts.append(f"trained in {duration(record.train_wall_s)}")
    return ", ".join(parts)


def _costs(path: Path) -> list[Cost | None]:
    """What each training process of a run has cost; None for one that was killed before it could be measured.

    Raises:
        InputError: the file does not say.
    """
    found = read_json(path, "the costs of a run's processes", remedy="; remove it, and the run's cost stays unknown")
    try:
        return [None if one is None else Cost(int(one[0]), float(one[1]), float(one[2])) for one in found["costs"]]
    except MALFORMED as error:
        raise InputError(f"{path}: not the costs of a run's processes ({error!r})") from error


def _total(costs: Path) -> Cost | None:
    """What all training processes of a run have cost together; None where one's cost is unknown."""
    each = _costs(costs)
    known = [one for one in each if one is not None]
    if len(known) < len(each):
        return None
    return Cost(0, sum(one.wall_s for one in known), sum(one.cpu_s for one in known))


def _error(log: Path) -> str | None:
    """What the last command in `log` failed with, without the files that it names; None where it said nothing."""
    lines = log.read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ").split("; ")[0] if last.startswith("error: ") else None
