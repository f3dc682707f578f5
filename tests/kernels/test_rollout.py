import logging

import pytest
import torch

from jepa_fast.config import JEPAConfig
from jepa_fast.kernels import rollout as module
from jepa_fast.kernels.dropout import SITE_PREDICTOR, dropout_mask
from jepa_fast.kernels.rollout import RolloutWeights, rollout, rollout_reference
from jepa_fast.models.predictor import MLPPredictor
from tests.kernels.rollout_cases import FORMS, draw, results, truth, worst_error

# Norm of the error over the norm of the truth, of states and of every gradient.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def check(function, case, tolerance, **options):
    error, name = worst_error(results(function, case, **options), truth(case, **options))
    assert error < tolerance, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("residual", "activation"), FORMS)
def test_reference_is_the_predictor(residual, activation, dropout):
    case = draw(6, 3, 4, torch.float64)
    predictor = MLPPredictor(6, dropout=dropout, residual=residual, activation=activation).double()
    with torch.no_grad():
        for own, drawn in zip(predictor.weights(), case.weights, strict=True):
            own.copy_(drawn)
    states = rollout_reference(case.first, case.actions, predictor.weights(), case.clock, dropout, residual, activation)
    torch.testing.assert_close(states, predictor(case.first, case.actions, case.clock), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.7])
@pytest.mark.parametrize(("residual", "activation"), FORMS)
def test_states_and_gradients_match_float64(residual, activation, dropout, dtype):
    case = draw(5, 3, 4, dtype)
    check(rollout, case, TOLERANCES[dtype], dropout=dropout, residual=residual, activation=activation)


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (2, 1), (1, 7), (17, 2), (3, 91)])
def test_odd_sizes_match_float64(batch, steps):
    check(rollout, draw(3, batch, steps), TOLERANCES[torch.float32], dropout=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("residual", "activation"), FORMS)
@pytest.mark.parametrize("action_size", [1, 3, 7])
def test_actions_of_any_size_match_float64(action_size, residual, activation, dtype):
    case = draw(5, 3, 4, dtype, action_size)
    check(rollout, case, TOLERANCES[dtype], residual=residual, activation=activation, dropout=0.3)
    torch.compiler.reset()
    compiled = torch.compile(rollout, fullgraph=True, backend="aot_eager")
    check(compiled, case, TOLERANCES[dtype], residual=residual, activation=activation, dropout=0.3)


@pytest.mark.parametrize(("dim", "batch", "steps"), [(128, 19, 2), (100, 9, 3), (7, 5, 2), (64, 70, 9)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_and_plain_kernels_are_one_function(monkeypatch, dim, batch, steps, dtype):
    if module.dispatch.why_no_compiled_rollout() is not None:
        pytest.skip("the extension is not built")
    case = draw(dim, batch, steps, dtype, action_size=3)
    ours = results(rollout, case, dropout=0.1)
    monkeypatch.setattr(module.dispatch, "why_no_compiled_rollout", lambda: "not this time")
    plain = results(rollout, case, dropout=0.1)
    error, name = worst_error(ours, {name: value.double() for name, value in plain.items()})
    assert error < TOLERANCES[dtype], name


def test_threads_change_no_bit_and_neither_do_other_trajectories():
    case = draw(64, 70, 9)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(results(rollout, case, dropout=0.1))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)
    alone = rollout(case.first[:5], case.actions[:5], case.weights, case.clock)
    assert torch.equal(alone, rollout(case.first, case.actions, case.weights, case.clock)[:5])


def test_no_trajectories_give_no_states_and_gradients_of_zero():
    ours = results(rollout, draw(4, 0, 3), dropout=0.1)
    assert ours["states"].shape == (0, 3, 4)
    assert all(not value.any() for value in ours.values())


@pytest.mark.parametrize(("residual", "activation"), FORMS)
def test_gradients_are_those_of_finite_differences(residual, activation):
    case = draw(2, 2, 3, torch.float64)

    def states(first, actions, *weights):
        options = {"dropout": 0.3, "residual": residual, "activation": activation}
        return rollout(first, actions, RolloutWeights(*weights), case.clock, **options)

    assert torch.autograd.gradcheck(states, case.leaves())


def test_the_mask_on_the_hidden_layer_is_that_of_the_dropout_module():
    """With a second matrix of ones the states are sums over what the mask let through."""
    case = draw(4, 3, 1, torch.float64)
    ones = case.weights._replace(
        norm_weight=torch.zeros(16).double(),
        norm_bias=torch.ones(16).double(),
        project_weight=torch.ones(4, 16).double(),
        project_bias=torch.zeros(4).double(),
    )
    arguments = (case.first, case.actions, ones, case.clock)
    kept, all_of_them = (rollout(*arguments, dropout=rate, activation="before_norm") for rate in (0.5, 0.0))
    mask = dropout_mask((3, 1, 16), 0.5, case.clock, SITE_PREDICTOR)
    expected = (mask.sum(2) - 16).double()
    torch.testing.assert_close((kept - all_of_them).detach(), expected[..., None].expand(-1, -1, 4))


@pytest.mark.parametrize("residual", ["sum", "state"])
def test_bfloat16_autocast_stays_close_to_float64(residual):
    case = draw(32, 16, 5)

    def autocast(*arguments, **options):
        with torch.autocast("cpu", torch.bfloat16):
            return rollout(*arguments, **options)

    ours = results(autocast, case, dropout=0.1, residual=residual)
    assert all(value.dtype == torch.float32 for value in ours.values())
    error, name = worst_error(ours, truth(case, dropout=0.1, residual=residual))
    assert 1e-5 < error < TOLERANCES[torch.bfloat16], name


def test_a_backward_under_autocast_rounds_nothing():
    case = draw(8, 3, 4)
    exact = results(rollout, case)
    states = rollout(case.first, case.actions, case.weights, case.clock)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(states, case.leaves(), case.gradient)
    assert all(torch.equal(ours, exact[name]) for name, ours in zip(list(exact)[1:], gradients, strict=True))


def test_any_strides_give_the_states_of_the_values():
    case = draw(6, 4, 3, torch.float64)
    strided = case._replace(
        first=case.first.detach().t().contiguous().t().requires_grad_(),
        actions=case.actions.detach().expand(2, -1, -1, -1)[1].transpose(0, 1).contiguous().transpose(0, 1),
        gradient=case.gradient.transpose(1, 2).contiguous().transpose(1, 2),
    )
    strided.actions.requires_grad_()
    ours, plain = results(rollout, strided), results(rollout, case)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value)


