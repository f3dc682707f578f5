"""One optimiser step: batch in, loss out, nothing read back."""

from collections.abc import Callable
from dataclasses import replace
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
from jepa_fast.engine.schedule import LEARNING_RATE, schedule, stages_of
from jepa_fast.models.model import Model
from jepa_fast.models.registry import build_model
from jepa_fast.objectives.objective import Span, no_span

# Steps before the capture; DistributedDataParallel settles its buckets in the first ten.
WARM_UPS, WARM_UPS_OF_MANY = 3, 11


class StepResult(NamedTuple):
    """What a step leaves on the device; reading it is what synchronises."""

    metrics: Tensor  # float32 [terms + 2]: the total, the objective's terms, the norm of the gradient before clipping
    latents: Tensor  # [B, T-1, D] predictions, detached


def settled(terms: list[Tensor], metrics: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
    """What `metrics` and `failed` become after a step that ended with `terms`: once failed, nothing changes."""
    new = torch.stack(terms).to(torch.float32)
    return torch.where(failed > 0, metrics, new), torch.maximum(failed, 1 - new.isfinite().all().to(torch.float32))


class Trainer:
    """The model, its optimiser and, with EMA targets, the averaged encoder; `step` advances all of them.

    Every step is a pure function of (state, batch): no generator is consumed, nothing is read back. The number of the
    next step is in the state, on the device, where the step looks up its learning rate, the weights of its terms and
    what stands still in it; batches are copied into tensors that stay in place. So the step can be captured, and is the
    same code where it is not.

    A step whose loss or gradient is not finite changes nothing, and neither does any step after it: `failed` is then
    raised, the metrics stay those of that step, and the state is the one it began with.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: FrameSpec,
        bases: GroupBases = (),
        ranks: Ranks = ALONE,
        span: Span = no_span,
        model: Model | None = None,
    ) -> None:
        """Make everything ready.

        Args:
            config: of the run.
            spec: of the training split's frames.
            bases: base images of that split, as `group_bases` gives them on the run's device.
            ranks: the processes that share the run.
            span: what marks parts of a step in a profile.
            model: what is trained, its weights and its objective included; by default built from the configuration.

        Raises:
            InputError: frames that the model cannot take, or a stage that freezes what it does not have.
        """
        torch.manual_seed(config.seed)
        # What is called float32 is: convolutions on tensor cores keep ten bits of a factor. torch allows it by default.
        torch.backends.cudnn.allow_tf32 = False
        # Of cuDNN's ways to a gradient some add by atomics, and by default it may take one.
        torch.backends.cudnn.deterministic = True
        if model is None:
            model = build_model(config.recipe.model, config.recipe.objective, config.kernels)
        # What a model in hand says of itself is what is run.
        recipe = replace(config.recipe, model=model.config, objective=model.objective.config)
        self.config = config = replace(config, recipe=recipe)
        self._ranks, self._span = ranks, span
        self.device = torch.device(config.device)
        self.model = model.to(self.device).train()
        self.forward = Forward(config, self.model, spec, bases, ranks.group, span)
        self.target_encoder = self.forward.target_encoder
        self._forward: nn.Module = self.forward
        if ranks.group is not None:
            self._forward = averaging(self.forward, ranks.group)
        self.clock = self.model.dropout_clock
        self.clock.copy_(torch.tensor([config.seed, 0, ranks.rank * config.batch_size // ranks.count]))
        self._learning_rate = torch.zeros((), device=self.device)
        self.optimizer = FreezingAdam(self.model, recipe, self._learning_rate)
        # What one capture or one reducer is to serve has to be the same in all stages; what freezes nothing is.
        freezes = any(stage.frozen for stage in recipe.stages)
        self._same_in_all_stages = config.capture or ranks.group is not None or not freezes
        self._begun = 0  # steps
        self._schedule = schedule(config.steps, recipe)
        self._stages = stages_of(recipe, config.steps, np.arange(config.steps))
        # A row for each step: the schedule's columns, then which parts stand still.
        frozen = self.optimizer.frozen[torch.from_numpy(self._stages)]
        self._table = torch.cat([self._schedule.table, frozen], dim=1).to(self.device)
        self.failed = torch.zeros((), device=self.device)  # 0 or 1
        self.names = ("total", *self.forward.objective.names, "gradient_norm")  # of the metrics
        self._metrics = torch.zeros(len(self.names), device=self.device)
        # On a GPU these few numbers take a dozen launches, which become one.
        self._settled = self.forward.compiled(settled) if self.device.type == "cuda" else settled
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
            self.optimizer.require_gradients(self.stage(self._begun))
        self._begun += 1
        return self._advance()

    def advance(self) -> StepResult:
        """The step on the batch in place: device work alone, from tensors that stay in place into such tensors."""
        assert self._batch is not None
        row = self._table.index_select(0, self.clock[1:2])[0].unbind()
        scheduled = dict(zip(self._schedule.names, row, strict=False))
        frozen = row[len(scheduled) :]
        self._learning_rate.copy_(scheduled[LEARNING_RATE])
        self.optimizer.zero_grad()
        loss, latents = self._forward(self._batch, scheduled)
        with self._span("backward"):
            # The loss is that of all processes, and gradients are averaged over them where their sum is wanted.
            torch.autograd.backward(loss.total * self._ranks.count)
        with self._span("optimiser"), torch.no_grad():
            self.optimizer.mask(frozen)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.recipe.optimizer.clip_norm)
            terms = [loss.total, *(loss.terms[name] for name in self.forward.objective.names), norm]
            metrics, failed = self._settled(terms, self._metrics, self.failed)
            self._metrics.copy_(metrics)
            self.failed.copy_(failed)
            self.optimizer.step(frozen, self.failed)
            alive = 1 - self.failed
            self.forward.average(alive)
            self.clock[1].add_(alive.to(torch.int64))
        return StepResult(self._metrics, latents)

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Names of what each step takes from the schedule, the weights of the objective's terms among it."""
        return self._schedule.names

    def learning_rate(self, number: int) -> float:
        """The learning rate of step `number`, 0 is the first."""
        return float(self._schedule.column(LEARNING_RATE)[number])

    def stage(self, number: int) -> int:
        """The stage that step `number` is in; 0 is the first of both."""
        return int(self._stages[number])

    def state(self) -> State:
        """Everything that the next step depends on, apart from configuration and data (synchronises)."""
        return {
            "step": int(self.clock[1]),
            "model": self.model.state_dict(),
            "target_encoder": None if self.target_encoder is None else self.target_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
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
        self.model.load_state_dict(state["model"])
        if self.target_encoder is not None:
            self.target_encoder.load_state_dict(state["target_encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.clock[1] = self._begun = state["step"]
        torch.set_rng_state(state["generators"]["cpu"])
        if self.device.type == "cuda" and state["generators"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.device)
