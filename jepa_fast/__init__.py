"""jepa_fast: train a JEPA world model as fast as the hardware can.

    import jepa_fast as jf

    jf.pack(episodes, "data/mine/train")              # any iterable of (frames, actions) or (frames, actions, targets)
    data = jf.TrajectoryDataset("data/mine/train")
    model = jf.JEPA(encoder=MyEncoder(), predictor=jf.MLPPredictor(dim=128, action_dim=7), objective=jf.VICReg())
    run = jf.fit(model, data, steps=5000, out="runs/mine")
    model = jf.load("runs/mine", model=model)
    actions = jf.plan(model, first_frame, goal_frame)

`jf.functional` has the compiled ops, `jf.nn` the modules. A name is imported when it is first used: `import jepa_fast`
by itself does not wait for torch, and no command's `--help` does.
"""

import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_fast import functional as functional
    from jepa_fast import nn as nn
    from jepa_fast.config import DynamicsConfig as DynamicsConfig
    from jepa_fast.config import InfoNCEConfig as InfoNCEConfig
    from jepa_fast.config import OptimizerConfig as OptimizerConfig
    from jepa_fast.config import Stage as Stage
    from jepa_fast.config import VICRegConfig as VICRegConfig
    from jepa_fast.data.dataset import TrajectoryDataset as TrajectoryDataset
    from jepa_fast.data.dataset import pack as pack
    from jepa_fast.fitting import Run as Run
    from jepa_fast.fitting import fit as fit
    from jepa_fast.models.jepa import JEPA as JEPA
    from jepa_fast.models.predictor import ConvPredictor as ConvPredictor
    from jepa_fast.models.predictor import MLPPredictor as MLPPredictor
    from jepa_fast.objectives.dynamics import Dynamics as Dynamics
    from jepa_fast.objectives.infonce import InfoNCE as InfoNCE
    from jepa_fast.objectives.vicreg import VICReg as VICReg
    from jepa_fast.planning.control import plan as plan
    from jepa_fast.planning.planner_config import PlannerConfig as PlannerConfig
    from jepa_fast.probing.targets import evaluate_targets as evaluate_targets
    from jepa_fast.runs import load as load

# Started as `python -m jepa_fast...`: Ctrl-C while modules are imported ends the process without a traceback.
_is_command = sys.argv[:1] == ["-m"] and any(word.startswith("jepa_fast.") for word in sys.orig_argv)
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"

# Public name -> the module that has it; functional and nn are modules themselves.
_PLACES = {
    "ConvPredictor": "jepa_fast.models.predictor",
    "Dynamics": "jepa_fast.objectives.dynamics",
    "DynamicsConfig": "jepa_fast.config",
    "InfoNCE": "jepa_fast.objectives.infonce",
    "InfoNCEConfig": "jepa_fast.config",
    "JEPA": "jepa_fast.models.jepa",
    "MLPPredictor": "jepa_fast.models.predictor",
    "OptimizerConfig": "jepa_fast.config",
    "PlannerConfig": "jepa_fast.planning.planner_config",
    "Run": "jepa_fast.fitting",
    "Stage": "jepa_fast.config",
    "VICRegConfig": "jepa_fast.config",
    "TrajectoryDataset": "jepa_fast.data.dataset",
    "VICReg": "jepa_fast.objectives.vicreg",
    "evaluate_targets": "jepa_fast.probing.targets",
    "fit": "jepa_fast.fitting",
    "load": "jepa_fast.runs",
    "pack": "jepa_fast.data.dataset",
}
_MODULES = ("functional", "nn", "plan")

__all__ = [
    "JEPA",
    "ConvPredictor",
    "Dynamics",
    "DynamicsConfig",
    "InfoNCE",
    "InfoNCEConfig",
    "MLPPredictor",
    "OptimizerConfig",
    "PlannerConfig",
    "Run",
    "Stage",
    "TrajectoryDataset",
    "VICReg",
    "VICRegConfig",
    "evaluate_targets",
    "fit",
    "functional",
    "load",
    "nn",
    "pack",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"jepa_fast.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'jepa_fast' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
