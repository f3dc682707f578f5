"""Stages of a run: what each weighs, what it freezes, and what ends it before its time. No torch import."""

from dataclasses import dataclass
from typing import Any, Literal

from jepa_fast.errors import require


@dataclass(frozen=True)
class Plateau:
    """Fires where a term has stopped falling: `patience` readings in a row have not been lower than the lowest yet.

    Attributes:
        term: "total" or one of the recipe's terms.
        patience: readings; there is one every 10 steps on a CPU, every 100 on CUDA.
        least: share of the lowest reading by which another has to be lower.
        kind: tells it from other triggers where it is stored.
    """

    term: str
    patience: int = 5
    least: float = 0.01
    kind: Literal["plateau"] = "plateau"

    def __post_init__(self) -> None:
        require(self.patience >= 1, "stage.until.patience", self.patience, "at least 1")
        require(0 <= self.least < 1, "stage.until.least", self.least, "a share in [0, 1)")


@dataclass(frozen=True)
class EpochReached:
    """Fires at the first reading after so many epochs of the whole run; parts of one count."""

    epoch: float
    kind: Literal["epoch"] = "epoch"

    def __post_init__(self) -> None:
        require(self.epoch > 0, "stage.until.epoch", self.epoch, "a positive number")


@dataclass(frozen=True)
class RankReached:
    """Fires where the collapse watch finds encodings of at least this effective rank; it looks 25 times in a run."""

    rank: float
    kind: Literal["rank"] = "rank"

    def __post_init__(self) -> None:
        require(self.rank > 1, "stage.until.rank", self.rank, "more than 1")


Trigger = Plateau | EpochReached | RankReached


@dataclass(frozen=True)
class Stage:
    """A stretch of training with fixed weights of the three terms.

    Attributes:
        epochs: its share of the run.
        invariance, variance, covariance: weights of the terms.
        frozen: modules of the world whose parameters stand still, such as "encoder.agent".
        restarts: whether the learning rate and a one-step likelihood's width begin anew with it, and what came before
            ends as a run of its own.
        stop_gradient: whether encodings that are predicted take no gradient; for targets = "shared".
        until: what ends it before its share; the stages after it then share what is left of the run.
    """

    epochs: float
    invariance: float
    variance: float
    covariance: float
    frozen: tuple[str, ...] = ()
    restarts: bool = False
    stop_gradient: bool = False
    until: Trigger | None = None

    def __post_init__(self) -> None:
        require(self.epochs > 0, "stage.epochs", self.epochs, "a positive number")


def read_stage(fields: dict[str, Any]) -> Stage:
    """A stage from its JSON.

    Raises:
        KeyError: a trigger of no known kind.
        TypeError: unknown fields.
    """
    kinds = {"plateau": Plateau, "epoch": EpochReached, "rank": RankReached}
    until, frozen = fields.get("until"), tuple(fields.get("frozen", ()))
    trigger = None if until is None else kinds[until["kind"]](**until)
    return Stage(**fields | {"frozen": frozen, "until": trigger})
