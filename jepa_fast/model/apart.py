"""The predictor of states that leave the wall out: it reads agent, wall and action, and moves the agent alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.model.dropout import SITE_PREDICTOR, dropout_mask


class ApartPredictor(nn.Module):
    """s' = s + A a + W3 dropout(h + gelu(LN(W2 h + b2))) + b3 with h = gelu(LN(W1 [s; w; a] + b1)).

    W3 and b3 begin at zero: at first an action moves every state alike, which states can only follow by being linear in
    where the dot is. What stops the dot is then all that is left to the network.

    The wall's part of the first layer does not change during a rollout, and an action's does not depend on the state:
    both are computed before the loop, as all moves A a are.
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
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.move = nn.Linear(2, dim, bias=False)
        # About a third of what a pixel becomes in states of unit variance in a frame of 65.
        nn.init.normal_(self.move.weight, std=0.02)
        self.dim = dim
        self.dropout = dropout

    def step(self, state: Tensor, room: Tensor, move: Tensor, mask: Tensor | None) -> Tensor:
        """Next state [B, D] from state and move [B, D], the first layer's share of wall and action, mask [B, 4D]."""
        hidden = F.gelu(self.norm(self.state(state) + room))
        hidden = hidden + F.gelu(self.mix_norm(self.mix(hidden)))
        if mask is not None:
            hidden = hidden * mask
        following: Tensor = state + move + self.project(hidden)
        return following

    def forward(self, first: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predicted states [B, T-1, D] from the first encodings [B, 2 D], [agent; wall], and actions [B, T-1, 2]."""
        state, wall = first[:, : self.dim], first[:, self.dim :]
        rooms = self.action(actions) + self.wall(wall)[:, None]  # [B, T-1, 4D]
        moves = self.move(actions)
        masks: Tensor | None = None
        if self.training and self.dropout > 0:
            masks = dropout_mask(tuple(rooms.shape), self.dropout, clock, SITE_PREDICTOR)
        states = []
        for t in range(actions.shape[1]):
            state = self.step(state, rooms[:, t], moves[:, t], None if masks is None else masks[:, t])
            states.append(state)
        return torch.stack(states, dim=1)
