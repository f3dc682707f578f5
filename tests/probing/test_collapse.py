"""The spectrum against NumPy's singular values, and its rank on states whose rank is known."""

import numpy as np
import pytest
import torch

from jepa_fast.probing.collapse import spectrum


@pytest.mark.parametrize("shape", [(2, 1), (7, 7), (64, 5), (6, 11)])
def test_spectrum_equals_the_singular_values_of_the_centred_states(shape):
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double() * 3 + 100
    found = spectrum(states)
    centred = (states - states.mean(0)).numpy()
    singular_values = np.zeros(shape[1])
    computed = np.linalg.svd(centred, compute_uv=False) / np.sqrt(shape[0] - 1)
    singular_values[: len(computed)] = computed
    # Squared singular values are found to float64's rounding, so those that are 0 to its root.
    np.testing.assert_allclose(found.singular_values, singular_values, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(found.std, np.sort(centred.std(0, ddof=1)), rtol=1e-9)


def test_states_of_equal_spread_in_k_directions_have_rank_k():
    for k in (1, 3, 8):
        directions = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()).Q[:k]
        corners = torch.cat([directions, -directions])
        assert spectrum(corners).rank == pytest.approx(k, rel=1e-5)


def test_states_that_do_not_vary_have_rank_1_and_no_spread():
    found = spectrum(torch.full((10, 4), 2.5))
    assert found.rank == 1
    assert found.std.tolist() == [0] * 4
    assert found.singular_values.tolist() == [0] * 4


def test_low_precision_states_are_measured_in_float64():
    states = 1000 + torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    rounded = states.to(torch.bfloat16)
    expected = rounded.double().std(0).sort().values
    torch.testing.assert_close(spectrum(rounded).std, expected, rtol=1e-12, atol=0)
