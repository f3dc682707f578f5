"""Stages of a run: what each weighs differently and what it freezes. No torch import."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jepa_fast.errors import require


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    Attributes:
        epochs: its share of the run.
        weights: of the objective's terms, by name, where they differ from those in the objective's configuration.
        frozen: modules of the model whose parameters stand still, such as "encoder.agent".
        restarts: whether the learning rate and an objective's own schedule begin anew with it, and what came before
            ends as a run of its own.
    """

    epochs: float
    weights: Mapping[str, float] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    restarts: bool = False

    def __post_init__(self) -> None:
        require(self.epochs > 0, "stage.epochs", self.epochs, "a positive number")
