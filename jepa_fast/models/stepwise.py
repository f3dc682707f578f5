"""Models that one step leads on from any encoded frame: what follows from `advance` alone.

Encodings are named tuples: `latents` [B, T, D], and beside them what is read from the first frame and carried.
"""

from abc import abstractmethod
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from jepa_fast.models.model import Model


class Encodings(Protocol):
    """Trajectories: a latent for every frame, in surroundings that stay."""

    @property
    def latents(self) -> Tensor:
        """Of every frame, [B, T, D]."""

    def _replace(self, *, latents: Tensor) -> Self: ...


E = TypeVar("E", bound=Encodings)


class StepwiseModel(Model):
    """A model whose frames are states of their own, each of which one step leads on from."""

    can_advance = True

    @abstractmethod
    def advance(self, encoded: Any, actions: Tensor) -> Any:
        """The same surroundings with the latents after one step from every encoded frame; see `Model.advance`."""

    def predict(self, first: Any, actions: Tensor) -> Tensor:
        """Latents [B, S, D] after each of the actions [B, S, A], from one encoded frame [B, 1]."""
        moving, latents = first, []
        for time in range(actions.shape[1]):
            moving = self.advance(moving, actions[:, time : time + 1])
            latents.append(moving.latents)
        return torch.cat(latents, dim=1)

    def latents(self, encoded: Encodings) -> Tensor:
        """The latents [B, T, D], without what is carried beside them."""
        return encoded.latents

    def frames(self, encoded: E, which: slice) -> E:
        """Some frames of the same trajectories, in the same surroundings."""
        return encoded._replace(latents=encoded.latents[:, which])

    def frame(self, encoded: E, number: int) -> E:
        """One frame [B, 1] of the same trajectories, in the same surroundings."""
        return self.frames(encoded, slice(number, number + 1))
