"""What the tests of analyses share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(quick_compilation):
    """Every analysis opens or trains tiny runs."""
