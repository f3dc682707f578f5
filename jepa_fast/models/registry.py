"""The world model that a configuration describes."""

from jepa_fast.config import AnyModelConfig, ApartModelConfig, FeatureModelConfig, Kernels, PixelModelConfig
from jepa_fast.models.gated_convnext import GatedConvNeXt
from jepa_fast.models.gated_features import GatedFeatures
from jepa_fast.models.gated_pixels import GatedPixels
from jepa_fast.models.jepa import World

AnyWorld = World | GatedFeatures | GatedPixels | GatedConvNeXt


def build_world(config: AnyModelConfig, kernels: Kernels = "reference") -> AnyWorld:
    """A world with fresh weights, drawn from torch's global generator.

    One-step worlds are plain PyTorch, but for the blocks of the one that has ConvNeXt branches.
    """
    if isinstance(config, FeatureModelConfig):
        return GatedFeatures(config)
    if isinstance(config, PixelModelConfig):
        return GatedPixels(config)
    return GatedConvNeXt(config, kernels) if isinstance(config, ApartModelConfig) else World(config, kernels)
