"""The predictor: one MLP that moves a state by an action, applied to its own output step after step."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import Kernels
from jepa_fast.kernels.rollout import RolloutWeights, rollout
from jepa_fast.model.biases import bias_or_zeros
from jepa_fast.model.dropout import SITE_PREDICTOR, dropout_mask


class Predictor(nn.Module):
    """s' = residual + W2 dropout(gelu(LN(W1 r + b1))) + b2 with r = LN(s) + LN(Wa a + ba).

    The residual is r itself ("sum") or the normalised state LN(s) alone ("state"). With activation "before_norm" the
    hidden layer is LN(gelu(h)) in place of gelu(LN(h)).
    """

    def __init__(
        self,
        dim: int,
        dropout: float,
        residual: Literal["sum", "state"],
        activation: Literal["after_norm", "before_norm"],
        kernels: Kernels = "reference",
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.state_norm = nn.LayerNorm(dim, eps=1e-5, bias=bias)
        self.action = nn.Linear(2, dim, bias=bias)
        self.action_norm = nn.LayerNorm(dim, eps=1e-5, bias=bias)
        self.expand = nn.Linear(dim, 4 * dim, bias=bias)
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5, bias=bias)
        self.project = nn.Linear(4 * dim, dim, bias=bias)
        self.dropout = dropout
        self.residual = residual
        self.activation = activation
        self.kernels = kernels

    def step(self, state: Tensor, action: Tensor, mask: Tensor | None) -> Tensor:
        """Next state [B, D] from state [B, D], action [B, 2] and a dropout mask [B, 4D] or none."""
        normed = self.state_norm(state)
        fused = normed + self.action_norm(self.action(action))
        hidden = self.expand(fused)
        hidden = F.gelu(self.norm(hidden)) if self.activation == "after_norm" else self.norm(F.gelu(hidden))
        if mask is not None:
            hidden = hidden * mask
        update: Tensor = self.project(hidden)
        following: Tensor = (fused if self.residual == "sum" else normed) + update
        return following

    def weights(self) -> RolloutWeights:
        """All parameters, as the fused op takes them; zeros for biases that are not there."""
        layers = self.state_norm, self.action, self.action_norm, self.expand, self.norm, self.project
        return RolloutWeights(*(part for layer in layers for part in (layer.weight, bias_or_zeros(layer))))

    def forward(self, first: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predicted states [B, T-1, D] from the first states [B, D] and actions [B, T-1, 2], feeding itself back."""
        rate = self.dropout if self.training else 0.0
        if self.kernels == "triton":
            return rollout(
                first, actions, self.weights(), clock, dropout=rate, residual=self.residual, activation=self.activation
            )
        batch, steps, _ = actions.shape
        masks: Tensor | None = None
        if rate > 0:
            masks = dropout_mask((batch, steps, self.expand.out_features), rate, clock, SITE_PREDICTOR)
        state, states = first, []
        for t in range(steps):
            state = self.step(state, actions[:, t], None if masks is None else masks[:, t])
            states.append(state)
        return torch.stack(states, dim=1)
