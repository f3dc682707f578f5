"""Stored configurations of earlier versions, as JSON of this one: run folders, exported weights, records of studies.

Version 0.1 called the objective "energy", told one model from another by a kind that the first of them did not have,
weighed three terms in every stage by position, and let stages end early.
"""

from collections.abc import Mapping
from typing import Any

from jepa_fast.errors import require

Fields = Mapping[str, Any]

MODELS = {None: "jepa", "apart": "gated_convnext", "features": "gated_features", "pixels": "gated_pixels"}
OBJECTIVES = {None: "vicreg", "infonce": "infonce", "one_step": "mixture"}
# Names of the three weights that a stage had, in their order; None: of no use to the objective, and always 0.
WEIGHTS: dict[str, tuple[str | None, ...]] = {
    "vicreg": ("invariance", "variance", "covariance"),
    "infonce": ("contrast", None, None),
    "mixture": ("nll", "variance", "covariance"),
}
OPTIONS = {"first_width": "first_sigma", "last_width": "last_sigma"}
# Names of metrics in metrics.jsonl.
METRICS = {
    "surprise": "nll",
    "moving": "move_probability",
    "found": "top1",
    "state_std_mean": "latent_std_mean",
    "state_std_min": "latent_std_min",
}


def run_config(fields: Fields) -> Fields:
    """A run's config.json."""
    fields = {"sparse" if name == "exact_shortcuts" else name: value for name, value in fields.items()}
    if "energy" not in fields["recipe"]:
        return fields
    new = recipe(fields["recipe"])
    # It was accepted, and nothing came of it.
    amp = "off" if new["model"]["kind"].startswith("gated_") else fields["amp"]
    return {**fields, "recipe": new, "amp": amp}


def recipe(fields: Fields) -> Fields:
    """A recipe."""
    if "energy" not in fields:
        return fields
    energy = {OPTIONS.get(name, name): value for name, value in fields["energy"].items()}
    kind = OBJECTIVES[energy.get("kind")]
    weights = [_weights(stage, kind) for stage in fields["stages"]]
    # What the longest stage weighs is the objective's, what others weigh differently is theirs.
    longest = max(range(len(weights)), key=lambda number: fields["stages"][number]["epochs"])
    others = {name: value for name, value in fields.items() if name not in ("energy", "model", "stages")}
    return others | {
        "model": model(fields["model"]),
        "objective": energy | {"kind": kind} | weights[longest],
        "stages": [
            _stage(stage) | {"weights": {name: one[name] for name in one if one[name] != weights[longest][name]}}
            for stage, one in zip(fields["stages"], weights, strict=True)
        ],
    }


def model(fields: Fields) -> Fields:
    """A model's configuration."""
    if fields.get("kind") not in MODELS:
        return fields
    # There was a choice of what to do with the wall once, and this was the default.
    old = {name: value for name, value in fields.items() if (name, value) != ("wall", "added")}
    return old | {"kind": MODELS[fields.get("kind")]}


def metrics(line: dict[str, float | int]) -> dict[str, float | int]:
    """A line of metrics.jsonl."""
    return {METRICS.get(name, name): value for name, value in line.items()}


def checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds: the model was called world, and stages that end early had a state."""
    old = {name: value for name, value in state.items() if name != "stages"}
    return {"model" if name == "world" else name: value for name, value in old.items()}


def _weights(stage: Fields, kind: str) -> dict[str, float]:
    """The weights of a stage by today's names."""
    old = ("invariance", "variance", "covariance")
    for name, now in zip(old, WEIGHTS[kind], strict=True):
        require(now is not None or stage[name] == 0, f"stage.{name}", stage[name], f"0 with the {kind} objective")
    return {now: stage[name] for name, now in zip(old, WEIGHTS[kind], strict=True) if now is not None}


def _stage(stage: Fields) -> dict[str, Any]:
    """What else there is to a stage."""
    gone = "null or false: stages that end early and targets that lose their gradient in a stage are gone"
    for name in ("until", "stop_gradient"):
        require(not stage.get(name), f"stage.{name}", stage.get(name), gone)
    return {name: stage[name] for name in ("epochs", "frozen", "restarts") if name in stage}
