import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from jepa_fast.kernels import extension
from jepa_fast.kernels import vicreg as module
from jepa_fast.kernels.vicreg import covariance_term, vicreg, vicreg_reference
from tests.compiled import needs_library

# Against float64 on the same rounded input: each term relative to itself, a gradient by the norm of its error.
VALUE_TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float64: 1e-12}
GRADIENT_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float64: 1e-12}
FLOATS = {"cpu": list(VALUE_TOLERANCES), "cuda": [torch.float32, torch.bfloat16]}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
WHERE = [(device, dtype) for device in DEVICES for dtype in FLOATS[device]]
# Tiles are 8 x 32 (CPU) or 64 x 64 (CUDA), blocks of rows 128, chunks at least 256, strips 128 columns: sizes below, at
# and above, odd, prime, one.
SIZES = [
    (1, 2, 1), (1, 3, 2), (1, 17, 31), (2, 64, 32), (1, 127, 33), (3, 128, 64), (1, 129, 65), (1, 257, 127),
    (1, 512, 128), (2, 1009, 129), (1, 2048, 128), (1, 70, 1024), (1, 10007, 3),
]  # fmt: skip
WEIGHTS = torch.tensor([25.0, 15.0, 2.0], dtype=torch.float64)


def states(groups, rows, dim, dtype=torch.float32, mean=0.0, scale=0.7, device="cpu"):
    """A pair [G, N, D] whose columns are correlated."""
    generator = torch.Generator().manual_seed(rows * 1000 + dim)
    pair = torch.randn(2, groups, rows, dim, generator=generator, dtype=torch.float64)
    mixing = torch.eye(dim) + torch.randn(dim, dim, generator=generator, dtype=torch.float64) / (2 * dim**0.5)
    return ((pair @ mixing) * scale + mean).to(device, dtype).unbind(0)


def with_gradients(function, x, target, **options):
    """Terms, gradient of x and gradient of the target of the weighted sum."""
    x = x.detach().requires_grad_()
    target = None if target is None else target.detach().requires_grad_()
    terms = function(x, target, **options)
    (terms.double() * WEIGHTS.to(terms.device)).sum().backward()
    return terms.detach(), x.grad, None if target is None else target.grad


def norm_error(ours, truth):
    return ((ours.double() - truth).norm() / truth.norm()).item()


def assert_matches_float64(x, target, **options):
    ours = with_gradients(vicreg, x, target, **options)
    truth = with_gradients(vicreg_reference, x.double(), None if target is None else target.double(), **options)
    assert ours[0].dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=VALUE_TOLERANCES[x.dtype], atol=0)
    for gradient, exact in zip(ours[1:], truth[1:], strict=True):
        if gradient is not None:
            assert gradient.dtype == x.dtype
            assert norm_error(gradient, exact) <= GRADIENT_TOLERANCES[x.dtype]


@pytest.mark.parametrize(("device", "dtype"), WHERE)
@pytest.mark.parametrize(("groups", "rows", "dim"), SIZES)
def test_terms_and_gradients_match_float64(groups, rows, dim, device, dtype):
    assert_matches_float64(*states(groups, rows, dim, dtype, device=device))


@pytest.mark.parametrize(("device", "dtype"), WHERE)
def test_terms_and_gradients_without_a_target_match_float64(device, dtype):
    x, _ = states(2, 301, 45, dtype, device=device)
    assert vicreg(x)[0] == 0
    assert_matches_float64(x, None)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "dim"), [(5, 3), (2048, 128), (5003, 70)])
