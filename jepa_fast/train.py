"""Train a model: `python -m jepa_fast.train`. Flags become a RunConfig; the engine does the rest.

Every field of a preset's recipe is a flag: `--model.dim 64 --optimizer.learning-rate 1e-3 --stages.0.epochs 2`.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jepa_fast import cli
from jepa_fast.config import (
    Kernels,
    LoopOptions,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Recipe,
    RunConfig,
    Stage,
    require,
)
from jepa_fast.data.shards import Split, open_training
from jepa_fast.errors import InputError
from jepa_fast.generate import generate
from jepa_fast.presets import DEFAULT_PRESET, canonical, preset

if TYPE_CHECKING:
    import torch

    from jepa_fast.models.model import Model

logger = logging.getLogger(__name__)

# Of the time of a forward pass.
FORWARD_AND_BACKWARD = 3
# Seconds of a step.
WORTH_SAYING = 2.0
DEFAULT_DATA = Path("data/two_rooms")
DEFAULT_TRAJECTORIES = 12_800
CONFIG = "config.json"
# What stands in place of a preset's name in a run whose model was made in Python.
CUSTOM = "custom"


@dataclass(frozen=True)
class DataArguments:
    """Where trajectories come from, and how they reach the device."""

    path: cli.DataFolder = None
    """Packed split, or folder of splits with one called train. Default: data/two_rooms, generated there if absent."""
    batch_size: cli.Chosen[int] = None
    """Trajectories per step, over all processes. Default: the preset's."""
    flips: cli.Chosen[bool] = None
    """Mirror each trajectory at random along either axis. Default: as the preset."""
    loader: cli.Chosen[Literal["auto", "resident", "dali", "host"]] = None
    """What loads them: the same bits at another speed. Default: auto, which the log explains."""
    frames: cli.Chosen[int] = None
    """Train on clips of so many frames, from any frame on. Default: whole trajectories, or 16 where lengths differ."""
    frame_skip: cli.Chosen[int] = None
    """Frames from one frame of a clip to its next; the actions between are concatenated. Default: 1."""
    verify: bool = False
    """Hash every shard of the training split before starting."""


@dataclass(frozen=True)
class EncoderArguments:
    """How frames are encoded."""

    sparse: cli.Chosen[bool] = None
    """Skip what cannot differ: same function, same gradients, a fraction of the work. Default: on."""


