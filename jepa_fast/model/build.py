"""The world model that a configuration describes."""

from jepa_fast.config import AnyModelConfig, FeatureModelConfig
from jepa_fast.model.feature_world import FeatureWorld
from jepa_fast.model.world import World

AnyWorld = World | FeatureWorld


def build_world(config: AnyModelConfig) -> AnyWorld:
    """A world with fresh weights, drawn from torch's global generator."""
    return FeatureWorld(config) if isinstance(config, FeatureModelConfig) else World(config)
