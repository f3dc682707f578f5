"""The world model and its energy in plain PyTorch: readable, and the reference for every kernel."""