@dataclass(frozen=True)
class Arguments:
    """Settings of a run. What is None is the preset's, or chosen for this machine; with `resume`, the stored run's."""

    preset: cli.Chosen[str] = None
    """Named recipe, whose settings the flags below change. Default: baseline. A wrong name lists them all."""
    out: cli.Chosen[Path] = None
    """Run folder to create. Default: runs/<date>-<time>."""
    resume: cli.Chosen[Path] = None
    """Run folder to continue, bit for bit where it stopped."""
    steps: cli.Chosen[int] = None
    """Optimiser steps in all. Default: the stages' epochs."""
    epochs: cli.Chosen[float] = None
    """Epochs in all, which the stages share, instead of --steps."""
    minutes: cli.Chosen[float] = None
    """Time to train, instead of --steps: steps are timed first, then their number is fixed."""
    seed: cli.Chosen[int] = None
    """Of weights, batch order and dropout masks. Default: 0."""
    amp: cli.Chosen[Literal["off", "bf16"]] = None
    """bf16 autocast of encoder and predictor. Default: off."""
    compile: cli.Chosen[bool] = None
    """torch.compile what is not a kernel of ours. Default: on for cuda, off for cpu."""
    capture: cli.Chosen[bool] = None
    """Replay the whole step as one CUDA graph. Default: on for one process on cuda."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    kernels: Literal["auto", Kernels] = "auto"
    """triton: our GPU kernels and compiled ops; fused: compiled ops; reference: plain PyTorch. auto: the first of these
    that this machine has; with --resume, as the run was started."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints; 0 saves after every step."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What follows when the latents of a fixed batch have collapsed."""
    profile: Literal["off", "torch", "nsys"] = "off"
    """torch: a Chrome trace and the most expensive operators, in the run folder; nsys: ranges and a window for nsys."""
    profile_window: tuple[int, int] = (20, 25)
    """Steps to profile: the first and the one after the last, counted from this start."""
    data: DataArguments = field(default_factory=DataArguments)
    encoder: EncoderArguments = field(default_factory=EncoderArguments)
    model: ModelConfig | None = None
    objective: ObjectiveConfig | None = None
    optimizer: OptimizerConfig | None = None
    stages: tuple[Stage, ...] | None = None


# Fields of a Recipe, the flags that set them, and where in Arguments they lie.
RECIPE_FLAGS: dict[str, tuple[str, Callable[[Arguments], Any]]] = {
    "model": ("--model", lambda arguments: arguments.model),
    "objective": ("--objective", lambda arguments: arguments.objective),
    "optimizer": ("--optimizer", lambda arguments: arguments.optimizer),
    "stages": ("--stages", lambda arguments: arguments.stages),
    "flips": ("--data.flips", lambda arguments: arguments.data.flips),
}


def changed(base: Recipe, arguments: Arguments) -> Recipe:
    """`base` with what the arguments change of it.

    Raises:
        InputError: the result contradicts itself, or a weight is changed that no stage takes.
    """
    given = {name: value_of(arguments) for name, (_, value_of) in RECIPE_FLAGS.items()}
    recipe = replace(base, **{name: value for name, value in given.items() if value is not None})
    before = base.objective.weights({})
    for name, weight in recipe.objective.weights({}).items():
        is_unused = all(name in stage.weights for stage in recipe.stages)
        expected = f"--stages.0.weights.{name} and so on: every stage has a weight of its own"
        require(weight == before.get(name) or not is_unused, f"--objective.{name}", weight, expected)
    return recipe


def defaults(words: Sequence[str]) -> Arguments:
    """The settings of the preset, or of the stored run, that the words of a command line name: what flags change.

    Raises:
        InputError: there is no such preset or run.
    """
    stored, name = cli.peek(words, "--resume"), cli.peek(words, "--preset")
    recipe = preset(name or DEFAULT_PRESET)
    if stored is not None:
        recipe = RunConfig.load(Path(stored) / CONFIG).recipe
    return Arguments(model=recipe.model, objective=recipe.objective, optimizer=recipe.optimizer, stages=recipe.stages)


def main(arguments: Arguments) -> None:
    """Train, and say how to go on."""
    folder, steps = start(arguments)
    logger.info("%s: done after %d steps; probe it with python -m jepa_fast.evaluate %s", folder, steps, folder)


def start(arguments: Arguments, recipe: Recipe | None = None, model: "Model | None" = None) -> tuple[Path, int]:
    """Resolve, prepare data and folder, train; gives the run's folder and the steps done.

    Args:
        arguments: settings of the run.
        recipe: what they change, in place of a preset's.
        model: what is trained, in place of one that is built from the recipe.

    Raises:
        InputError: an argument is out of range, or two contradict each other.
        RunError: the run cannot go on.
    """
    from jepa_fast.engine.calibration import steps_within
    from jepa_fast.engine.distributed import joined
    from jepa_fast.engine.fallbacks import profile_here
    from jepa_fast.engine.loop import train

    device = cli.choose_device(arguments.device)
    options = LoopOptions(
        arguments.resume is not None, arguments.checkpoint_minutes, arguments.on_collapse,
        profile_here(arguments.profile, device), arguments.profile_window,
    )  # fmt: skip
    with joined(device) as ranks:
        folder, config = ranks.share(lambda: prepare(arguments, device, ranks.count, recipe))
        if arguments.minutes is not None:
            config = replace(config, steps=steps_within(60 * arguments.minutes, config, ranks, model))
        trained = config
        if arguments.profile != "off" and config.capture:
            logger.info("capture: off while profiling: a graph would hide which part of the step a kernel belongs to")
            trained = replace(config, capture=False)
        return folder, train(trained, folder, options, ranks, model, lambda: begin(arguments, folder, config))


def prepare(
    arguments: Arguments, device: Literal["cpu", "cuda"], ranks: int, recipe: Recipe | None = None
) -> tuple[Path, RunConfig]:
    """The run's folder, found or not made yet, and its configuration on this machine; nothing is written but data.

    Raises:
        InputError: an argument is out of range, or two contradict each other.
    """
    import torch

    from jepa_fast.data.loaders import choose_loader
    from jepa_fast.engine.fallbacks import without_what_is_missing
    from jepa_fast.runs import require_new

    if arguments.resume is not None:
        folder = arguments.resume
        config = without_what_is_missing(resumed(RunConfig.load(folder / CONFIG), arguments, device), keep_amp=True)
        split = open_training(Path(config.data), config.frames, config.frame_skip, arguments.data.verify)
        choose_loader(config.loader, split, torch.device(config.device))
    else:
        folder = arguments.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
        config = without_what_is_missing(resolve(arguments, device, _prepare_data(arguments), recipe))
    if ranks > 1 and arguments.capture is None and config.capture:
        logger.info("capture: off for %d processes, where it has not been tried yet; --capture tries it", ranks)
        config = replace(config, capture=False)
    size = config.batch_size
    expected = f"a multiple of {ranks} processes, two trajectories each or more"
    require(ranks == 1 or (size % ranks == 0 and size >= 2 * ranks), "--data.batch-size", size, expected)
    if arguments.resume is None:
        require_new(folder, config)
    return folder, config


def begin(arguments: Arguments, folder: Path, config: RunConfig) -> None:
    """Write into the run's folder what the run is, unless it goes on, and say what is trained.

    Raises:
        InputError: a run is already there, or the folder cannot be written.
    """
    import torch

    from jepa_fast.engine.record import write_environment
    from jepa_fast.runs import create_run

    if arguments.resume is None:
        create_run(folder, config)
    logger.info("device: %s", cli.explain_device(arguments.device))
    write_environment(folder, torch.device(config.device))
    logger.info(
        "%s: %s, %d steps of %d trajectories, %s, amp %s, compile %s, capture %s, loader %s, kernels %s", folder,
        config.preset, config.steps, config.batch_size, config.device, config.amp, "on" if config.compile else "off",
        "on" if config.capture else "off", config.loader, config.kernels,
    )  # fmt: skip


def resolve(
    arguments: Arguments, device: Literal["cpu", "cuda"], data: Path, recipe: Recipe | None = None
) -> RunConfig:
    """The configuration of a new run. With `minutes` its number of steps is still that of the recipe's epochs.

    `recipe` is what the arguments change, in place of a preset's.

    Raises:
        InputError: an argument is out of range, or two contradict each other.
    """
    import torch

    from jepa_fast.backends import choose_kernels
    from jepa_fast.data.loaders import choose_loader

    name = CUSTOM if recipe is not None else arguments.preset or DEFAULT_PRESET
    recipe = changed(recipe or preset(name), arguments)
    skip = arguments.data.frame_skip or 1
    split = open_training(data, arguments.data.frames, skip, arguments.data.verify)
    count, loader = split.count, arguments.data.loader or "auto"
    recipe = replace(recipe, model=recipe.model.for_data(split.spec))
    batch_size = arguments.data.batch_size
    if batch_size is None:
        batch_size = min(recipe.batch_size, max(count, 2))
        if batch_size < recipe.batch_size:
            logger.info("batch size: %d, all that there is, in place of %d", batch_size, recipe.batch_size)
    choose_loader(loader, split, torch.device(device))
    held = "trajectories" if split.drawn is None else "clips"
    require(2 <= batch_size <= count, "--data.batch-size", batch_size, f"from 2 to the {count} {held} in {data}")
    lengths = {"--steps": arguments.steps, "--epochs": arguments.epochs, "--minutes": arguments.minutes}
    given = [flag for flag, value in lengths.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{', '.join(given)}: got {'both' if len(given) == 2 else 'all'}, expected at most one")
    epochs = recipe.epochs if arguments.epochs is None else arguments.epochs
    require(0 < epochs < math.inf, "--epochs", epochs, "a positive number")
    minutes = arguments.minutes
    require(minutes is None or 0 < minutes < math.inf, "--minutes", minutes, "a positive number")
    check_fit(recipe, split, batch_size, torch.device(device))
    return RunConfig(
        preset=name,
        recipe=recipe,
        seed=arguments.seed or 0,
        steps=max(1, round(epochs * (count // batch_size))) if arguments.steps is None else arguments.steps,
        batch_size=batch_size,
        amp=arguments.amp or "off",
        compile=device == "cuda" if arguments.compile is None else arguments.compile,
        device=device,
        data=str(data.absolute()),
        loader=loader,
        kernels=choose_kernels(arguments.kernels, device, recipe.model.dim),
        sparse=arguments.encoder.sparse is not False,
        capture=device == "cuda" if arguments.capture is None else arguments.capture,
        frames=None if split.drawn is None else split.drawn.frames,
        frame_skip=skip,
        inputs=split.spec.inputs(),
    )


def check_fit(recipe: Recipe, split: Split, batch_size: int, device: "torch.device") -> None:
    """Make sure that the model takes the frames, and say what a step costs where every frame is encoded whole.

    Raises:
        InputError: frames or actions that the model cannot take.
    """
    import torch

    from jepa_fast.data.host import gather, group_bases
    from jepa_fast.models.registry import build_model, is_built_here

    if not is_built_here(recipe.model):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = build_model(recipe.model, recipe.objective).eval()
        encode = model.batch_encoder(split.spec, group_bases(split))
        if device.type != "cpu" or all(group.codec != "dense" for group in split.spec.groups):
            return
        frame = gather(split, np.arange(1)).frames(slice(1))
        for _ in range(2):
            began = time.perf_counter()
            encode(frame, model.dropout_clock)
            frame_s = time.perf_counter() - began
    spec = split.spec
    step_s = FORWARD_AND_BACKWARD * frame_s * batch_size * spec.frames
    if step_s > WORTH_SAYING:
        logger.info(
            "a step encodes %d x %d whole frames of %d x %d pixels: about %s, by the time that one takes; fewer frames "
            "(--data.frames), a smaller batch or, where the model has one, a larger --model.stride cost less",
            batch_size, spec.frames, spec.height, spec.width, f"{step_s:.0f} s",
        )  # fmt: skip


def resumed(stored: RunConfig, arguments: Arguments, device: Literal["cpu", "cuda"]) -> RunConfig:
    """The stored configuration on this machine; flags that would change what is computed are refused.

    Raises:
        InputError: a flag differs from what the run was started with.
    """
    from jepa_fast.backends import choose_kernels

    given: dict[str, tuple[Any, Any]] = {
        "--preset": (arguments.preset and canonical(arguments.preset), canonical(stored.preset)),
        "--steps": (arguments.steps, stored.steps),
        "--seed": (arguments.seed, stored.seed),
        "--amp": (arguments.amp, stored.amp),
        "--data.batch-size": (arguments.data.batch_size, stored.batch_size),
        "--data.frames": (arguments.data.frames, stored.frames),
        "--data.frame-skip": (arguments.data.frame_skip, stored.frame_skip),
    }
    for name, (flag, value_of) in RECIPE_FLAGS.items():
        given[flag] = value_of(arguments), getattr(stored.recipe, name)
    for flag, (value, expected) in given.items():
        if value is not None:
            for differing, found, wanted in cli.differences(value, expected, flag):
                raise InputError(f"{differing}: got {found!r}, expected {wanted!r}, as the run was started")
    unused = {"--out": arguments.out, "--epochs": arguments.epochs, "--minutes": arguments.minutes}
    for flag, left_out in unused.items():
        require(left_out is None, flag, left_out, "to be left out with --resume")
    asked: dict[str, Any] = {
        "compile": arguments.compile,
        "capture": arguments.capture,
        "sparse": arguments.encoder.sparse,
        "loader": arguments.data.loader,
        "data": None if arguments.data.path is None else str(arguments.data.path.absolute()),
        "kernels": None
        if arguments.kernels == "auto"
        else choose_kernels(arguments.kernels, device, stored.recipe.model.dim),
    }
    here = replace(stored, device=device, capture=stored.capture and device == "cuda")
    return replace(here, **{name: value for name, value in asked.items() if value is not None})


def _prepare_data(arguments: Arguments) -> Path:
    """The data folder, generated first if none was named and the default one is not there."""
    if arguments.data.path is not None:
        return arguments.data.path
    logger.info("no --data: using %s, %d generated trajectories", DEFAULT_DATA, DEFAULT_TRAJECTORIES)
    generate(DEFAULT_DATA, trajectories=DEFAULT_TRAJECTORIES)
    return DEFAULT_DATA


if __name__ == "__main__":
    cli.run(main, Arguments, "Train a JEPA world model; without --data on a generated two-room set.", defaults)
