"""The world model: an encoder of frames and a predictor of states, trained together."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from jepa_fast.config import Kernels, ModelConfig
from jepa_fast.data.batches import GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models import explorejepa
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.predictor import Predictor
from jepa_fast.models.sparse_encoder import SparseEncoder


class World(nn.Module):
    """A joint-embedding predictive world model. `World()` has 293,344 parameters.

    Frames are float [.., 2, H, W], channel 0 the agent and channel 1 the walls, in the range of the data (0 to 0.0942
    for two rooms, not 0 to 1); actions are (x, y) in pixels per step.

    Dropout masks are a pure function of `dropout_clock`, int64 [3] = (seed, step, first row). In training mode every
    forward advances the step by one; set the clock to repeat a mask.

    Source: LeCun, A Path Towards Autonomous Machine Intelligence, 2022.
    """

    dropout_clock: Tensor

    def __init__(self, config: ModelConfig | None = None, kernels: Kernels = "reference") -> None:
        """With kernels "triton" encoder and predictor run as fused ops: the same parameters, function and masks."""
        super().__init__()
        self.config = config = config or ModelConfig()
        self.kernels = kernels
        self.encoder = Encoder(
            config.channels,
            config.blocks,
            config.dim,
            config.dropout,
            kernels,
            bias=config.bias,
            norm_before_add=config.norm_before_add,
            norm_after_add=config.norm_after_add,
            head=config.head,
            fusion=config.fusion,
        )
        self.predictor = Predictor(
            config.dim,
            config.dropout,
            config.residual,
            config.activation,
            kernels,
            bias=config.bias,
            history=config.history,
            history_decay=config.history_decay,
        )
        self.register_buffer("dropout_clock", new_clock(), persistent=False)

    @classmethod
    def from_explorejepa(
        cls, state_dict: Mapping[str, Tensor], gelu_first: bool = False, kernels: Kernels = "reference"
    ) -> "World":
        """A world with published weights, in evaluation mode; its sizes are read off the tensors.

        Args:
            state_dict: as the original code saves it (`jepa_fast.models.explorejepa` lists the keys).
            gelu_first: for older weights, whose predictor has its GELU before the LayerNorm.
            kernels: as in `World`.

        Raises:
            InputError: keys are missing or unknown, or a tensor has another shape than the rest implies.
        """
        config, weights = explorejepa.convert(state_dict, gelu_first)
        world = cls(config, kernels)
        world.load_state_dict(weights)
        return world.eval()

    def batch_encoder(
        self, spec: FrameSpec, bases: GroupBases = (), mode: Literal["auto", "off"] = "auto"
    ) -> SparseEncoder:
        """What encodes the batches of a split; arguments as in `SparseEncoder`."""
        return SparseEncoder(self.encoder, spec, bases, mode)

    def forward(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and encoded states of frames 1..T-1, both [B, T-1, D].

        Args:
            frames: [B, T, 2, H, W].
            actions: [B, T-1, 2].

        Raises:
            ValueError: shapes that do not fit together.
        """
        check_shapes(frames, actions)
        if self.training:
            self.dropout_clock[1] += 1
        encoded = self.encoder(frames, self.dropout_clock)
        predicted = self.predictor(encoded[:, 0], actions, self.dropout_clock)
        return predicted, encoded[:, 1:]

    def rollout(self, first_frames: Tensor, actions: Tensor) -> Tensor:
        """States [B, T, D]: the encoding of frame 0, then one prediction per action. No later frame is asked for.

        Args:
            first_frames: [B, 2, H, W].
            actions: [B, T-1, 2].

        Raises:
            ValueError: shapes that do not fit together.
        """
        check_first_frames(first_frames, actions)
        return self.unroll(self.encoder(first_frames[:, None], self.dropout_clock)[:, 0], actions)

    def unroll(self, first: Tensor, actions: Tensor) -> Tensor:
        """States [B, T, D]: the first [B, D], then one per action [B, T-1, 2]."""
        return torch.cat([first[:, None], self.predictor(first, actions, self.dropout_clock)], dim=1)


def check_first_frames(first_frames: Tensor, actions: Tensor) -> None:
    """Raise ValueError unless first frames [B, 2, H, W] and actions [B, steps, 2] fit."""
    if first_frames.dim() != 4:
        raise ValueError(f"first_frames: got shape {tuple(first_frames.shape)}, expected [B, 2, H, W]")
    check_shapes(first_frames[:, None], actions, steps=actions.shape[1])


def check_shapes(frames: Tensor, actions: Tensor, steps: int | None = None) -> None:
    """Raise ValueError unless frames [B, T, 2, H, W] and actions [B, steps, 2] fit; steps is T-1 by default."""
    if frames.dim() != 5 or frames.shape[2] != 2:
        raise ValueError(f"frames: got shape {tuple(frames.shape)}, expected [B, T, 2, H, W]")
    expected = (frames.shape[0], frames.shape[1] - 1 if steps is None else steps, 2)
    if tuple(actions.shape) != expected:
        raise ValueError(f"actions: got shape {tuple(actions.shape)}, expected {expected}")
    if expected[1] < 1:
        raise ValueError(f"actions: got {expected[1]} steps, expected at least 1")
