"""jepa_fast: train a JEPA world model as fast as the hardware can."""

__version__ = "0.1.0"
