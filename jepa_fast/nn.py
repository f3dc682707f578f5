"""The modules that models are made of, for models of your own."""

from jepa_fast.models.convnext import ConvNeXtBlock as ConvNeXtBlock
from jepa_fast.models.convnext import Encoder as ConvNeXtEncoder
from jepa_fast.models.predictor import ConvPredictor as ConvPredictor
from jepa_fast.models.predictor import MLPPredictor as MLPPredictor

__all__ = ["ConvNeXtBlock", "ConvNeXtEncoder", "ConvPredictor", "MLPPredictor"]
