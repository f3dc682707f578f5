"""Trajectories: simulator, shards, sampler, loaders."""
