"""What the trainer, the probes and the report ask of a model: encode, predict, and what only the model knows."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from jepa_fast.config import InputSpec, Kernels, ModelConfig
from jepa_fast.data.batches import Batch, GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.kernels.dropout import new_clock

if TYPE_CHECKING:
    from jepa_fast.objectives.objective import Objective


logger = logging.getLogger(__name__)


class BatchEncoder(Protocol):
    """What encodes the batches of a split. Holds no parameters of its own and no state of the run."""

    def __call__(self, batch: Batch, clock: Tensor) -> Any:
        """The encodings of a batch, as the model's `encode` gives them; `clock` is the dropout clock."""

    def explain(self, batch: Batch) -> str:
        """One line for the log: what a batch like this is encoded by."""


class Model(nn.Module, ABC):
    """A joint-embedding predictive model: an encoder of frames, a predictor of latents, an objective.

    Frames are float [.., C, H, W] in the range of the data, not 0 to 1; actions are A numbers per step. Encodings are
    what `encode` gives: latents [B, T, D], or latents with something beside them that is neither predicted nor probed.

    Dropout masks are a pure function of `dropout_clock`, int64 [3] = (seed, step, first row). In training mode every
    `forward` advances the step by one; set the clock to repeat a mask.

    Source: LeCun, A Path Towards Autonomous Machine Intelligence, 2022.
    """

    encoder: nn.Module
    predictor: nn.Module
    dropout_clock: Tensor
    # Of frames and actions; None where any number fits.
    channels: int | None = None
    action_size: int | None = None
    # Whether `advance` is there: every frame of a trajectory is a state of its own, which one step leads on from.
    can_advance: ClassVar[bool] = False
    # What it was trained on, where that is known, and whether frames were looked at yet.
    inputs: InputSpec | None = None
    _is_range_checked = False

    def __init__(self, config: ModelConfig, objective: "Objective", kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.objective = objective
        self.register_buffer("dropout_clock", new_clock(), persistent=False)

    @abstractmethod
    def encode(self, frames: Tensor) -> Any:
        """The encodings of frames [B, T, C, H, W]."""

    @abstractmethod
    def predict(self, first: Any, actions: Tensor) -> Tensor:
        """Latents [B, S, D] after each of the actions [B, S, A], from the encodings of one frame [B, 1]: a rollout."""

    @abstractmethod
    def batch_encoder(
        self,
        spec: FrameSpec,
        bases: GroupBases = (),
        mode: Literal["auto", "off"] = "auto",
        encoder: nn.Module | None = None,
    ) -> BatchEncoder:
        """What encodes the batches of a split.

        Args:
            spec: of the split's frames.
            bases: the data set's base images, as `group_bases` gives them, on the device of the batches.
            mode: "off" encodes every frame whole, "auto" skips what cannot differ.
            encoder: of the same build as the model's, and in its place: one that averages it, say.

        Raises:
            InputError: frames that the model cannot take.
        """

    def latents(self, encoded: Any) -> Tensor:
        """The latents [B, T, D] of encodings."""
        latents: Tensor = encoded
        return latents

    def frame(self, encoded: Any, number: int) -> Any:
        """The encodings [B, 1] of one frame."""
        return encoded[:, number : number + 1]

    def advance(self, encoded: Any, actions: Tensor) -> Any:
        """Encodings [B, T] after one step from each of those of [B, T] frames by its action [B, T, A].

        Raises:
            NotImplementedError: without `can_advance`.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts rollouts alone")

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What each op runs on with these kernels, by name, for the log."""
        return self.objective.ops(kernels, device, None)

    def is_collapsed(self, std: Sequence[float], size: float, rankme: float) -> bool:
        """Whether latents with these standard deviations, root mean square and RankMe have collapsed."""
        return self.config.is_collapsed(std, size, rankme)

    def forward(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and encoded latents of frames 1..T-1, both [B, T-1, D].

        Args:
            frames: [B, T, C, H, W].
            actions: [B, T-1, A].

        Raises:
            ValueError: shapes that do not fit together.
        """
        self.check_shapes(frames, actions)
        if self.training:
            self.dropout_clock[1] += 1
        encoded = self.encode(frames)
        return self.predict(self.frame(encoded, 0), actions), self.latents(encoded)[:, 1:]

    def rollout(self, first_frames: Tensor, actions: Tensor) -> Tensor:
        """Latents [B, T, D]: the encoding of frame 0, then one prediction per action. No later frame is asked for.

        Args:
            first_frames: [B, C, H, W]; floats in the range of the training data, or bytes, which its scale makes such.
            actions: [B, T-1, A].

        Raises:
            ValueError: shapes that do not fit together.
        """
        if first_frames.dim() != 4:
            expected = f"[B, {self.channels or 'C'}, H, W]"
            raise ValueError(f"first_frames: got shape {tuple(first_frames.shape)}, expected {expected}")
        self.check_shapes(first_frames[:, None], actions, steps=actions.shape[1])
        first_frames = self.as_values(first_frames)
        return self.unroll(self.encode(first_frames[:, None]), actions)

    def as_values(self, frames: Tensor) -> Tensor:
        """Frames as floats in the range of the training data: bytes by its scale, floats as they are.

        Floats that lie outside are told once, in the log.

        Raises:
            ValueError: bytes for a model whose scale is not known, or another integer type.
        """
        if frames.is_floating_point():
            if self.inputs is not None and not (self._is_range_checked or torch.compiler.is_compiling()):
                self._check_range(frames, self.inputs)
            return frames
        if frames.dtype != torch.uint8 or self.inputs is None:
            known = "uint8 or floats" if self.inputs else "floats: what a byte stands for, this model was not told"
            raise ValueError(f"first_frames: got {frames.dtype}, expected {known}")
        return frames.to(torch.float32) * self.inputs.scale + self.inputs.offset

    def _check_range(self, frames: Tensor, inputs: InputSpec) -> None:
        (least, largest), (low, high) = torch.aminmax(frames.detach()), inputs.range
        # Off by rounding is not outside.
        margin = 1e-3 * (high - low)
        is_outside = bool(least < low - margin) or bool(largest > high + margin)
        # A device is waited for once alone.
        self._is_range_checked = is_outside or frames.device.type != "cpu"
        if is_outside:
            logger.warning(
                "frames hold values from %.4g to %.4g, this model was trained on %.4g to %.4g: give bytes, or floats "
                "on its scale", least.item(), largest.item(), low, high,
            )  # fmt: skip

    def unroll(self, first: Any, actions: Tensor) -> Tensor:
        """Latents [B, T, D]: those of one encoded frame [B, 1], then one prediction per action [B, T-1, A]."""
        return torch.cat([self.latents(first), self.predict(first, actions)], dim=1)

    def check_shapes(self, frames: Tensor, actions: Tensor, steps: int | None = None) -> None:
        """Raise ValueError unless frames [B, T, C, H, W] and actions [B, steps, A] fit; steps is T-1 by default."""
        channels, size = self.channels, self.action_size
        if frames.dim() != 5 or frames.shape[2] != (channels or frames.shape[2]):
            raise ValueError(f"frames: got shape {tuple(frames.shape)}, expected [B, T, {channels or 'C'}, H, W]")
        if size is None and actions.dim() == 3:
            size = actions.shape[2]
        expected = (frames.shape[0], frames.shape[1] - 1 if steps is None else steps, size or "A")
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions: got shape {tuple(actions.shape)}, expected {expected}")
        if actions.shape[1] < 1:
            raise ValueError(f"actions: got {actions.shape[1]} steps, expected at least 1")