def test_gradients_are_made_for_what_asks_for_them():
    case = draw(4, 2, 3)
    first, actions = case.first.detach(), case.actions.detach()
    only_weights = rollout(first, actions, case.weights, case.clock)
    (gradient,) = torch.autograd.grad(only_weights.sum(), [case.weights.expand_weight])
    assert gradient.abs().sum() > 0
    fixed = RolloutWeights(*(weight.detach() for weight in case.weights))
    (gradient,) = torch.autograd.grad(rollout(first, case.actions, fixed, case.clock).sum(), [case.actions])
    assert gradient.abs().sum() > 0
    assert not rollout(first, actions, fixed, case.clock).requires_grad


@pytest.mark.parametrize("keep", [True, False])
def test_operator_is_registered_soundly(keep):
    case = draw(4, 2, 3)
    arguments = (case.first, case.actions, case.clock, list(case.weights), 0.3, False, False, False, keep)
    if not keep:
        arguments = (case.first.detach(), case.actions.detach(), case.clock, [w.detach() for w in case.weights], 0.3)
        arguments = (*arguments, True, True, True, False)
    torch.library.opcheck(torch.ops.jepa_fast.rollout.default, arguments)


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_graph_equals_eager(autocast):
    case = draw(8, 3, 4)

    def scaled(first, actions, weights, clock):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return 2 * rollout(first, actions, weights, clock, dropout=0.1)

    ours, eager = results(torch.compile(scaled, fullgraph=True), case), results(scaled, case)
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value)


def test_evaluation_keeps_nothing():
    case = draw(4, 2, 3)
    kept = torch.ops.jepa_fast.rollout(
        case.first, case.actions, case.clock, list(case.weights), 0.0, False, False, False, False
    )[1:]
    assert [tensor.numel() for tensor in kept] == [0, 0, 0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("residual", "activation"), FORMS)
def test_both_forms_of_the_predictor_are_one_function_with_the_same_parameters(residual, activation, training):
    options = {"dropout": 0.3, "residual": residual, "activation": activation}
    plain = MLPPredictor(6, **options).double().train(training)
    fused = MLPPredictor(6, **options, kernels="triton").double().train(training)
    fused.load_state_dict(plain.state_dict())
    case = draw(6, 3, 4, torch.float64)
    states = [predictor(case.first, case.actions, case.clock) for predictor in (plain, fused)]
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-12)
    for result in states:
        result.backward(case.gradient)
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": torch.zeros(2, 3, 4)}, r"first: got shape \(2, 3, 4\), expected \[B, D\]"),
        ({"actions": torch.zeros(3, 3, 2)}, r"actions: got shape \(3, 3, 2\), expected \(2, at least 1, 2\)"),
        ({"actions": torch.zeros(2, 0, 2)}, r"actions: got shape \(2, 0, 2\)"),
        ({"clock": torch.zeros(2)}, r"clock: got torch.float32 \(2,\), expected torch.int64 \(3,\)"),
        ({"dropout": 1.0}, r"dropout: got 1.0, expected a rate in \[0, 1\)"),
        ({"project_bias": torch.zeros(5)}, r"project_bias: got torch.float32 \(5,\), expected torch.float32 \(4,\)"),
        ({"norm_bias": torch.zeros(16).double()}, "norm_bias: got torch.float64"),
    ],
)
def test_bad_input_is_named(change, message):
    case = draw(4, 2, 3)
    weights = case.weights._replace(**{key: value for key, value in change.items() if key in RolloutWeights._fields})
    first, actions, clock = (change.get(name, getattr(case, name)) for name in ("first", "actions", "clock"))
    with pytest.raises(ValueError, match=message):
        rollout(first, actions, weights, clock, dropout=change.get("dropout", 0.0))


