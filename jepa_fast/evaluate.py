"""Probe a trained model: `python -m jepa_fast.evaluate RUN`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from jepa_fast import cli
from jepa_fast.config import Kernels, RunConfig, require
from jepa_fast.errors import InputError, printable
from jepa_fast.locking import output

if TYPE_CHECKING:
    from jepa_fast.models.model import Model
    from jepa_fast.probing.results import Evaluation

logger = logging.getLogger(__name__)

# Trajectories of a split that a quick evaluation takes at most.
QUICK = 1000


@dataclass(frozen=True)
class Arguments:
    """Read targets off predicted latents alone, and print the errors beside the floors.

    With the probe sets of two rooms by their protocol, with other data for any targets of a validation split.
    """

    run: tyro.conf.Positional[Path | None] = None
    """Run folder, or one written by jepa_fast.export."""
    weights: cli.Chosen[Path] = None
    """Weights of another code, in place of a run: .safetensors, or a state dict of torch.save."""
    format: Literal["explorejepa", "explorejepa_gelu_first"] = "explorejepa"
    """Code that --weights come from; gelu_first for older ones, with the GELU before the LayerNorm."""
    data: cli.Chosen[Path] = None
    """Folder of packed splits. Default: the one the run was trained on."""
    out: cli.Chosen[Path] = None
    """Where to write the JSON. Default: evaluation.json, or targets.json, in the run folder or beside --weights."""
    split: cli.Chosen[str] = None
    """Validation split of data other than two rooms. Default: val, or the only one; without any, a part of train."""
    seed: int = 0
    """Of the probes and of the untrained floor."""
    floor: bool = True
    """Also probe the model untrained, which is half of the work."""
    quick: bool = False
    """A first look: 1,000 trajectories of every split of two rooms and no floor, in quick-evaluation.json."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    kernels: Literal["auto", Kernels] = "auto"
    """What encoder and predictor run on, as in jepa_fast.train."""


def main(arguments: Arguments) -> None:
    """Evaluate; the table goes to standard output, the JSON into the run folder."""
    from jepa_fast.kernels.probe_train import backend
    from jepa_fast.probing.evaluation import evaluate, probe_sets
    from jepa_fast.probing.results import EVALUATION
    from jepa_fast.probing.target_results import TARGETS, TargetEvaluation
    from jepa_fast.probing.targets import evaluate_targets

    device = cli.choose_device(arguments.device)
    model, data, place = load_model(arguments, device)
    logger.info("device: %s", cli.explain_device(arguments.device))
    # The objective's ops belong to training.
    unused = model.objective.ops(model.kernels, device, None)
    ops = {name: runs_on for name, runs_on in model.ops(model.kernels, device).items() if name not in unused}
    for op, runs_on in ops.items():
        logger.info("%s: %s", op, runs_on)
    is_two_rooms = arguments.split is None and bool(probe_sets(data))
    expected = "probe sets of two rooms, of which this data has none"
    require(is_two_rooms or not arguments.quick, "--quick", True, expected)
    if is_two_rooms:
        logger.info("probe_train: %s", backend())
    name = EVALUATION if is_two_rooms else TARGETS
    if arguments.quick:
        name = f"quick-{name}"
    path = arguments.out or place.with_name(place.name.replace(EVALUATION, name))
    with output(path):
        evaluation: Evaluation | TargetEvaluation
        if is_two_rooms:
            floor, most = arguments.floor and not arguments.quick, QUICK if arguments.quick else None
            evaluation = evaluate(model, data, arguments.seed, floor, most)
        else:
            frames, skip = trained_on(arguments.run)
            evaluation = evaluate_targets(
                model, data, split=arguments.split, probe_seed=arguments.seed, floor=arguments.floor, frames=frames,
                frame_skip=skip,
            )  # fmt: skip
        if arguments.quick:
            logger.info("quick: errors on few trajectories, which do not compare with those of a whole evaluation")
        try:
            # First: whatever becomes of the file, minutes of work are not lost.
            print(printable(evaluation.table()), flush=True)
        finally:
            evaluation.save(path)
    logger.info("%s", path)


def trained_on(run: Path | None) -> tuple[int | None, int]:
    """Frames of the clips that a run was trained on, None for whole trajectories, and frames between theirs."""
    from jepa_fast.runs import CONFIG

    if run is None or not (run / CONFIG).is_file():
        return None, 1
    config = RunConfig.load(run / CONFIG)
    return config.frames, config.frame_skip


def load_model(arguments: Arguments, device: Literal["cpu", "cuda"]) -> "tuple[Model, Path, Path]":
    """The model to probe, on `device`, its data folder and where an evaluation of it goes.

    Raises:
        InputError: not exactly one of a run and weights, weights without data, files that do not open, or kernels that
            are not there.
    """
    from jepa_fast.backends import choose_kernels
    from jepa_fast.models.jepa import JEPA
    from jepa_fast.probing.results import EVALUATION
    from jepa_fast.runs import CONFIG, load
    from jepa_fast.weights import WEIGHTS, read_tensors

    if (arguments.run is None) == (arguments.weights is None):
        raise InputError(f"RUN, --weights: got {'neither' if arguments.run is None else 'both'}, expected one of them")
    data = arguments.data
    model: Model
    if arguments.weights is not None:
        gelu_first = arguments.format == "explorejepa_gelu_first"
        kernels = choose_kernels(arguments.kernels, device)
        model = JEPA.from_explorejepa(read_tensors(arguments.weights), gelu_first, kernels).to(device)
        path = arguments.weights.with_suffix(f".{EVALUATION}")
    else:
        assert arguments.run is not None
        model = load(arguments.run, arguments.kernels, device=device)
        path = arguments.run / EVALUATION
        if data is None and not (arguments.run / WEIGHTS).exists():
            data = Path(RunConfig.load(arguments.run / CONFIG).data)
    if data is None:
        raise InputError("--data: not given, expected a folder of packed splits: weights do not name their data")
    return model, data, path


if __name__ == "__main__":
    cli.run(main, Arguments, "Probe a trained JEPA world model.")
