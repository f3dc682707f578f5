"""Biases of layers that may have none."""

from torch import Tensor, nn


def bias_or_zeros(layer: nn.Linear | nn.LayerNorm) -> Tensor:
    """The layer's bias [N], or zeros that get no gradient: for ops that always take one."""
    # torch's stubs do not know that it may be None.
    bias: Tensor | None = layer.bias
    return layer.weight.new_zeros(layer.weight.shape[0]) if bias is None else bias
