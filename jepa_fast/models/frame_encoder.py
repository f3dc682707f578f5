"""Any module that encodes frames one by one, on whole trajectories and batches."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from jepa_fast.data.batches import Batch, GroupBases, expand_frames
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.models.model import BatchEncoder


class TrajectoryEncoder(nn.Module, ABC):
    """An encoder that is handed whole trajectories, draws dropout from the clock and knows what can differ in a Batch.

    Any other module is handed frames one by one: float [N, C, H, W] to [N, D], or to [N, c, h, w], which is flattened.
    """

    @abstractmethod
    def forward(self, frames: Tensor, clock: Tensor) -> Tensor:
        """Latents [B, T, D] of frames [B, T, C, H, W]; `clock` int64 [3] is the dropout clock."""

    @abstractmethod
    def batch_encoder(self, spec: FrameSpec, bases: GroupBases, mode: Literal["auto", "off"]) -> BatchEncoder:
        """What encodes the batches of a split by this encoder; arguments as in `Model.batch_encoder`."""


def encode_trajectories(encoder: nn.Module, frames: Tensor, clock: Tensor) -> Tensor:
    """Latents [B, T, D] of frames [B, T, C, H, W] by any encoder.

    Raises:
        ValueError: the encoder does not give a vector or a map for every frame.
    """
    if isinstance(encoder, TrajectoryEncoder):
        latents: Tensor = encoder(frames, clock)
        return latents
    count = frames.shape[0] * frames.shape[1]
    encoded = encoder(frames.flatten(0, 1))
    is_tensor = isinstance(encoded, Tensor)
    if not is_tensor or encoded.dim() < 2 or encoded.shape[0] != count:
        got = f"shape {tuple(encoded.shape)}" if is_tensor else f"a {type(encoded).__name__}"
        raise ValueError(f"encoder: got {got} of {count} frames, expected [{count}, D] or [{count}, c, h, w]")
    flat: Tensor = encoded.reshape(*frames.shape[:2], -1)
    return flat


def batch_encoder(encoder: nn.Module, spec: FrameSpec, bases: GroupBases, mode: Literal["auto", "off"]) -> BatchEncoder:
    """What encodes the batches of a split by any encoder; arguments as in `Model.batch_encoder`."""
    if isinstance(encoder, TrajectoryEncoder):
        return encoder.batch_encoder(spec, bases, mode)
    return DenseEncoder(encoder, spec, bases)


class DenseEncoder:
    """Encodes every frame of a Batch whole, by a module that is handed frames one by one."""

    def __init__(self, encoder: nn.Module, spec: FrameSpec, bases: GroupBases = ()) -> None:
        self.encoder, self.spec, self.bases = encoder, spec, bases
        parameters = [parameter for parameter in encoder.parameters() if parameter.is_floating_point()]
        self._dtype = parameters[0].dtype if parameters else torch.float32

    def __call__(self, batch: Batch, clock: Tensor) -> Tensor:
        """Latents [B, T, D]; T is the batch's own, so that a rollout can bring frame 0 alone."""
        frames = expand_frames(batch, self.spec, self.bases)
        return encode_trajectories(self.encoder, frames.to(self._dtype), clock)

    def explain(self, batch: Batch) -> str:
        """One line for the log."""
        return f"encoder: {type(self.encoder).__name__}, every frame is encoded whole"
