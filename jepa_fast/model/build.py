"""The world model that a configuration describes."""

from jepa_fast.config import AnyModelConfig, ApartModelConfig, FeatureModelConfig, Kernels, PixelModelConfig
from jepa_fast.model.apart import ApartWorld
from jepa_fast.model.feature_world import FeatureWorld
from jepa_fast.model.pixel_world import PixelWorld
from jepa_fast.model.world import World

AnyWorld = World | FeatureWorld | PixelWorld | ApartWorld


def build_world(config: AnyModelConfig, kernels: Kernels = "reference") -> AnyWorld:
    """A world with fresh weights, drawn from torch's global generator.

    One-step worlds are plain PyTorch, but for the blocks of the one that has ConvNeXt branches.
    """
    if isinstance(config, FeatureModelConfig):
        return FeatureWorld(config)
    if isinstance(config, PixelModelConfig):
        return PixelWorld(config)
    return ApartWorld(config, kernels) if isinstance(config, ApartModelConfig) else World(config, kernels)
