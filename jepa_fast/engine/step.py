"""One optimiser step: batch in, energy out."""

import copy
import logging
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from jepa_fast import backends
from jepa_fast.config import EnergyConfig, RunConfig
from jepa_fast.data.batches import Batch
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.engine.checkpoint import State
from jepa_fast.engine.schedule import energy_weights, learning_rate
from jepa_fast.model.build import build_world
from jepa_fast.model.encoder import Encoder
from jepa_fast.model.shortcuts import BatchEncoder
from jepa_fast.model.tasks import Terms, choose_task
from jepa_fast.model.world import World

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What a step leaves on the device; reading it is what synchronises."""

    energy: Terms
    gradient_norm: Tensor  # before clipping
    states: Tensor  # [B, T-1, D] predictions, detached


class Trainer:
    """The world, its optimiser and, with EMA targets, the averaged encoder; `step` advances all of them.

    Every step is a pure function of (state, batch, step number): no generator is consumed, nothing is read back.
    """

    def __init__(self, config: RunConfig, spec: FrameSpec, wall_bases: Tensor | None = None) -> None:
        """`spec` and `wall_bases` uint8 [G, H, W] are those of the training split, the bases on the run's device."""
        self.config = config
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.world = build_world(config.recipe.model, config.kernels).to(self.device)
        self.world.dropout_clock[0] = config.seed
        mode: Literal["auto", "off"] = "auto" if config.exact_shortcuts else "off"
        self.encode = self.world.batch_encoder(spec, wall_bases, mode)
        self.target_encoder: Encoder | None = None
        if isinstance(config.recipe.energy, EnergyConfig) and config.recipe.energy.targets == "ema":
            assert isinstance(self.world, World)
            self.ema_decay = config.recipe.energy.ema_decay
            self.target_encoder = copy.deepcopy(self.world.encoder).requires_grad_(False).eval()
            self.encode_targets = BatchEncoder(self.target_encoder, spec, wall_bases, mode)
        ops = backends.describe_ops(config.kernels, config.device, config.recipe.model.dim)
        for name, backend in ops.items():
            logger.info("%s: %s", name, backend)
        self.task = choose_task(self.world, config.recipe.energy, ops["vicreg"] != backends.PLAIN)
        settings = config.recipe.optimizer
        self.optimizer = torch.optim.Adam(
            self.world.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._forward: Callable[[Batch, Tensor], tuple[Terms, Tensor]] = self.forward
        if config.compile:
            self._forward = torch.compile(self.forward, dynamic=False)

    def forward(self, batch: Batch, weights: Tensor) -> tuple[Terms, Tensor]:
        """The terms of `batch`, and the predicted states [B, T-1, D]."""
        clock = self.world.dropout_clock
        targets: Tensor | None = None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
            encoded = self.encode(batch, clock)
            if self.target_encoder is not None:
                with torch.no_grad():
                    targets = self.encode_targets(batch, clock)[:, 1:]
            predicted = self.task.predict(encoded, batch.actions, clock)
        return self.task.terms(predicted, encoded, weights, targets), self.task.states(predicted)

    def step(self, batch: Batch, number: int) -> StepResult:
        """Step `number` (0 is the first) of the run, on a batch on the trainer's device."""
        recipe, steps = self.config.recipe, self.config.steps
        weights = torch.tensor(energy_weights(number, steps, recipe)).to(self.device, non_blocking=True)
        self.world.dropout_clock[1] = number
        self.optimizer.zero_grad(set_to_none=True)
        terms, states = self._forward(batch, weights)
        torch.autograd.backward(terms.total)
        norm = nn.utils.clip_grad_norm_(self.world.parameters(), recipe.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, steps, recipe.optimizer.learning_rate)
        self.optimizer.step()
        if self.target_encoder is not None:
            self._average(self.target_encoder)
        return StepResult(type(terms)(*(term.detach() for term in terms)), norm, states)

    @torch.no_grad()
    def _average(self, target: Encoder) -> None:
        torch._foreach_lerp_(list(target.parameters()), list(self.world.encoder.parameters()), 1.0 - self.ema_decay)

    def state(self) -> State:
        """Everything that the next step depends on, apart from configuration and data."""
        return {
            "world": self.world.state_dict(),
            "target_encoder": None if self.target_encoder is None else self.target_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
        }

    def restore(self, state: State) -> None:
        """Take over what `state` returned.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another model or optimiser.
        """
        self.world.load_state_dict(state["world"])
        if self.target_encoder is not None:
            self.target_encoder.load_state_dict(state["target_encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generators"]["cpu"])
        if self.device.type == "cuda" and state["generators"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.device)
