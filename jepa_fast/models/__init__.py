"""The models in plain PyTorch that calls ops: readable, and the reference for every kernel."""
