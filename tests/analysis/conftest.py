"""What the tests of analyses share."""

import pytest

from tests import tiny_runs


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(tmp_path_factory):
    with tiny_runs.quick_compilation(tmp_path_factory):
        yield
