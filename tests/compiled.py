"""A mark of tests that need the compiled extension."""

import pytest

from jepa_fast.kernels import extension

needs_library = pytest.mark.skipif(
    not extension.LIBRARY.exists(), reason="jepa_fast is installed without its compiled extension"
)
