"""Objectives as functions of tensors: weights as one tensor in, the total and the terms as one named tuple out."""

from collections import namedtuple

from jepa_fast.objectives.infonce import InfoNCE
from jepa_fast.objectives.mixture import MixtureLikelihood
from jepa_fast.objectives.objective import Execution
from jepa_fast.objectives.vicreg import VICReg

VICREG, MIXTURE = ("invariance", "variance", "covariance"), ("nll", "sigma", "variance", "covariance")


def by_name(names, weights):
    """Weights by name; those behind the last weight are left out."""
    return dict(zip(names, weights.unbind(), strict=False))


def flat(loss):
    """The total and the terms as one named tuple."""
    return namedtuple("Terms", ["total", *loss.terms])(loss.total, *loss.terms.values())


def energy(predicted, encoded, weights, config, targets=None, group=None, fused=False):
    """VICReg of predictions against encodings, in plain PyTorch."""
    return flat(VICReg(config)(predicted, encoded, by_name(VICREG, weights), targets, group, fused))


def fused_energy(predicted, encoded, weights, config, targets=None, group=None):
    """The same by the compiled op."""
    return energy(predicted, encoded, weights, config, targets, group, fused=True)


def contrast(predicted, encoded, weights, config, group=None):
    """InfoNCE of predictions against encodings."""
    return flat(InfoNCE(config)(predicted, encoded, {"contrast": weights[0]}, group=group))


def mixture(model, group=None):
    """The mixture's terms, and its predictions, as a function of encodings, actions and weights."""
    bound = MixtureLikelihood().bind(model, Execution(group=group))

    def compute(encoded, actions, weights):
        loss, predicted = bound(encoded, actions, model.dropout_clock, by_name(MIXTURE, weights))
        return flat(loss), predicted

    return compute
