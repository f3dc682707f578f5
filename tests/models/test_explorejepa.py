"""Published weights: a state dict made by hand gives the network that is described, computed in NumPy."""

import numpy as np
import pytest
import torch

from jepa_fast.errors import InputError
from jepa_fast.models.jepa import JEPA
from tests.models.numpy_jepa import branch_states, predictor_step

CHANNELS, BLOCKS, DIM = 3, 2, 10
IMAGE = 65
BRIGHTEST = 0.0942

# The original's names of one branch's and of the predictor's parameters, and the names the formulas use.
BRANCH = {
    "pwConv.weight": ("stem.weight", (CHANNELS, 1, 1, 1)),
    "fc.weight": ("fc.weight", (DIM, 36 * CHANNELS)),
    "fc.bias": ("fc.bias", (DIM,)),
    "ln.weight": ("norm.weight", (DIM,)),
    "ln.bias": ("norm.bias", (DIM,)),
}
BLOCK = {
    "dwConv.weight": ("dwconv.weight", (CHANNELS, 1, 7, 7)),
    "ln.weight": ("norm.weight", (CHANNELS,)),
    "ln.bias": ("norm.bias", (CHANNELS,)),
    "pwConv4.weight": ("expand.weight", (4 * CHANNELS, CHANNELS)),
    "pwConv.weight": ("project.weight", (CHANNELS, 4 * CHANNELS)),
}
PREDICTOR = {
    "state_ln": ("state_norm", (DIM,)),
    "action_linear": ("action", (DIM, 2)),
    "action_ln": ("action_norm", (DIM,)),
    "fusion_linear_1": ("expand", (4 * DIM, DIM)),
    "fusion_ln": ("norm", (4 * DIM,)),
    "fusion_linear_2": ("project", (DIM, 4 * DIM)),
}


def draw(seed=0, convolutions=False):
    """A published state dict, and the same arrays under the formulas' names: agent, wall, predictor."""
    generator = np.random.default_rng(seed)
    published, agent, wall, predictor = {}, {}, {}, {}

    def add(key, weights, name, shape):
        # Weights of the size that keeps activations near one; all of them random, so that none can be mixed up.
        fan_in = int(np.prod(shape[1:]))
        array = generator.normal(0, fan_in**-0.5, shape) if len(shape) > 1 else generator.normal(1, 0.3, shape)
        array = array.astype(np.float32)
        weights[name] = array.astype(np.float64)
        if convolutions and len(shape) == 2 and "blocks" in key:
            array = array[..., None, None]
        published[key] = torch.from_numpy(array)

    for theirs, weights in (("agent", agent), ("env", wall)):
        for key, (name, shape) in BRANCH.items():
            add(f"state_encoder.{theirs}_{key}", weights, name, shape)
        for block in range(BLOCKS):
            for key, (name, shape) in BLOCK.items():
                add(f"state_encoder.{theirs}_blocks.{block}.{key}", weights, f"blocks.{block}.{name}", shape)
    for key, (name, shape) in PREDICTOR.items():
        add(f"state_predictor.{key}.weight", predictor, f"{name}.weight", shape)
        add(f"state_predictor.{key}.bias", predictor, f"{name}.bias", shape[:1])
    return published, agent, wall, predictor


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("gelu_first", [False, True])
def test_imported_weights_give_the_described_network(gelu_first, convolutions):
    published, agent, wall, predictor = draw(convolutions=convolutions)
    model = JEPA.from_explorejepa(published, gelu_first)
    generator = np.random.default_rng(1)
    frame = generator.uniform(0, BRIGHTEST, (2, IMAGE, IMAGE)).astype(np.float32)
    actions = generator.normal(0, 1, (5, 2)).astype(np.float32)
    with torch.no_grad():
        states = model.rollout(torch.from_numpy(frame)[None], torch.from_numpy(actions)[None])[0].numpy()

    activation = "before_norm" if gelu_first else "after_norm"
    state = branch_states(frame[0].astype(np.float64), agent) + branch_states(frame[1].astype(np.float64), wall)
    expected = [state]
    for action in actions.astype(np.float64):
        expected.append(predictor_step(expected[-1], action, predictor, "sum", activation))
    relative = np.linalg.norm(states - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert relative.max() < 1e-6


def test_sizes_are_read_off_the_tensors():
    model = JEPA.from_explorejepa(draw()[0])
    config = model.config
    assert (config.channels, config.blocks, config.dim) == (CHANNELS, BLOCKS, DIM)
    assert (config.residual, config.activation) == ("sum", "after_norm")
    assert not model.training


def without(state_dict, key):
    return {name: tensor for name, tensor in state_dict.items() if name != key}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: without(s, "state_predictor.fusion_ln.bias"), "missing state_predictor.fusion_ln.bias; expected"),
        (lambda s: without(s, "state_encoder.agent_fc.weight"), "missing state_encoder.agent_fc.weight"),
        (lambda s: {}, "missing state_encoder.agent_pwConv.weight"),
        (lambda s: s | {"head.weight": torch.zeros(1)}, "unknown head.weight; expected the 42 tensors"),
        (
            lambda s: s | {"state_encoder.agent_blocks.2.ln.bias": torch.zeros(3)},
            "missing state_encoder.agent_blocks.2.dwConv.weight, .* and 5 more",
        ),
        (
            lambda s: s | {"state_predictor.action_linear.weight": torch.zeros(DIM, 3)},
            r"state_predictor.action_linear.weight: found shape \[10, 3\], expected \[10, 2\]",
        ),
        (
            lambda s: s | {"state_encoder.env_pwConv.weight": torch.zeros(CHANNELS + 1, 1, 1, 1)},
            r"state_encoder.env_pwConv.weight: found shape \[4, 1, 1, 1\], expected \[3, 1, 1, 1\]",
        ),
        (lambda s: s | {"epoch": 3}, "epoch: expected tensors, found int"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused_by_name(spoil, message):
    with pytest.raises(InputError, match=message) as raised:
        JEPA.from_explorejepa(spoil(draw()[0]))
    assert "\n" not in str(raised.value)
