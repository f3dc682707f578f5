"""JEPA: an encoder of frames and a predictor that is rolled out, trained together by an objective."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from jepa_fast.config import CustomConfig, JEPAConfig, Kernels, ModelConfig
from jepa_fast.data.batches import GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.model_config import USUAL_STRIDE
from jepa_fast.models import explorejepa, frame_encoder
from jepa_fast.models.backends import ops_of
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.model import BatchEncoder, Model
from jepa_fast.models.predictor import ConvPredictor, MLPPredictor
from jepa_fast.models.stem import Stem
from jepa_fast.objectives.objective import Objective
from jepa_fast.objectives.vicreg import VICReg


class JEPA(Model):
    """An encoder, a predictor and an objective of any make.

        JEPA(encoder=MyEncoder(), predictor=MLPPredictor(dim=128, action_dim=7), objective=VICReg())

    The encoder maps frames float [N, C, H, W] to [N, D], or to [N, c, h, w], which is flattened. The predictor maps
    first latents [B, D], actions [B, S, A] and the dropout clock to predicted latents [B, S, D].
    `build_jepa(JEPAConfig())` is the published model of 293,344 parameters.
    """

    def __init__(
        self,
        encoder: nn.Module,
        predictor: nn.Module,
        objective: Objective | None = None,
        *,
        config: ModelConfig | None = None,
        kernels: Kernels = "reference",
    ) -> None:
        """The objective is VICReg by default; `config` describes a model that can be built from it again."""
        made_here = CustomConfig(encoder=type(encoder).__name__, predictor=type(predictor).__name__)
        super().__init__(config or made_here, objective or VICReg(), kernels)
        self.encoder: nn.Module = encoder
        self.predictor: nn.Module = predictor
        self.action_size = getattr(predictor, "action_dim", None)
        self.objective.attach(getattr(predictor, "dim", None), self.action_size)

    @classmethod
    def from_explorejepa(
        cls, state_dict: Mapping[str, Tensor], gelu_first: bool = False, kernels: Kernels = "reference"
    ) -> "JEPA":
        """A model with published weights, in evaluation mode; its sizes are read off the tensors.

        Args:
            state_dict: as the original code saves it (`jepa_fast.models.explorejepa` lists the keys).
            gelu_first: for older weights, whose predictor has its GELU before the LayerNorm.
            kernels: as in `build_jepa`.

        Raises:
            InputError: keys are missing or unknown, or a tensor has another shape than the rest implies.
        """
        config, weights = explorejepa.convert(state_dict, gelu_first)
        model = build_jepa(config, kernels=kernels)
        model.load_state_dict(weights)
        return model.eval()

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [B, T, D] of frames [B, T, C, H, W]."""
        return frame_encoder.encode_trajectories(self.encoder, frames, self.dropout_clock)

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(c, h, w) of latents that are maps; None of those that are vectors."""
        shape: tuple[int, int, int] | None = getattr(self.encoder, "latent_shape", None)
        return shape or getattr(self.predictor, "latent_shape", None)

    def maps(self, latents: Tensor) -> Tensor:
        """Latents [..., D] as the maps [..., c, h, w] that they are.

        Raises:
            ValueError: they are vectors.
        """
        if self.latent_shape is None:
            raise ValueError(
                "latents: got vectors, expected maps, of an encoder with head 'spatial' or a ConvPredictor"
            )
        return latents.view(*latents.shape[:-1], *self.latent_shape)

    def predict(self, first: Tensor, actions: Tensor) -> Tensor:
        """Latents [B, S, D] after each of the actions [B, S, A], from those of one frame [B, 1, D]."""
        predicted: Tensor = self.predictor(first[:, 0], actions, self.dropout_clock)
        return predicted

    def batch_encoder(
        self,
        spec: FrameSpec,
        bases: GroupBases = (),
        mode: Literal["auto", "off"] = "auto",
        encoder: nn.Module | None = None,
    ) -> BatchEncoder:
        """What encodes the batches of a split; see `Model.batch_encoder`."""
        return frame_encoder.batch_encoder(encoder or self.encoder, spec, bases, mode)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the objective's ops, the rollout and the encoder's blocks run on."""
        ops = self.objective.ops(kernels, device, getattr(self.predictor, "dim", None))
        return ops | ops_of(self.predictor, kernels, device) | ops_of(self.encoder, kernels, device)


def build_jepa(
    config: JEPAConfig | None = None, objective: Objective | None = None, kernels: Kernels = "reference"
) -> JEPA:
    """ConvNeXt branches and a predictor with fresh weights. What the configuration leaves to the data is as usual.

    With kernels "triton" encoder and predictor run as fused ops: the same parameters, function and masks.
    """
    config = config or JEPAConfig()
    stride = config.stride or USUAL_STRIDE
    encoder = Encoder(
        config.channels,
        config.blocks,
        config.dim,
        config.dropout,
        kernels,
        groups=[(group.name, group.channels) for group in config.groups],
        bias=config.bias,
        norm_before_add=config.norm_before_add,
        norm_after_add=config.norm_after_add,
        head=config.head,
        fusion=config.fusion,
        stem=Stem(config.stem or stride, stride),
        white=config.white or 1.0,
        batch_norm=config.batch_norm,
    )
    predictor: nn.Module
    if config.predictor == "conv":
        assert encoder.latent_shape is not None
        predictor = ConvPredictor(encoder.latent_shape, config.action_size, dropout=config.dropout)
    else:
        predictor = MLPPredictor(
            config.dim,
            config.action_size,
            dropout=config.dropout,
            residual=config.residual,
            activation=config.activation,
            kernels=kernels,
            bias=config.bias,
            history=config.history,
            history_decay=config.history_decay,
        )
    model = JEPA(encoder, predictor, objective, config=config, kernels=kernels)
    model.channels = sum(group.channels for group in config.groups)
    return model
