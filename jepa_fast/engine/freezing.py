"""Adam for a model whose modules may stand still for a stage.

Parameters that freeze in the same stages have a fused Adam of their own, which skips itself where a flag on the device
is 1, as it does under gradient scaling: weights, moments and count of steps keep their bits. The flag is looked up in
every step like a learning rate, so that a step captured once serves all stages: it computes gradients of what is frozen
and throws them away. Steps that are launched one by one do not compute them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.config import Recipe
from jepa_fast.errors import require


class Part:
    """Parameters that freeze in the same stages, and their Adam."""

    def __init__(
        self, parameters: list[nn.Parameter], frozen: tuple[bool, ...], learning_rate: Tensor, weight_decay: float
    ) -> None:
        """`frozen` in which stages; `learning_rate` is a scalar on the device."""
        self.parameters, self.frozen = parameters, frozen
        self.adam = torch.optim.Adam(
            parameters,
            lr=learning_rate,
            weight_decay=weight_decay,
            fused=True,
            capturable=learning_rate.device.type == "cuda",
        )
        # The fused update skips itself where this is 1.
        self.skipped = torch.zeros((), device=learning_rate.device)
        self.adam.found_inf = self.skipped  # type: ignore[attr-defined]


class FreezingAdam:
    """One Adam for each part of a model; a model of which nothing ever freezes is one part."""

    def __init__(self, model: nn.Module, recipe: Recipe, learning_rate: Tensor) -> None:
        """`learning_rate` is a scalar on the device.

        Raises:
            InputError: a stage freezes a module that the model does not have, or everything.
        """
        self._learning_rate = learning_rate
        stages = [_parameters_of(model, stage.frozen) for stage in recipe.stages]
        parts: dict[tuple[bool, ...], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            parts.setdefault(tuple(name in frozen for frozen in stages), []).append(parameter)
        decay = recipe.optimizer.weight_decay
        self.parts = [Part(parameters, frozen, learning_rate, decay) for frozen, parameters in parts.items()]
        for number, stage in enumerate(recipe.stages):
            moving = any(not part.frozen[number] for part in self.parts)
            require(moving, "stage.frozen", ", ".join(stage.frozen), "modules that leave something to be learned")

    @property
    def frozen(self) -> Tensor:
        """Which parts stand still in which stage, float32 [stages, parts], 0 or 1; on the CPU."""
        return torch.tensor([part.frozen for part in self.parts], dtype=torch.float32).T

    def require_gradients(self, stage: int) -> None:
        """From now on compute gradients of what does not stand still in a stage, and of nothing else."""
        for part in self.parts:
            for parameter in part.parameters:
                parameter.requires_grad_(not part.frozen[stage])

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def mask(self, frozen: Sequence[Tensor]) -> None:
        """Make gradients of parts that stand still zero, so that no norm counts them; `frozen` is 0 or 1 for each."""
        for part, flag in zip(self.parts, frozen, strict=True):
            gradients = [one.grad for one in part.parameters if one.grad is not None]
            if gradients and any(part.frozen):
                torch._foreach_mul_(gradients, 1 - flag)

    @torch.no_grad()
    def step(self, frozen: Sequence[Tensor], failed: Tensor) -> None:
        """Update the parts that do not stand still, and none where `failed` is 1."""
        for part, flag in zip(self.parts, frozen, strict=True):
            part.skipped.copy_(torch.maximum(flag, failed))
            part.adam.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: of a single part, what its Adam gives."""
        states = [part.adam.state_dict() for part in self.parts]
        return states[0] if len(states) == 1 else {"parts": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError, ValueError: the state is of another model or of other stages.
        """
        states = [state] if len(self.parts) == 1 else state["parts"]
        for part, one in zip(self.parts, states, strict=True):
            part.adam.load_state_dict(one)
            for group in part.adam.param_groups:
                # Loading puts copies in their place, and flags of the device that the state was saved on.
                group["lr"] = self._learning_rate
                group["capturable"] = self._learning_rate.device.type == "cuda"


def _parameters_of(model: nn.Module, modules: tuple[str, ...]) -> set[str]:
    """Names of the parameters inside modules of the model. Raises InputError for one that has none."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for module in modules:
        inside = {name for name in names if name.startswith(f"{module}.")}
        require(
            bool(inside), "stage.frozen", module, f"a module with parameters, such as {names[0].rpartition('.')[0]}"
        )
        found |= inside
    return found
