"""The ops as functions of tensors, each with its gradient: compiled where this machine has them, else plain PyTorch.

`jepa_fast.kernels.<op>` documents each in full, with its reference.
"""

from jepa_fast.kernels.convnext_block import convnext_block as convnext_block
from jepa_fast.kernels.dropout import dropout_mask as dropout_mask
from jepa_fast.kernels.dwconv_norm import dwconv_norm as dwconv_norm
from jepa_fast.kernels.rollout import RolloutWeights as RolloutWeights
from jepa_fast.kernels.rollout import rollout as rollout
from jepa_fast.kernels.vicreg import vicreg as vicreg

__all__ = ["RolloutWeights", "convnext_block", "dropout_mask", "dwconv_norm", "rollout", "vicreg"]
