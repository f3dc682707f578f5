"""Predictors: a small network that moves a latent by an action, applied to its own output step after step.

A predictor is a module that maps first latents [B, D], actions [B, S, A] and the dropout clock to [B, S, D].
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import Kernels
from jepa_fast.kernels.dispatch import PLAIN
from jepa_fast.kernels.dropout import SITE_PREDICTOR, dropout_mask
from jepa_fast.kernels.rollout import TRITON_ACTION_SIZES, TRITON_DIMS, RolloutWeights, rollout
from jepa_fast.models.backends import compiled_rollout_or_plain, triton_or_plain
from jepa_fast.models.biases import bias_or_zeros


class MLPPredictor(nn.Module):
    """s' = residual + W2 dropout(gelu(LN(W1 r + b1))) + b2 with r = LN(s) + LN(Wa a + ba).

    s is a latent of `dim` numbers, a an action of `action_dim`. The residual is r itself ("sum") or LN(s) alone
    ("state"). With activation "before_norm" the hidden layer is LN(gelu(h)) in place of gelu(LN(h)).

    With a history of k, W1 reads [r; d LN(s_1); ..; d^k LN(s_k)] in place of r: s_j the latent j steps before s,
    the encoding that a rollout starts from among them, d the decay. What would be before that is zero.
    """

    def __init__(
        self,
        dim: int,
        action_dim: int = 2,
        *,
        dropout: float = 0.1,
        residual: Literal["sum", "state"] = "sum",
        activation: Literal["after_norm", "before_norm"] = "after_norm",
        kernels: Kernels = "reference",
        bias: bool = True,
        history: int = 0,
        history_decay: float = 0.5,
    ) -> None:
        super().__init__()
        self.dim, self.action_dim = dim, action_dim
        self.state_norm = nn.LayerNorm(dim, eps=1e-5, bias=bias)
        self.action = nn.Linear(action_dim, dim, bias=bias)
        self.action_norm = nn.LayerNorm(dim, eps=1e-5, bias=bias)
        self.expand = nn.Linear(dim * (1 + history), 4 * dim, bias=bias)
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5, bias=bias)
        self.project = nn.Linear(4 * dim, dim, bias=bias)
        self.dropout = dropout
        self.residual = residual
        self.activation = activation
        self.history = history
        self.history_decay = history_decay
        self.kernels = kernels

    def step(self, latent: Tensor, action: Tensor, mask: Tensor | None, past: Sequence[Tensor] = ()) -> Tensor:
        """Next latent [B, D] from latent [B, D], action [B, A] and a dropout mask [B, 4D] or none.

        `past` are the latents before `latent`, the latest first; of them, `history` are read.
        """
        normed = self.state_norm(latent)
        fused = normed + self.action_norm(self.action(action))
        hidden = self.expand(self._with_past(fused, past) if self.history else fused)
        hidden = F.gelu(self.norm(hidden)) if self.activation == "after_norm" else self.norm(F.gelu(hidden))
        if mask is not None:
            hidden = hidden * mask
        update: Tensor = self.project(hidden)
        following: Tensor = (fused if self.residual == "sum" else normed) + update
        return following

    def _with_past(self, fused: Tensor, past: Sequence[Tensor]) -> Tensor:
        """What W1 reads, [B, D (1 + k)]."""
        parts = [fused]
        for age, latent in enumerate(past[: self.history], start=1):
            parts.append(self.state_norm(latent) * self.history_decay**age)
        missing = self.expand.in_features - len(parts) * fused.shape[1]
        return F.pad(torch.cat(parts, dim=1), (0, missing))

    def weights(self) -> RolloutWeights:
        """All parameters, as the fused op takes them; zeros for biases that are not there."""
        layers = self.state_norm, self.action, self.action_norm, self.expand, self.norm, self.project
        return RolloutWeights(*(part for layer in layers for part in (layer.weight, bias_or_zeros(layer))))

    def forward(self, first: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predicted latents [B, S, D] from first latents [B, D] and actions [B, S, A], feeding itself back.

        Raises:
            ValueError: latents or actions of another size than the predictor's.
        """
        check_sizes(self, first, actions)
        rate = self.dropout if self.training else 0.0
        on_cpu = self.kernels == "fused" and first.device.type == "cpu"
        if (self.kernels == "triton" or on_cpu) and self.history == 0:
            return rollout(
                first, actions, self.weights(), clock, dropout=rate, residual=self.residual, activation=self.activation
            )
        batch, steps, _ = actions.shape
        masks: Tensor | None = None
        if rate > 0:
            masks = dropout_mask((batch, steps, self.expand.out_features), rate, clock, SITE_PREDICTOR)
        latents = [first]
        for t in range(steps):
            past = latents[-2 : -2 - self.history : -1]
            latents.append(self.step(latents[-1], actions[:, t], None if masks is None else masks[:, t], past))
        return torch.stack(latents[1:], dim=1)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the rollout runs on."""
        if kernels == "fused" and device == "cpu":
            return {"rollout": compiled_rollout_or_plain(self.history)}
        asked = {
            "dim": (self.dim, TRITON_DIMS),
            "action_size": (self.action_dim, TRITON_ACTION_SIZES),
            "history": (self.history, (0,)),
        }
        return {"rollout": triton_or_plain(kernels, device, **asked)}


class ConvPredictor(nn.Module):
    """s' = LN(s) + W2 dropout(gelu(LN(conv3x3(LN(s) + LN(Wa a + ba))))) + b2 on maps s [c, h, w], norms over channels.

    An action a is the same in every cell. Latents come and go flattened, D = c h w.
    """

    def __init__(self, latent_shape: tuple[int, int, int], action_dim: int = 2, *, dropout: float = 0.0) -> None:
        super().__init__()
        channels, height, width = latent_shape
        self.latent_shape = latent_shape
        self.dim, self.action_dim = channels * height * width, action_dim
        self.state_norm = nn.LayerNorm(channels, eps=1e-5)
        self.action = nn.Linear(action_dim, channels)
        self.action_norm = nn.LayerNorm(channels, eps=1e-5)
        self.expand = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.norm = nn.LayerNorm(4 * channels, eps=1e-5)
        self.project = nn.Linear(4 * channels, channels)
        self.dropout = dropout

    def step(self, cells: Tensor, action: Tensor, mask: Tensor | None) -> Tensor:
        """Next cells [B, h, w, c] from cells [B, h, w, c], action [B, A] and a dropout mask [B, h, w, 4c] or none."""
        normed = self.state_norm(cells)
        fused = normed + self.action_norm(self.action(action))[:, None, None]
        hidden = F.gelu(self.norm(self.expand(fused.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        if mask is not None:
            hidden = hidden * mask
        following: Tensor = normed + self.project(hidden)
        return following

    def forward(self, first: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predicted latents [B, S, D] from first latents [B, D] and actions [B, S, A], feeding itself back.

        Raises:
            ValueError: latents or actions of another size than the predictor's.
        """
        check_sizes(self, first, actions)
        batch, steps, _ = actions.shape
        channels, height, width = self.latent_shape
        rate = self.dropout if self.training else 0.0
        masks: Tensor | None = None
        if rate > 0:
            shape = (batch, steps, height * width * 4 * channels)
            masks = dropout_mask(shape, rate, clock, SITE_PREDICTOR).view(batch, steps, height, width, -1)
        cells = first.view(batch, *self.latent_shape).permute(0, 2, 3, 1)
        predicted = []
        for t in range(steps):
            cells = self.step(cells, actions[:, t], None if masks is None else masks[:, t])
            predicted.append(cells.permute(0, 3, 1, 2).flatten(1))
        return torch.stack(predicted, dim=1)

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """What the rollout runs on."""
        return {"rollout": PLAIN}


def check_sizes(predictor: "MLPPredictor | ConvPredictor", first: Tensor, actions: Tensor) -> None:
    """Raise ValueError unless first latents [B, D] and actions [B, S, A] are of the predictor's sizes."""
    if first.shape[-1] != predictor.dim:
        raise ValueError(f"latents: got {first.shape[-1]} numbers, expected the predictor's dim, {predictor.dim}")
    if actions.shape[-1] != predictor.action_dim:
        raise ValueError(f"actions: got {actions.shape[-1]} numbers, expected action_dim, {predictor.action_dim}")
