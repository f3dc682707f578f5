"""The world model that a configuration describes."""

from jepa_fast.config import AnyModelConfig, FeatureModelConfig, Kernels, PixelModelConfig
from jepa_fast.model.feature_world import FeatureWorld
from jepa_fast.model.pixel_world import PixelWorld
from jepa_fast.model.world import World

AnyWorld = World | FeatureWorld | PixelWorld


def build_world(config: AnyModelConfig, kernels: Kernels = "reference") -> AnyWorld:
    """A world with fresh weights, drawn from torch's global generator; one-step worlds are all plain PyTorch."""
    if isinstance(config, FeatureModelConfig):
        return FeatureWorld(config)
    return PixelWorld(config) if isinstance(config, PixelModelConfig) else World(config, kernels)