def test_plain_pytorch_on_a_device_is_announced_once(caplog, monkeypatch):
    monkeypatch.setattr(module.dispatch, "why_no_triton", lambda device: "no such thing here")
    module._announce_plain.cache_clear()
    case = draw(4, 2, 3)
    arguments = (case.first, case.actions, case.clock, list(case.weights), 0.0, False, False, False, True)
    with caplog.at_level(logging.WARNING):
        states = module._rollout_cuda(*arguments)[0]
        module._rollout_cuda(*arguments)
    module._announce_plain.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "jepa_fast::rollout on cpu runs in plain PyTorch: no such thing here"
    ]
    torch.testing.assert_close(states, rollout(case.first, case.actions, case.weights, case.clock))


@pytest.mark.parametrize(("dim", "dtype"), [(100, torch.float32), (128, torch.float64)])
def test_states_that_the_kernels_do_not_take_run_in_plain_pytorch(monkeypatch, dim, dtype):
    monkeypatch.setattr(module.dispatch, "why_no_triton", lambda device: None)
    actions = torch.zeros(2, 3, 2)
    assert module.why_no_triton(torch.zeros(2, 128), actions) is None
    assert "the kernels take" in module.why_no_triton(torch.zeros(2, dim, dtype=dtype), actions)


def test_actions_that_the_kernels_do_not_take_run_in_plain_pytorch(monkeypatch):
    monkeypatch.setattr(module.dispatch, "why_no_triton", lambda device: None)
    case = draw(16, 2, 3, action_size=7)
    assert module.why_no_triton(case.first, case.actions) == "actions have 7 numbers, the kernels take 2"
    assert module.why_no_triton(case.first, case.actions[..., :2]) is None


def on_device(autocast):
    """The op under autocast or not, with memory poisoned first: what is not written shows."""

    def run(*arguments, **options):
        poison = [torch.full((2**22,), float("nan"), device="cuda") for _ in range(8)]
        del poison
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            return rollout(*arguments, **options)

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("residual", "activation"), FORMS)
def test_all_forms_on_a_device_match_float64(residual, activation, dropout, autocast):
    case = draw(128, 128, 16).to("cuda")
    tolerance = TOLERANCES[torch.bfloat16 if autocast else torch.float32]
    check(on_device(autocast), case, tolerance, dropout=dropout, residual=residual, activation=activation)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("dim", "batch", "steps"), [(128, 3, 2), (32, 3, 2), (16, 9, 3)])
def test_small_shapes_on_a_device_match_float64(dim, batch, steps, autocast):
    """What scripts/gpu_check.sh runs under compute-sanitizer as well."""
    case = draw(dim, batch, steps).to("cuda")
    check(on_device(autocast), case, TOLERANCES[torch.bfloat16 if autocast else torch.float32], dropout=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("dim", "batch", "steps"), [(128, 1031, 3), (128, 1, 1), (64, 17, 5), (128, 5, 91), (100, 4, 3)]
)
def test_other_sizes_on_a_device_match_float64(dim, batch, steps, autocast):
    case = draw(dim, batch, steps).to("cuda")
    check(on_device(autocast), case, TOLERANCES[torch.bfloat16 if autocast else torch.float32], dropout=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_device_gives_the_same_bits_twice(autocast):
    case = draw(128, 130, 16).to("cuda")
    first, second = (results(on_device(autocast), case, dropout=0.1) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_device_takes_any_strides(autocast):
    case = draw(128, 12, 5).to("cuda")
    strided = case._replace(
        first=case.first.detach().t().contiguous().t().requires_grad_(),
        gradient=case.gradient.transpose(1, 2).contiguous().transpose(1, 2),
    )
    ours, plain = (results(on_device(autocast), one, dropout=0.1) for one in (strided, case))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.gpu
def test_a_captured_graph_draws_a_fresh_mask_at_every_replay():
    case = draw(128, 32, 16).to("cuda")

    def step():
        return results(rollout, case, dropout=0.3)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for number in (7, 8):
        case.clock[1] = number
        graph.replay()
        replayed = {name: value.clone() for name, value in captured.items()}
        eager = step()
        assert all(torch.equal(replayed[name], eager[name]) for name in eager)


@pytest.mark.gpu
def test_compiled_graph_on_a_device_equals_eager():
    case = draw(128, 32, 16).to("cuda")

    def scaled(*arguments):
        with torch.autocast("cuda", torch.bfloat16):
            return 2 * rollout(*arguments, dropout=0.1)

    ours, eager = results(torch.compile(scaled, fullgraph=True), case), results(scaled, case)
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value)


@pytest.mark.gpu
def test_the_world_of_kernels_predicts_what_the_plain_one_does():
    torch.manual_seed(0)
    config = JEPAConfig()
    plain = MLPPredictor(config.dim, dropout=config.dropout).cuda()
    fused = MLPPredictor(config.dim, dropout=config.dropout, kernels="triton").cuda()
    fused.load_state_dict(plain.state_dict())
    case = draw(128, 16, 16).to("cuda")
    states = [predictor(case.first, case.actions, case.clock) for predictor in (plain, fused)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
