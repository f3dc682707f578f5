"""From a batch to what is minimised: encoder and objective as one module whose parameters are the world's."""

import copy
import logging
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa_fast import backends
from jepa_fast.config import EnergyConfig, RunConfig
from jepa_fast.data.batches import Batch, GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.two_rooms.flips import Flips
from jepa_fast.kernels import dispatch
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.jepa import World
from jepa_fast.models.registry import build_world
from jepa_fast.models.sparse_encoder import SparseEncoder
from jepa_fast.objectives.objective import Execution, Function, Span, Terms, choose_objective, no_span

logger = logging.getLogger(__name__)


class Forward(nn.Module):
    """The world on batches of a split; with EMA targets it also holds the averaged encoder.

    Encoder and the objective's parts are compiled each by itself, so that a profile tells them apart; what several
    processes exchange in the middle of it stays uncompiled.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: FrameSpec,
        bases: GroupBases = (),
        group: dist.ProcessGroup | None = None,
        span: Span = no_span,
    ) -> None:
        """`spec` and `bases` are those of the training split, the bases on the run's device."""
        super().__init__()
        self.config, self.span = config, span
        torch.manual_seed(config.seed)
        self.world = build_world(config.recipe.model, config.kernels).to(config.device)
        mode: Literal["auto", "off"] = "auto" if config.exact_shortcuts else "off"
        self._flip: Callable[[Batch, Tensor], Batch] | None = None
        if config.recipe.flips:
            flips = Flips(spec, bases)
            self._flip, bases = self._compiled(flips), flips.bases
        self.encode = self.world.batch_encoder(spec, bases, mode)
        self._encode = self._compiled(self.encode)
        self.target_encoder: Encoder | None = None
        if isinstance(config.recipe.energy, EnergyConfig) and config.recipe.energy.targets == "ema":
            assert isinstance(self.world, World)
            self.target_encoder = copy.deepcopy(self.world.encoder).requires_grad_(False).eval()
            self._encode_targets = self._compiled(SparseEncoder(self.target_encoder, spec, bases, mode))
            self._kept = config.recipe.energy.ema_decay
        ops = backends.describe_ops(config.kernels, config.device, config.recipe.model)
        fused = ops["vicreg"] != dispatch.PLAIN
        if not isinstance(config.recipe.energy, EnergyConfig):
            del ops["vicreg"]
            ops[config.recipe.energy.kind] = dispatch.PLAIN
        for name, backend in ops.items():
            logger.info("%s: %s", name, backend)
        if config.compile and group is not None:
            logger.info("compile: encoder and predictor; what %d processes exchange runs as it is", group.size())
        execution = Execution(self._compiled, span, group)
        self.objective = choose_objective(self.world, config.recipe.energy, fused, execution)

    def _compiled(self, function: Function) -> Function:
        return torch.compile(function, dynamic=False) if self.config.compile else function  # type: ignore[return-value]

    def autocast(self) -> torch.autocast:
        """What encoder and predictor run under."""
        return torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.amp == "bf16")

    def forward(self, batch: Batch, weights: Tensor) -> tuple[Terms, Tensor]:
        """What the objective says of `batch`, weighted as `energy_weights` describes; predictions [B, T-1, D]."""
        clock = self.world.dropout_clock
        targets: Tensor | None = None
        if self._flip is not None:
            batch = self._flip(batch, clock)
        with self.autocast():
            with self.span("encode"):
                encoded = self._encode(batch, clock)
                if self.target_encoder is not None:
                    with torch.no_grad():
                        targets = self._encode_targets(batch, clock)[:, 1:]
            return self.objective(encoded, batch.actions, clock, weights, targets)

    @torch.no_grad()
    def average(self, alive: Tensor) -> None:
        """Let the averaged encoder, if there is one, follow the trained one by a step where `alive` is 1, not 0."""
        if self.target_encoder is None:
            return
        assert isinstance(self.world, World)
        slow: list[Tensor] = list(self.target_encoder.parameters())
        fast: list[Tensor] = list(self.world.encoder.parameters())
        way = torch._foreach_sub(fast, slow)
        torch._foreach_mul_(way, alive * (1 - self._kept))
        torch._foreach_add_(slow, list(way))
