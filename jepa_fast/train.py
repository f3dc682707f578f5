"""Train a model: `python -m jepa_fast.train`. Flags become a RunConfig; the engine does the rest."""

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from jepa_fast import cli
from jepa_fast.config import Kernels, LoopOptions, RunConfig, require
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.generate import generate
from jepa_fast.presets import DEFAULT_PRESET, preset

logger = logging.getLogger(__name__)

DEFAULT_DATA = Path("data/two_rooms")
DEFAULT_TRAJECTORIES = 12_800


@dataclass(frozen=True)
class DataArguments:
    """Where trajectories come from."""

    path: Path | None = None
    """Folder of packed splits. Default: data/two_rooms, generated there if absent."""
    batch_size: int | None = None
    """Trajectories per step, over all processes. Default: the recipe's, 128."""
    loader: Literal["auto", "resident", "dali", "host"] | None = None
    """How batches reach the device: the same bits at another speed. Default: auto, which the log explains."""
    verify: bool = False
    """Hash every shard of the training split before starting."""


@dataclass(frozen=True)
class EncoderArguments:
    """How frames are encoded."""

    exact_shortcuts: Literal["on", "off"] | None = None
    """Skip what cannot differ: same function, same gradients, a fraction of the work. Default: on."""


@dataclass(frozen=True)
class Arguments:
    """Train a JEPA world model; without --data.path on a generated two-room set."""

    preset: str | None = None
    """Named recipe: explorejepa_repo (default), or another of jepa_fast/presets.py; a wrong name lists them all."""
    out: Path | None = None
    """Run folder to create. Default: runs/<date>-<time>."""
    resume: Path | None = None
    """Run folder to continue, bit for bit where it stopped."""
    steps: int | None = None
    """Optimiser steps in all. Default: the recipe's epochs."""
    epochs: int | None = None
    """Epochs in all, instead of --steps."""
    seed: int | None = None
    """Of weights, batch order and dropout masks. Default: 0."""
    amp: Literal["off", "bf16"] | None = None
    """bf16 autocast of encoder and predictor. Default: off."""
    compile: Literal["off", "on"] | None = None
    """torch.compile what is not a kernel of ours. Default: on for cuda, off for cpu."""
    capture: Literal["off", "on"] | None = None
    """Replay the whole step as one CUDA graph. Default: on for one process on cuda."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    kernels: Literal["auto", Kernels] = "auto"
    """triton: our GPU kernels and compiled ops; fused: compiled ops; reference: plain PyTorch. auto: the first of these
    that this machine has; with --resume, as the run was started."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints; 0 saves after every step."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What follows when the states of a fixed batch have collapsed."""
    profile: Literal["off", "torch", "nsys"] = "off"
    """torch: a Chrome trace and the dearest operators, in the run folder; nsys: ranges and a window for nsys."""
    profile_window: tuple[int, int] = (20, 25)
    """Steps to profile: the first and the one after the last, counted from this start."""
    data: DataArguments = field(default_factory=DataArguments)
    encoder: EncoderArguments = field(default_factory=EncoderArguments)


def main(arguments: Arguments) -> None:
    """Resolve, prepare data and folder, train."""
    from jepa_fast.engine.distributed import joined
    from jepa_fast.engine.fallbacks import profile_here
    from jepa_fast.engine.loop import train

    device = cli.choose_device(arguments.device)
    options = LoopOptions(
        arguments.resume is not None, arguments.checkpoint_minutes, arguments.on_collapse,
        profile_here(arguments.profile, device), arguments.profile_window,
    )  # fmt: skip
    with joined(device) as ranks:
        folder, config = ranks.share(lambda: prepare(arguments, device, ranks.count))
        steps = train(config, folder, options, ranks)
    logger.info("%s: done after %d steps; probe it with python -m jepa_fast.evaluate %s", folder, steps, folder)


def prepare(arguments: Arguments, device: Literal["cpu", "cuda"], ranks: int) -> tuple[Path, RunConfig]:
    """The run's folder, made or found, and its configuration on this machine.

    Raises:
        InputError: an argument is out of range, or two contradict each other.
    """
    import torch

    from jepa_fast.data.loaders import choose_loader
    from jepa_fast.engine.fallbacks import without_what_is_missing
    from jepa_fast.engine.record import write_environment
    from jepa_fast.runs import CONFIG, create_run

    if arguments.resume is not None:
        folder = arguments.resume
        config = without_what_is_missing(resumed(RunConfig.load(folder / CONFIG), arguments, device), keep_amp=True)
        split = open_split(Path(config.data) / "train", verify=arguments.data.verify)
        choose_loader(config.loader, split, torch.device(config.device))
    else:
        folder = arguments.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
        config = without_what_is_missing(resolve(arguments, device, _prepare_data(arguments)))
    if ranks > 1 and arguments.capture is None and config.capture:
        logger.info("capture: off for %d processes, where it has not been tried yet; --capture on tries it", ranks)
        config = replace(config, capture=False)
    size = config.batch_size
    expected = f"a multiple of {ranks} processes, two trajectories each or more"
    require(ranks == 1 or (size % ranks == 0 and size >= 2 * ranks), "--data.batch-size", size, expected)
    if arguments.resume is None:
        create_run(folder, config)
    write_environment(folder, torch.device(config.device))
    logger.info(
        "%s: %s, %d steps of %d trajectories, %s, amp %s, compile %s, capture %s, loader %s, kernels %s", folder,
        config.preset, config.steps, config.batch_size, config.device, config.amp, "on" if config.compile else "off",
        "on" if config.capture else "off", config.loader, config.kernels,
    )  # fmt: skip
    if arguments.profile != "off" and config.capture:
        logger.info("capture: off while profiling: a graph would hide which part of the step a kernel belongs to")
        config = replace(config, capture=False)
    return folder, config


def resolve(arguments: Arguments, device: Literal["cpu", "cuda"], data: Path) -> RunConfig:
    """The configuration of a new run.

    Raises:
        InputError: an argument is out of range, or two contradict each other.
    """
    import torch

    from jepa_fast.backends import choose_kernels
    from jepa_fast.data.loaders import choose_loader

    name = arguments.preset or DEFAULT_PRESET
    recipe = preset(name)
    batch_size = recipe.batch_size if arguments.data.batch_size is None else arguments.data.batch_size
    split = open_split(data / "train", verify=arguments.data.verify)
    count, loader = split.count, arguments.data.loader or "auto"
    choose_loader(loader, split, torch.device(device))
    require(2 <= batch_size <= count, "--data.batch-size", batch_size, f"from 2 to the {count} trajectories in {data}")
    if arguments.steps is not None and arguments.epochs is not None:
        raise InputError("--steps, --epochs: got both, expected at most one")
    epochs = recipe.epochs if arguments.epochs is None else arguments.epochs
    require(epochs >= 1, "--epochs", epochs, "at least 1")
    return RunConfig(
        preset=name,
        recipe=recipe,
        seed=arguments.seed or 0,
        steps=round(epochs * (count // batch_size)) if arguments.steps is None else arguments.steps,
        batch_size=batch_size,
        amp=arguments.amp or "off",
        compile=_switch(arguments.compile, device == "cuda"),
        device=device,
        data=str(data.absolute()),
        loader=loader,
        kernels=choose_kernels(arguments.kernels, device, recipe.model.dim),
        exact_shortcuts=arguments.encoder.exact_shortcuts != "off",
        capture=_switch(arguments.capture, device == "cuda"),
    )


def resumed(stored: RunConfig, arguments: Arguments, device: Literal["cpu", "cuda"]) -> RunConfig:
    """The stored configuration on this machine; flags that would change what is computed are refused.

    Raises:
        InputError: a flag differs from what the run was started with.
    """
    from jepa_fast.backends import choose_kernels

    given = {
        "--preset": (arguments.preset, stored.preset),
        "--steps": (arguments.steps, stored.steps),
        "--seed": (arguments.seed, stored.seed),
        "--amp": (arguments.amp, stored.amp),
        "--data.batch-size": (arguments.data.batch_size, stored.batch_size),
    }
    for flag, (value, expected) in given.items():
        require(value is None or value == expected, flag, value, f"{expected!r}, as the run was started")
    for flag, unused in {"--out": arguments.out, "--epochs": arguments.epochs}.items():
        require(unused is None, flag, unused, "to be left out with --resume")
    return replace(
        stored,
        compile=_switch(arguments.compile, stored.compile),
        capture=_switch(arguments.capture, stored.capture and device == "cuda"),
        exact_shortcuts=_switch(arguments.encoder.exact_shortcuts, stored.exact_shortcuts),
        kernels=stored.kernels
        if arguments.kernels == "auto"
        else choose_kernels(arguments.kernels, device, stored.recipe.model.dim),
        device=device,
        loader=arguments.data.loader or stored.loader,
        data=stored.data if arguments.data.path is None else str(arguments.data.path.absolute()),
    )


def _switch(flag: Literal["on", "off"] | None, otherwise: bool) -> bool:
    return otherwise if flag is None else flag == "on"


def _prepare_data(arguments: Arguments) -> Path:
    """The data folder, generated first if none was named and the default one is not there."""
    if arguments.data.path is not None:
        return arguments.data.path
    logger.info("no --data.path: using %s, %d generated trajectories", DEFAULT_DATA, DEFAULT_TRAJECTORIES)
    generate(DEFAULT_DATA, trajectories=DEFAULT_TRAJECTORIES)
    return DEFAULT_DATA


if __name__ == "__main__":
    cli.run(main, Arguments, "Train a JEPA world model.")
