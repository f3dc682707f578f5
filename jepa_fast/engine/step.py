"""One optimiser step: batch in, energy out, nothing read back."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jepa_fast.config import RunConfig
from jepa_fast.data.batches import Batch, GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.engine.checkpoint import State
from jepa_fast.engine.distributed import ALONE, Ranks, averaging
from jepa_fast.engine.forward import Forward
from jepa_fast.engine.freezing import FreezingAdam
from jepa_fast.engine.graph import CapturedStep
from jepa_fast.engine.schedule import schedule_table
from jepa_fast.engine.stages import StageClock
from jepa_fast.objectives.objective import Span, no_span

# Steps before the capture; DistributedDataParallel settles its buckets in the first ten.
WARM_UPS, WARM_UPS_OF_MANY = 3, 11


class StepResult(NamedTuple):
    """What a step leaves on the device; reading it is what synchronises."""

    readings: Tensor  # float32 [5]: the total, the recipe's three terms, the norm of the gradient before clipping
    states: Tensor  # [B, T-1, D] predictions, detached


class Trainer:
    """The world, its optimiser and, with EMA targets, the averaged encoder; `step` advances all of them.

    Every step is a pure function of (state, batch): no generator is consumed, nothing is read back. The number of the
    next step is in the state, on the device, where the step looks up its learning rate, its energy weights and what
    stands still in it; batches are copied into tensors that stay in place. So the step can be captured, and is the same
    code where it is not.

    A step whose energy or gradient is not finite changes nothing, and neither does any step after it: `failed` is then
    raised, the readings stay those of that step, and the state is the one it began with.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: FrameSpec,
        bases: GroupBases = (),
        ranks: Ranks = ALONE,
        span: Span = no_span,
    ) -> None:
        """`spec` and `bases` are those of the training split, the bases on the run's device."""
        self.config, self._ranks, self._span = config, ranks, span
        self.device = torch.device(config.device)
        self.forward = Forward(config, spec, bases, ranks.group, span)
        self.world, self.target_encoder = self.forward.world, self.forward.target_encoder
        self._forward: nn.Module = self.forward
        if ranks.group is not None:
            self._forward = averaging(self.forward, ranks.group)
        self.clock = self.world.dropout_clock
        self.clock.copy_(torch.tensor([config.seed, 0, ranks.rank * config.batch_size // ranks.count]))
        self._rate = torch.zeros((), device=self.device)
        self.optimizer = FreezingAdam(self.world, config.recipe, self._rate)
        self.stages = StageClock(config.recipe, config.steps)
        # What one capture or one reducer is to serve has to be the same in all stages; what freezes nothing is.
        freezes = any(stage.frozen for stage in config.recipe.stages)
        self._same_in_all_stages = config.capture or ranks.group is not None or not freezes
        self._begun = 0  # steps
        self._schedule = self._table().to(self.device)
        self.failed = torch.zeros((), device=self.device)  # 0 or 1
        self.names = ("total", *config.recipe.terms, "gradient_norm")  # of the readings
        self._readings = torch.zeros(len(self.names), device=self.device)
        self._batch: Batch | None = None
        self._advance: Callable[[], StepResult] = self.advance
        if config.capture:
            self._advance = CapturedStep(self.advance, WARM_UPS if ranks.group is None else WARM_UPS_OF_MANY)

    def step(self, batch: Batch) -> StepResult:
        """The next step, on this process's rows of a batch, on whatever device they are."""
        if self._batch is None:
            self._batch = batch.placed(self.device)
        else:
            self._batch.copy_(batch)
        if not self._same_in_all_stages:
            self.optimizer.require_gradients(self.stages.number(self._begun))
        self._begun += 1
        return self._advance()

    def advance(self) -> StepResult:
        """The step on the batch in place: device work alone, from tensors that stay in place into such tensors."""
        assert self._batch is not None
        scheduled = self._schedule.index_select(0, self.clock[1:2])[0]
        parts = len(self.optimizer.parts)
        weights, frozen = scheduled[1:-parts], scheduled[-parts:]
        self._rate.copy_(scheduled[0])
        self.optimizer.zero_grad()
        terms, states = self._forward(self._batch, weights)
        with self._span("backward"):
            # The energy is that of all processes, and gradients are averaged over them where their sum is wanted.
            torch.autograd.backward(terms.total * self._ranks.count)
        with self._span("optimiser"), torch.no_grad():
            self.optimizer.mask(frozen)
            norm = nn.utils.clip_grad_norm_(self.world.parameters(), self.config.recipe.optimizer.clip_norm)
            readings = torch.stack([*terms, norm]).to(torch.float32)
            self._readings.copy_(torch.where(self.failed > 0, self._readings, readings))
            self.failed.copy_(torch.maximum(self.failed, 1 - readings.isfinite().all().to(torch.float32)))
            self.optimizer.step(frozen, self.failed)
            alive = 1 - self.failed
            self.forward.average(alive)
            self.clock[1].add_(alive.to(torch.int64))
        return StepResult(self._readings, states)

    def end_stage(self, done: int) -> None:
        """Let the next stage begin after `done` steps, in place (waits for the device)."""
        self.stages.end_stage(done)
        self._schedule.copy_(self._table())

    def _table(self) -> Tensor:
        """What each step takes, float32 [steps, .]: what `schedule_table` gives, then which parts stand still."""
        stages = torch.from_numpy(self.stages.numbers(np.arange(self.config.steps)))
        return torch.cat(
            [schedule_table(self.config.steps, self.config.recipe, self.stages), self.optimizer.frozen[stages]], dim=1
        )

    def rate(self, number: int) -> float:
        """The learning rate of step `number`, 0 is the first."""
        return float(self._schedule[number, 0])

    def state(self) -> State:
        """Everything that the next step depends on, apart from configuration and data (synchronises)."""
        return {
            "step": int(self.clock[1]),
            "world": self.world.state_dict(),
            "target_encoder": None if self.target_encoder is None else self.target_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stages": self.stages.state(),
            "generators": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
        }

    def restore(self, state: State) -> None:
        """Take over what `state` returned; before the first step.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another model or optimiser.
        """
        self.world.load_state_dict(state["world"])
        if self.target_encoder is not None:
            self.target_encoder.load_state_dict(state["target_encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if "stages" in state:  # checkpoints that are older than triggers have none
            self.stages.restore(state["stages"])
            self._schedule.copy_(self._table())
        self.clock[1] = self._begun = state["step"]
        torch.set_rng_state(state["generators"]["cpu"])
        if self.device.type == "cuda" and state["generators"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.device)
