"""The training loop: batches through the step, metrics and checkpoints out, clean stops in between."""

import contextlib
import logging
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from jepa_fast.config import LoopOptions, RunConfig
from jepa_fast.data.host import group_bases
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import Position, Sampler
from jepa_fast.data.shards import Split, open_training
from jepa_fast.engine.checkpoint import load_checkpoint, newest_step, save_checkpoint
from jepa_fast.engine.distributed import ALONE, Ranks
from jepa_fast.engine.guards import CollapseWatch, finite_metrics, try_out
from jepa_fast.engine.pace import Pace, StopSignal
from jepa_fast.engine.profiling import Profiler
from jepa_fast.engine.progress import Journal, metrics_of
from jepa_fast.engine.step import Trainer
from jepa_fast.errors import InputError, RunError
from jepa_fast.locking import Lock
from jepa_fast.models.model import Model
from jepa_fast.platforms import keep_freed_memory

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    folder: Path,
    options: LoopOptions | None = None,
    ranks: Ranks = ALONE,
    model: Model | None = None,
    begin: Callable[[], object] | None = None,
) -> int:
    """Train in run folder `folder` until `config.steps` or a stop signal; returns the steps done.

    The folder is locked, and made if need be, once all that can be checked has been.

    Args:
        config: of the run; as stored in the folder, where it is resumed.
        folder: of the run.
        options: how the run is watched and kept.
        ranks: the processes that share it.
        model: what is trained, its weights and its objective included; by default built from the configuration.
        begin: called in the process that leads, once the folder is there and locked: what is to be written first.

    Raises:
        InputError: the data or the checkpoint do not fit the configuration, another process trains in the folder, or it
            cannot be written.
        RunError: a loss that is not finite, latents that collapsed, a disk that takes no more.
    """
    done = config.steps
    with contextlib.closing(training(config, folder, options or LoopOptions(), ranks, model, begin)) as steps:
        for progress in steps:
            done = progress.done
    return done


class Progress(NamedTuple):
    """Where a run stands after a step; the model is the one that goes on being trained."""

    done: int  # steps
    model: Model


def training(
    config: RunConfig,
    folder: Path,
    options: LoopOptions,
    ranks: Ranks = ALONE,
    model: Model | None = None,
    begin: Callable[[], object] | None = None,
) -> "Training":
    """The loop, a step at a time: gives the run's progress after each. Arguments and errors as in `train`."""
    opened = contextlib.ExitStack()
    return Training(_training(config, folder, options, ranks, model, begin, opened), opened)


class Training(Iterator[Progress]):
    """The steps of a run; ends itself after the last one and after an error, otherwise it has to be closed.

    What it opened waits for threads and the device when it is closed. A generator would do so wherever the garbage
    collector finds it abandoned, under any lock; here nothing but `close` does.
    """

    def __init__(self, steps: Generator[Progress], opened: contextlib.ExitStack) -> None:
        self._steps, self._opened = steps, opened

    def __next__(self) -> Progress:
        try:
            return next(self._steps)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End loader, files and profiler, and put the signals' handlers back."""
        self._steps.close()
        self._opened.close()


def _training(
    config: RunConfig,
    folder: Path,
    options: LoopOptions,
    ranks: Ranks,
    model: Model | None,
    begin: Callable[[], object] | None,
    opened: contextlib.ExitStack,
) -> Generator[Progress]:
    if config.device == "cpu":
        keep_freed_memory()
    split = open_training(Path(config.data), config.frames, config.frame_skip)
    sampler = Sampler(split.count, config.batch_size // ranks.count, config.seed, ranks.count, ranks.rank)
    profiler = Profiler(options.profile if ranks.leads else "off", options.profile_window, folder)
    bases = group_bases(split, torch.device(config.device))
    trainer = Trainer(config, split.spec, bases, ranks, profiler.span, model)
    trainer.model.inputs = split.spec.inputs()
    watch = CollapseWatch(trainer.forward, split, options.on_collapse)
    loader = open_loader(config.loader, split, trainer.device)
    try_out(trainer, split)
    lock = Lock(folder)
    ranks.share(lambda: _claim(folder, lock, "--resume" if options.resume else "--out", begin, opened))
    first = done = _restore(trainer, sampler, split, folder) if options.resume else 0
    with _full_disks(folder):
        journal = Journal(folder, done, trainer, ranks.leads)
        batches = loader.batches(sampler.steps(done, config.steps))
        for closed in (journal, batches, profiler):
            opened.enter_context(contextlib.closing(closed))
        stop = opened.enter_context(StopSignal())
        pace = Pace(config, options, ranks, stop)
        while done < config.steps:
            profiler.between(done - first)
            with profiler.span("data"):
                batch = next(batches)
            if done == first:
                logger.info("%s", split.explain())
                logger.info("%s", trainer.forward.encode.explain(batch))
                if config.compile:
                    logger.info("compiling: the first steps take longer, and no timing counts them")
            result = trainer.step(batch)
            done += 1
            journal.tick(done)
            due = pace.after(done)
            # Read before saving too: a step gone wrong must not become a checkpoint.
            if due.log or due.save:
                metrics = finite_metrics(trainer, result, sampler, split, folder, ranks)
            if due.log:
                where = {"epoch": done / sampler.batches_per_epoch, "learning_rate": trainer.learning_rate(done - 1)}
                where["stage"] = trainer.stage(done - 1) + 1
                journal.tell(metrics_of(done, metrics, result.latents) | where)
            collapse = None
            if due.look:
                journal.tell_spectrum(done, spectrum := watch.look())
                collapse = watch.judge(done, spectrum)
            if (due.save or collapse) and ranks.leads:
                lock.require_held()
                position = Position.of(sampler, split.fingerprint, *divmod(done, sampler.batches_per_epoch))
                save_checkpoint(folder, done, {"position": position.to_json(), **trainer.state()})
            yield Progress(done, trainer.model)
            if collapse:
                raise ranks.ending(f"{collapse}; saved, go on with --resume {folder}")
            if due.end and done < config.steps:
                number = stop.received or signal.SIGTERM
                logger.info("%s: saved at step %d; go on with --resume %s", number.name, done, folder)
                raise SystemExit(128 + number)


def _claim(
    folder: Path, lock: Lock, flag: str, begin: Callable[[], object] | None, opened: contextlib.ExitStack
) -> bool:
    """Make and lock the run's folder and write what `begin` writes; `opened` holds the lock. Gives True."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened.enter_context(lock)
        if begin is not None:
            begin()
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be written ({error.strerror})") from error
    return True


def _restore(trainer: Trainer, sampler: Sampler, split: Split, folder: Path) -> int:
    """Load the newest checkpoint into `trainer` and return the steps it has done: 0, if there is none yet."""
    if newest_step(folder) is None:
        logger.info("%s: was stopped before its first checkpoint; begins at step 0", folder)
        return 0
    state = load_checkpoint(folder)
    try:
        done: int = state["step"]
        Position.from_json(state["position"]).check(sampler, split.fingerprint)
        trainer.restore(state)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: its checkpoint is not of the model in its config.json ({error})") from error
    return done


@contextlib.contextmanager
def _full_disks(folder: Path) -> Generator[None]:
    """Turn an OSError inside, where all files were open a moment ago, into a RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunError(
            f"{where}{error.strerror or error}; earlier checkpoints are untouched, go on with --resume {folder}"
        ) from error
