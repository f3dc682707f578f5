"""What a step minimises: the energy of a batch, as one module whose parameters are the world's."""

import copy
import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa_fast import backends
from jepa_fast.config import RunConfig
from jepa_fast.data.batches import Batch
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.engine.profiling import Span, no_span
from jepa_fast.model.encoder import Encoder
from jepa_fast.model.energy import Energy, energy, fused_energy
from jepa_fast.model.shortcuts import BatchEncoder
from jepa_fast.model.world import World

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., object])


class Objective(nn.Module):
    """Encoder, rollout and energy of a batch; with EMA targets also the averaged encoder.

    Each of the three is compiled by itself, so that a profile tells them apart and the energy of several processes,
    which talk to each other in it, stays as it is.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: FrameSpec,
        wall_bases: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        span: Span = no_span,
    ) -> None:
        """`spec` and `wall_bases` uint8 [G, H, W] are those of the training split, the bases on the run's device."""
        super().__init__()
        self.config, self.options, self.group, self.span = config, config.recipe.energy, group, span
        self.device_type = config.device
        torch.manual_seed(config.seed)
        self.world = World(config.recipe.model, config.kernels).to(config.device)
        mode: Literal["auto", "off"] = "auto" if config.exact_shortcuts else "off"
        self.encode = BatchEncoder(self.world.encoder, spec, wall_bases, mode)
        self._encode = self._compiled(self.encode)
        self.target_encoder: Encoder | None = None
        if self.options.targets == "ema":
            self.target_encoder = copy.deepcopy(self.world.encoder).requires_grad_(False).eval()
            self._encode_targets = self._compiled(BatchEncoder(self.target_encoder, spec, wall_bases, mode))
        self._roll_out = self._compiled(self.world.predictor)
        ops = backends.describe_ops(config.kernels, config.device, config.recipe.model.dim)
        for name, backend in ops.items():
            logger.info("%s: %s", name, backend)
        self._energy = energy if ops["vicreg"] == backends.PLAIN else fused_energy
        if group is None:
            self._energy = self._compiled(self._energy)
        elif config.compile:
            logger.info("compile: encoder and predictor; the energy of %d processes runs as it is", group.size())

    def _compiled(self, function: Function) -> Function:
        return torch.compile(function, dynamic=False) if self.config.compile else function  # type: ignore[return-value]

    def autocast(self) -> torch.autocast:
        """What encoder and predictor run under."""
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.config.amp == "bf16")

    def forward(self, batch: Batch, weights: Tensor) -> tuple[Energy, Tensor]:
        """The energy of `batch`, terms weighted by float32 [3], and the predicted states [B, T-1, D]."""
        clock = self.world.dropout_clock
        targets: Tensor | None = None
        with self.autocast():
            with self.span("encode"):
                encoded = self._encode(batch, clock)
                if self.target_encoder is not None:
                    with torch.no_grad():
                        targets = self._encode_targets(batch, clock)[:, 1:]
            with self.span("rollout"):
                predicted = self._roll_out(encoded[:, 0], batch.actions, clock)
        with self.span("energy"):
            terms = self._energy(predicted, encoded[:, 1:], weights, self.options, targets, self.group)
        return terms, predicted.detach()

    @torch.no_grad()
    def average(self, share: Tensor) -> None:
        """Move the averaged encoder, if there is one, towards the trained one by `share` of the way, a scalar."""
        if self.target_encoder is None:
            return
        slow: list[Tensor] = list(self.target_encoder.parameters())
        fast: list[Tensor] = list(self.world.encoder.parameters())
        way = torch._foreach_sub(fast, slow)
        torch._foreach_mul_(way, share)
        torch._foreach_add_(slow, list(way))
