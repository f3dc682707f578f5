"""The predictor of states that leave the wall out: it reads agent, wall and action, and moves the agent alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.model.dropout import SITE_PREDICTOR, dropout_mask


class ApartPredictor(nn.Module):
    """s' = s + W3 dropout(h2 + gelu(LN(W2 h2 + b2))) + b3 with h2 = gelu(LN(W1 [s; w; a] + b1)).

    The wall's part of the first layer does not change during a rollout, and an action's does not depend on the state:
    both are computed before the loop.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        hidden = 4 * dim
        self.state = nn.Linear(dim, hidden)
        self.wall = nn.Linear(dim, hidden, bias=False)
        self.action = nn.Linear(2, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self.mix = nn.Linear(hidden, hidden)
        self.mix_norm = nn.LayerNorm(hidden, eps=1e-5)
        self.project = nn.Linear(hidden, dim)
        self.dim = dim
        self.dropout = dropout

    def step(self, state: Tensor, room: Tensor, mask: Tensor | None) -> Tensor:
        """Next state [B, D]; wall and action as they enter the first layer [B, 4D], a dropout mask [B, 4D] or none."""
        hidden = F.gelu(self.norm(self.state(state) + room))
        hidden = hidden + F.gelu(self.mix_norm(self.mix(hidden)))
        if mask is not None:
            hidden = hidden * mask
        following: Tensor = state + self.project(hidden)
        return following

    def forward(self, first: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predicted states [B, T-1, D] from the first encodings [B, 2 D], [agent; wall], and actions [B, T-1, 2]."""
        state, wall = first[:, : self.dim], first[:, self.dim :]
        rooms = self.action(actions) + self.wall(wall)[:, None]  # [B, T-1, 4D]
        masks: Tensor | None = None
        if self.training and self.dropout > 0:
            masks = dropout_mask(tuple(rooms.shape), self.dropout, clock, SITE_PREDICTOR)
        states = []
        for t in range(actions.shape[1]):
            state = self.step(state, rooms[:, t], None if masks is None else masks[:, t])
            states.append(state)
        return torch.stack(states, dim=1)
