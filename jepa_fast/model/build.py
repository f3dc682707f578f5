"""The world model that a configuration describes."""

from jepa_fast.config import AnyModelConfig, FeatureModelConfig, Kernels
from jepa_fast.model.feature_world import FeatureWorld
from jepa_fast.model.world import World

AnyWorld = World | FeatureWorld


def build_world(config: AnyModelConfig, kernels: Kernels = "reference") -> AnyWorld:
    """A world with fresh weights, drawn from torch's global generator; on features, all is plain PyTorch."""
    return FeatureWorld(config) if isinstance(config, FeatureModelConfig) else World(config, kernels)
