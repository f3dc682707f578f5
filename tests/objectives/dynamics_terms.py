"""The terms of `Dynamics` and their gradients, as one process or several compute them."""

import torch

from jepa_fast.config import DynamicsConfig
from jepa_fast.objectives.dynamics import BoundDynamics, Dynamics
from jepa_fast.objectives.objective import Execution

CONFIG = DynamicsConfig(projections=8, sigreg=1.0, similarity=2.0, inverse_hidden=6)
WEIGHTS = {"invariance": 3.0, "variance": 5.0, "covariance": 0.7, "sigreg": 11.0, "inverse": 2.0, "similarity": 1.3}


class Latents(torch.nn.Module):
    """A model of which only the latents are asked."""

    can_advance = True
    config = None

    def latents(self, encoded):
        return encoded


def bound(dim, action_size, config=CONFIG, group=None):
    torch.manual_seed(0)
    objective = Dynamics(config).double()
    objective.attach(dim, action_size)
    objective.double()
    return BoundDynamics(objective, Latents(), Execution(group=group))


def compute(predicted, encoded, actions, group=None):
    """Terms by name, and the gradients of their weighted sum: of both sides and of the network's weights."""
    predicted, encoded = predicted.requires_grad_(), encoded.requires_grad_()
    one = bound(encoded.shape[2], actions.shape[2], group=group)
    terms = one.terms(predicted, encoded, actions, torch.tensor([3, 5, 0 if group is None else 7]))
    sum(WEIGHTS[name] * term for name, term in terms.items()).backward()
    weights = {name: parameter.grad for name, parameter in one.inverse.named_parameters()}
    return {name: term.detach() for name, term in terms.items()}, predicted.grad, encoded.grad, weights
