"""From a batch to what is minimised: encoder and objective as one module whose parameters are the model's."""

import copy
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa_fast.config import RunConfig
from jepa_fast.data.batches import Batch, GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.two_rooms.flips import Flips
from jepa_fast.models.model import Model
from jepa_fast.objectives.objective import Execution, Function, Loss, Span, Weights, no_span

logger = logging.getLogger(__name__)


class Forward(nn.Module):
    """The model on batches of a split; where its objective asks for EMA targets it also holds the averaged encoder.

    Encoder and the objective's parts are compiled each by itself, so that a profile tells them apart; what several
    processes exchange in the middle of it stays uncompiled.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        spec: FrameSpec,
        bases: GroupBases = (),
        group: dist.ProcessGroup | None = None,
        span: Span = no_span,
    ) -> None:
        """`spec` and `bases` are those of the training split, model and bases on the device."""
        super().__init__()
        self.config, self.span = config, span
        self.model = model
        mode: Literal["auto", "off"] = "auto" if config.sparse else "off"
        self._flip: Callable[[Batch, Tensor], Batch] | None = None
        if config.recipe.flips:
            flips = Flips(spec, bases)
            self._flip, bases = self.compiled(flips), flips.bases
        self.encode = model.batch_encoder(spec, bases, mode)
        self._encode = self.compiled(self.encode)
        self.target_encoder: nn.Module | None = None
        self._decay = model.objective.ema_decay
        if self._decay is not None:
            self.target_encoder = copy.deepcopy(model.encoder).requires_grad_(False).eval()
            self._encode_targets = self.compiled(model.batch_encoder(spec, bases, mode, self.target_encoder))
        for name, backend in model.ops(config.kernels, config.device).items():
            logger.info("%s: %s", name, backend)
        if config.compile and group is not None:
            logger.info("compile: encoder and predictor; what %d processes exchange runs as it is", group.size())
        self.objective = model.objective.bind(model, Execution(self.compiled, span, group, config.kernels))

    def compiled(self, function: Function) -> Function:
        """`function` as the run compiles its parts."""
        if not self.config.compile:
            return function
        # On a GPU Inductor would time variants of a sum and take the fastest, another one in every run.
        options: dict[str, str | int | bool | Callable[..., Any]] | None = None
        if self.config.device == "cuda":
            options = {"deterministic": True, "shape_padding": False}
        return torch.compile(function, dynamic=False, options=options)  # type: ignore[return-value]

    def autocast(self) -> torch.autocast:
        """What encoder and predictor run under."""
        return torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.amp == "bf16")

    def forward(self, batch: Batch, weights: Weights) -> tuple[Loss, Tensor]:
        """What the objective says of `batch` with these weights; predicted latents [B, T-1, D]."""
        clock = self.model.dropout_clock
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
        if self.target_encoder is None or self._decay is None:
            return
        slow: list[Tensor] = list(self.target_encoder.parameters())
        fast: list[Tensor] = list(self.model.encoder.parameters())
        way = torch._foreach_sub(fast, slow)
        torch._foreach_mul_(way, alive * (1 - self._decay))
        torch._foreach_add_(slow, list(way))
        # Statistics that a module keeps of its inputs are averages already.
        for kept, now in zip(self.target_encoder.buffers(), self.model.encoder.buffers(), strict=True):
            kept.copy_(now)
