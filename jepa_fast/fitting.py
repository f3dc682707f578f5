"""Training from Python: what `python -m jepa_fast.train` does, for a model that you made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jepa_fast import train
from jepa_fast.config import Kernels, OptimizerConfig, Recipe, Stage
from jepa_fast.data.dataset import TrajectoryDataset
from jepa_fast.engine.record import Metrics, read_metrics
from jepa_fast.models.model import Model

# The baseline's.
OPTIMIZER = OptimizerConfig(learning_rate=3e-3)


@dataclass(frozen=True)
class Run:
    """A run of `fit`: its folder and the model that it trained.

    Attributes:
        folder: holds config.json, environment.json, metrics.jsonl, spectra.jsonl, checkpoints, TensorBoard events.
        model: in evaluation mode, on the device that it was trained on.
        steps: that have been done.
    """

    folder: Path
    model: Model
    steps: int

    @property
    def metrics(self) -> list[Metrics]:
        """What was logged: for each log step "step", "total", the objective's terms, the learning rate and others."""
        return read_metrics(self.folder)


def fit(
    model: Model,
    data: TrajectoryDataset | str | Path,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    batch_size: int = 32,
    optimizer: OptimizerConfig = OPTIMIZER,
    stages: tuple[Stage, ...] = (Stage(1),),
    flips: bool = False,
    frames: int | None = None,
    frame_skip: int | None = None,
    seed: int = 0,
    amp: Literal["off", "bf16"] = "off",
    compile: bool | None = None,
    capture: bool | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    kernels: Literal["auto", Kernels] = "auto",
    loader: Literal["auto", "resident", "dali", "host"] = "auto",
    checkpoint_minutes: float = 5.0,
    on_collapse: Literal["warn", "stop"] = "warn",
) -> Run:
    """Train `model` on packed trajectories, in a run folder like the command's.

    Args:
        model: such as `JEPA(encoder=..., predictor=..., objective=...)`; its weights are trained in place.
        data: a `TrajectoryDataset`, or the folder of a packed split or of several, one of them called
            train.
        steps, epochs, minutes: how long, at most one of them; by default the epochs of the stages. Minutes are turned
            into a number of steps once, by timing some on a copy of the model.
        out: run folder to create. Default: runs/<date>-<time>.
        resume: run folder to continue in place of `out`, to the same bits as uninterrupted; what decides what is
            computed has to be as it was.
        batch_size: trajectories per step.
        optimizer: Adam's settings.
        stages: stretches of the run, in proportion to their epochs.
        flips: mirror trajectories at random; for data that are their own mirror images.
        frames: train on clips of so many frames, from any frame on; by default on whole trajectories, or where their
            lengths differ on clips of 16.
        frame_skip: frames from one frame of a clip to its next, 1 by default; the actions between are concatenated.
        seed: of batch order and dropout masks.
        amp, compile, capture, device, kernels, loader, checkpoint_minutes, on_collapse: as the command's flags.

    Raises:
        InputError: an argument is out of range, or data and model do not fit together.
        RunError: a loss that is not finite, latents that collapsed (on_collapse "stop"), a disk that is full.
        SystemExit: stopped by SIGINT or SIGTERM, with a checkpoint to resume from.
    """
    path = data.split.folder if isinstance(data, TrajectoryDataset) else Path(data)
    recipe = Recipe(model.config, model.objective.config, optimizer, batch_size, flips, stages)
    arguments = train.Arguments(
        out=None if out is None else Path(out),
        resume=None if resume is None else Path(resume),
        steps=steps,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        amp=amp,
        compile=compile,
        capture=capture,
        device=device,
        kernels=kernels,
        checkpoint_minutes=checkpoint_minutes,
        on_collapse=on_collapse,
        data=train.DataArguments(path, batch_size, flips, loader, frames, frame_skip),
        model=recipe.model,
        objective=recipe.objective,
        optimizer=optimizer,
        stages=stages,
    )
    folder, done = train.start(arguments, recipe, model)
    return Run(folder, model.eval(), done)
