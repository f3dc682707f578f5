"""The model's formulas in plain NumPy, written without looking at the PyTorch code. Weights are dicts of arrays."""

import math

import numpy as np


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def branch_states(image, weights):
    """One image [H, W] through one branch, in plain loops over taps and cells: its state [D]."""
    height, width = image.shape
    x = image[..., None] * weights["stem.weight"].reshape(-1)  # [H, W, C]
    blocks = sum(name.endswith("dwconv.weight") for name in weights)
    for block in range(blocks):
        prefix = f"blocks.{block}."
        padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
        kernel = weights[prefix + "dwconv.weight"][:, 0]  # [C, 7, 7]
        z = sum(padded[i : i + height, j : j + width] * kernel[:, i, j] for i in range(7) for j in range(7))
        u = layer_norm(z, weights[prefix + "norm.weight"], weights[prefix + "norm.bias"])
        x = x + gelu(u @ weights[prefix + "expand.weight"].T) @ weights[prefix + "project.weight"].T
    pooled = np.empty((x.shape[-1], 6, 6))
    for i in range(6):
        for j in range(6):
            rows = slice(i * height // 6, -(-(i + 1) * height // 6))
            columns = slice(j * width // 6, -(-(j + 1) * width // 6))
            pooled[:, i, j] = x[rows, columns].mean((0, 1))
    out = weights["fc.weight"] @ pooled.reshape(-1) + weights["fc.bias"]
    return layer_norm(out, weights["norm.weight"], weights["norm.bias"]) if "norm.weight" in weights else out


def predictor_step(state, action, weights, residual="sum", activation="after_norm"):
    """The state [D] that follows a state [D] and an action [2]."""
    normed = layer_norm(state, weights["state_norm.weight"], weights["state_norm.bias"])
    moved = layer_norm(
        weights["action.weight"] @ action + weights["action.bias"],
        weights["action_norm.weight"],
        weights["action_norm.bias"],
    )
    r = normed + moved
    hidden = weights["expand.weight"] @ r + weights["expand.bias"]
    norm = weights["norm.weight"], weights["norm.bias"]
    hidden = gelu(layer_norm(hidden, *norm)) if activation == "after_norm" else layer_norm(gelu(hidden), *norm)
    update = weights["project.weight"] @ hidden + weights["project.bias"]
    return (r if residual == "sum" else normed) + update