def test_a_mean_of_ten_thousand_costs_no_accuracy(rows, dim, device):
    assert_matches_float64(*states(1, rows, dim, mean=1e4, scale=1.0, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_drift_cost_no_accuracy(device):
    x, target = states(1, 3000, 40, device=device)
    drift = torch.linspace(-50, 50, 3000, device=device)[None, :, None]
    assert_matches_float64(x + drift, target)


@pytest.mark.parametrize(("device", "dtype"), WHERE)
@pytest.mark.parametrize("divisor", ["dim", "pairs"])
@pytest.mark.parametrize("gamma", [0.4, 1.2])
def test_options_match_float64(divisor, gamma, device, dtype):
    x, target = states(2, 150, 20, dtype, device=device)
    assert_matches_float64(x, target, divisor=divisor, gamma=gamma, eps=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_group_counts_as_an_average_over_groups(device):
    x, target = states(4, 65, 12, device=device)
    each = torch.stack([vicreg(a, b) for a, b in zip(x, target, strict=True)])
    torch.testing.assert_close(vicreg(x, target), each.mean(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_covariance_term_is_the_third_term_and_has_its_gradient(device):
    x, target = states(1, 200, 33, device=device)
    ours, whole = (x.clone().requires_grad_() for _ in range(2))
    value = covariance_term(ours, divisor="pairs")
    value.backward()
    vicreg(whole, target, divisor="pairs")[2].backward()
    assert value == vicreg(x, target, divisor="pairs")[2]
    assert torch.equal(ours.grad, whole.grad)
    assert ours.grad.abs().sum() > 0


VIEWS = {
    "transposed groups": lambda x: x.transpose(0, 1),
    "transposed columns": lambda x: x.transpose(1, 2),
    "strided": lambda x: x[:, ::3, 1::2],
    "sliced": lambda x: x[:, 5:, 3:30],
    "expanded groups": lambda x: x[:1].expand(3, -1, -1),
    "expanded columns": lambda x: x[:, :, :1].expand(-1, -1, 5),
    "one group": lambda x: x[1],
}


@pytest.mark.parametrize(("device", "dtype"), WHERE)
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_give_the_terms_of_the_values(view, device, dtype):
    x, target = states(4, 101, 53, dtype, device=device)
    ours = with_gradients(lambda a, b: vicreg(VIEWS[view](a), VIEWS[view](b)), x, target)
    dense = with_gradients(lambda a, b: vicreg(VIEWS[view](a).contiguous(), VIEWS[view](b).contiguous()), x, target)
    assert all(torch.equal(a, b) for a, b in zip(ours, dense, strict=True))


@given(
    groups=st.integers(1, 3),
    rows=st.integers(2, 300),
    dim=st.integers(1, 70),
    # Means in float64 stay small: there the truth has no more digits than what is tested.
    dtype_and_mean=st.sampled_from([(torch.float32, 0.0), (torch.float32, 1e4), (torch.float64, -7.0)]),
)
def test_any_shape_matches_float64(groups, rows, dim, dtype_and_mean):
    # gamma far from every deviation: where they nearly cancel, the hinge has no digits to compare.
    assert_matches_float64(*states(groups, rows, dim, *dtype_and_mean), gamma=5.0)


@pytest.mark.parametrize("divisor", ["dim", "pairs"])
def test_gradients_pass_gradcheck(divisor):
    x, target = (state.requires_grad_() for state in states(2, 5, 4, torch.float64))
    # A gamma between the columns' deviations: some pull, some do not.
    sigma = x.detach().var(dim=1).add(1e-4).sqrt()
    gamma = (sigma.min() + sigma.max()).item() / 2
    assert torch.autograd.gradcheck(lambda a, b: vicreg(a, b, gamma=gamma, divisor=divisor), (x, target))
    assert torch.autograd.gradcheck(lambda a: vicreg(a, gamma=gamma, divisor=divisor), (x,))


@pytest.mark.parametrize("device", DEVICES)
def test_collapsed_columns_cost_the_whole_hinge_and_no_covariance(device):
    terms, gradient, _ = with_gradients(vicreg, torch.full((1, 300, 20), 0.1, device=device), None)
    torch.testing.assert_close(terms.cpu(), torch.tensor([0.0, 1 - 1e-4**0.5, 0.0]))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 130, 299])
def test_a_value_that_is_not_finite_shows_in_every_term_and_in_the_gradient(value, row, device):
    x, target = states(1, 300, 40, device=device)
    x[0, row, 33] = value
    terms, gradient, _ = with_gradients(vicreg, x, target)
    assert not torch.isfinite(terms).any()
    assert torch.isnan(gradient[0, :, 33]).all()


@pytest.mark.parametrize(("device", "dtype"), WHERE)
def test_two_runs_give_the_same_bits(device, dtype):
    pair = states(2, 3011, 131, dtype, device=device)
    first, second = (with_gradients(vicreg, *pair) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_library
def test_number_of_threads_does_not_change_a_bit():
    pair = states(2, 3011, 131)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(with_gradients(vicreg, *pair))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(device):
    for dtype in (torch.float32, torch.bfloat16):
        pair = states(1, 400, 32, dtype, device=device)
        plain = with_gradients(vicreg, *pair)
        with torch.autocast(device, torch.bfloat16):
            cast = with_gradients(vicreg, *pair)
        assert all(torch.equal(a, b) for a, b in zip(cast, plain, strict=True))


def test_dtypes_that_differ_are_taken_to_the_wider_one():
    x, target = states(1, 100, 16)
    narrow = x.bfloat16()
    terms, gradient, target_gradient = with_gradients(vicreg, narrow, target)
    assert torch.equal(terms, vicreg(narrow.float(), target))
    assert (gradient.dtype, target_gradient.dtype) == (torch.bfloat16, torch.float32)


@needs_library
def test_neither_direction_holds_a_copy_of_the_rows():
    x, target = (state.requires_grad_() for state in states(1, 32768, 64))
    size = x.numel() * x.element_size()

    def allocated(function):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = function()
        return result, sum(max(0, event.self_cpu_memory_usage) for event in profiler.events())

    terms, forward = allocated(lambda: vicreg(x, target))
    _, backward = allocated(lambda: terms.sum().backward())
    assert 0 < forward < size / 4
    # The two gradients themselves, and little else.
    assert 2 * size <= backward < 2.25 * size


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(4), {}, r"x: got shape \(4,\), expected \[N, D\]"),
        (torch.zeros(0, 3, 4), {}, r"x: got shape \(0, 3, 4\), expected .* at least one group"),
        (torch.zeros(1, 4), {}, "x: got N = 1 rows, expected at least 2"),
        (torch.zeros(0, 4), {}, "x: got N = 0 rows, expected at least 2"),
        (torch.zeros(3, 0), {}, "x: got D = 0 columns, expected 1 to 1024"),
        (torch.zeros(3, 1025), {}, "x: got D = 1025 columns, expected 1 to 1024"),
        (torch.zeros(3, 4, dtype=torch.float16), {}, "x: got torch.float16, expected float32, float64 or bfloat16"),
        (torch.zeros(3, 4), {"target": torch.zeros(3, 5)}, r"target: got shape \(1, 3, 5\), expected that of x"),
        (torch.zeros(3, 4), {"gamma": 0.0}, "gamma: got 0.0, expected a positive number"),
        (torch.zeros(3, 4), {"eps": -1.0}, "eps: got -1.0, expected a positive number"),
        (torch.zeros(3, 1), {"divisor": "pairs"}, "divisor: got 'pairs' with D = 1"),
    ],
)
def test_bad_input_is_named(x, options, message):
    with pytest.raises(ValueError, match=message):
        vicreg(x, **options)


@needs_library
@pytest.mark.parametrize(
    ("x", "target", "message"),
    [
        (torch.zeros(4, 3), None, "x: got 2 dimensions, expected 3"),
        (torch.zeros(1, 1, 3), None, "x: got N = 1 rows, expected at least 2"),
        (torch.zeros(1, 2, 1025), None, "x: got D = 1025 columns, expected 1 to 1024"),
        (torch.zeros(1, 2, 3, dtype=torch.float16), None, "x: got dtype Half"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), "target: expected the shape and the dtype of x"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).double(), "target: expected the shape and the dtype of x"),
    ],
)
def test_compiled_kernel_checks_its_input_itself(x, target, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.jepa_fast.vicreg(x, target, 1.0, 1e-4, 3.0)


@pytest.mark.parametrize(("device", "dtype"), WHERE)
def test_operators_are_registered_soundly(device, dtype):
    x, target = (state.requires_grad_() for state in states(2, 33, 7, dtype, device=device))
    torch.library.opcheck(torch.ops.jepa_fast.vicreg.default, (x, target, 1.0, 1e-4, 7.0))
    torch.library.opcheck(torch.ops.jepa_fast.vicreg.default, (x.detach().transpose(0, 1), None, 1.0, 1e-4, 7.0))
    terms, mean, covariance = torch.ops.jepa_fast.vicreg(x.detach(), target.detach(), 1.0, 1e-4, 7.0)
    saved = (torch.ones_like(terms), x.detach(), target.detach(), mean, covariance, 1.0, 1e-4, 7.0)
    torch.library.opcheck(torch.ops.jepa_fast.vicreg_backward.default, (*saved, True))


def test_schemas_are_the_same_with_and_without_the_library():
    assert str(torch.ops.jepa_fast.vicreg.default._schema) == module.OPERATOR + module.SCHEMA
    schema = str(torch.ops.jepa_fast.vicreg_backward.default._schema)
    assert schema == module.BACKWARD_OPERATOR + module.BACKWARD_SCHEMA


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_graph_equals_eager(device):
    def loss(a, b):
        return vicreg(a * 2, b, divisor="pairs")

    pair = states(1, 65, 9, device=device)
    compiled = torch.compile(loss, fullgraph=True)
    for a, b in zip(with_gradients(compiled, *pair), with_gradients(loss, *pair), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_captured_graph_replays_to_the_same_bits():
    x, target = (state.requires_grad_() for state in states(1, 2048, 128, device="cuda"))
    weights = WEIGHTS.float().cuda()

    def step():
        x.grad = target.grad = None
        terms = vicreg(x, target)
        (terms * weights).sum().backward()
        return terms.detach(), x.grad, target.grad

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            eager = [result.clone() for result in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for result in captured:
        result.fill_(float("nan"))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, eager, strict=True))


@needs_library
def test_library_serves_the_cpu():
    assert extension.load() is None
    assert extension.has_kernel("vicreg", "cpu")
    assert extension.has_kernel("vicreg_backward", "cpu")


def test_fallback_matches_float64_and_says_so_once(caplog, monkeypatch):
    monkeypatch.setattr(extension, "load", lambda: "no library here")
    module._announce_fallback.cache_clear()
    x, target = states(2, 90, 11)
    options = (1.1, 1e-3, 11.0 * 10.0)
    with caplog.at_level(logging.WARNING):
        terms, mean, covariance = module._vicreg_fallback(x, target, *options)
        module._vicreg_fallback(x, None, *options)
    module._announce_fallback.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "jepa_fast::vicreg on cpu runs in plain PyTorch: no library here"
    ]
    truth = with_gradients(vicreg_reference, x.double(), target.double(), gamma=1.1, eps=1e-3, divisor="pairs")
    torch.testing.assert_close(terms.double(), truth[0], rtol=1e-6, atol=0)
    gradients = module._vicreg_backward_fallback(WEIGHTS.float(), x, target, mean, covariance, *options, True)
    for gradient, exact in zip(gradients, truth[1:], strict=True):
        assert norm_error(gradient, exact) < 1e-6
