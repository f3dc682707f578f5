"""The predictor: one MLP that moves a state by an action, applied to its own output step after step."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import Kernels
from jepa_fast.kernels.dropout import SITE_PREDICTOR, dropout_mask
from jepa_fast.kernels.rollout import RolloutWeights, rollout
from jepa_fast.models.biases import bias_or_zeros


class Predictor(nn.Module):
    """s' = residual + W2 dropout(gelu(LN(W1 r + b1))) + b2 with r = LN(s) + LN(Wa a + ba).

    The residual is r itself ("sum") or the normalised state LN(s) alone ("state"). With activation "before_norm" the
    hidden layer is LN(gelu(h)) in place of gelu(LN(h)).

    With a history of k, W1 reads [r; d LN(s_1); ..; d^k LN(s_k)] in place of r: s_j the state j steps before s, the
    encoding that a rollout starts from among them, d the decay. What would be before that is zero.
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
        history: int = 0,
        history_decay: float = 0.5,
    ) -> None:
        super().__init__()
        self.state_norm = nn.LayerNorm(dim, eps=1e-5, bias=bias)
        self.action = nn.Linear(2, dim, bias=bias)
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

    def step(self, state: Tensor, action: Tensor, mask: Tensor | None, past: Sequence[Tensor] = ()) -> Tensor:
        """Next state [B, D] from state [B, D], action [B, 2] and a dropout mask [B, 4D] or none.

        `past` are the states before `state`, the latest first; of them, `history` are read.
        """
        normed = self.state_norm(state)
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
        for age, state in enumerate(past[: self.history], start=1):
            parts.append(self.state_norm(state) * self.history_decay**age)
        missing = self.expand.in_features - len(parts) * fused.shape[1]
        return F.pad(torch.cat(parts, dim=1), (0, missing))

    def weights(self) -> RolloutWeights:
        """All parameters, as the fused op takes them; zeros for biases that are not there."""
        layers = self.state_norm, self.action, self.action_norm, self.expand, self.norm, self.project
        return RolloutWeights(*(part for layer in layers for part in (layer.weight, bias_or_zeros(layer))))

    def forward(self, first: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predicted states [B, T-1, D] from the first states [B, D] and actions [B, T-1, 2], feeding itself back."""
        rate = self.dropout if self.training else 0.0
        if self.kernels == "triton" and self.history == 0:
            return rollout(
                first, actions, self.weights(), clock, dropout=rate, residual=self.residual, activation=self.activation
            )
        batch, steps, _ = actions.shape
        masks: Tensor | None = None
        if rate > 0:
            masks = dropout_mask((batch, steps, self.expand.out_features), rate, clock, SITE_PREDICTOR)
        states = [first]
        for t in range(steps):
            past = states[-2 : -2 - self.history : -1]
            states.append(self.step(states[-1], actions[:, t], None if masks is None else masks[:, t], past))
        return torch.stack(states[1:], dim=1)
