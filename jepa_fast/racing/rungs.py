"""The rungs: how far a world has to come, and where a run of so many steps is checked. No torch import."""

from typing import Any

from jepa_fast.config import require

Scores = dict[str, dict[str, float]]  # validation split -> probe -> squared error in pixels^2

SETS = ("probe_normal/val", "probe_wall/val", "probe_wall_other/val")
PROBES = ("official", "converged")

# Largest errors in pixels^2 on SETS, under both probes. r1 to r3 are what three published models reached on the
# original data; the sets here are a replica, so they are levels to reach, not models to beat.
RUNGS: dict[str, tuple[float, float, float]] = {
    "r1": (3.04, 6.67, 6.98),
    "r2": (1.0, 5.5, 5.9),
    "r3": (0.325, 0.742, 2.796),
    "r4": (0.05, 0.08, 0.08),
}

# A run is checked so often, the last time at its end.
CHECKS = 3
# Probe seeds are these plus the seed of the training: of a seed's checks, and of its confirmations.
CHECK_SEED, CONFIRMATION_SEED = 1000, 2000


def schedule(steps: int, checks: int = CHECKS) -> list[int]:
    """The steps after which a run of `steps` steps is checked: `checks` of them, evenly spread, the last at the end.

    Raises:
        InputError: fewer steps than checks.
    """
    require(checks >= 1, "--checks", checks, "at least 1")
    require(steps >= checks, "--steps", steps, f"at least the {checks} of the checks")
    return [steps * number // checks for number in range(1, checks + 1)]


def meets(scores: Scores, thresholds: dict[str, float]) -> bool:
    """Whether every set's error is at most its threshold under both probes; an error that is not a number is not."""
    return all(scores[name][probe] <= most for name, most in thresholds.items() for probe in PROBES)


def thresholds_of(rung: str) -> dict[str, float]:
    """The largest errors that `rung` allows, by validation split."""
    return dict(zip(SETS, RUNGS[rung], strict=True))


def results_of(log: list[dict[str, Any]], seeds: list[int]) -> list[dict[str, Any]]:
    """What the log's events say of each seed: when the rung was met, or that it was not.

    A seed has met the rung at the first check that a confirmation at the same step bears out.
    """
    results = []
    for seed in seeds:
        mine = [event for event in log if event["seed"] == seed]
        confirmed = [event for event in mine if event["event"] == "confirmation" and event["met"]]
        last = confirmed[0] if confirmed else [event for event in mine if event["event"] in ("check", "failure")][-1]
        times = {name: last[name] for name in ("step", "clock_s", "processor_s")}
        results.append({"seed": seed, "met": bool(confirmed), **times})
    return results


def summary_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all seeds: how many met the rung, and the mean seconds, which exist only where every seed did."""
    met = sum(result["met"] for result in results)
    means = {
        f"mean_{name}": sum(result[name] for result in results) / len(results) if met == len(results) else None
        for name in ("clock_s", "processor_s")
    }
    return {"seeds": len(results), "met": met, **means}
