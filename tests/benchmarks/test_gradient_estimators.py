"""The measurement of the three estimators of gradient consistency, and its page."""

import json

import pytest

from benchmarks import gradient_estimators
from remind_jax.errors import UserError


@pytest.mark.slow
def test_estimators_of_a_network_agree():
    found = {method: gradient_estimators.measure("tiny", 6, method) for method in gradient_estimators.METHODS}
    for record in found.values():
        assert record["parameters"] == 2529 == found["exact"]["parameters"]
        assert record["lambda1"] == pytest.approx(found["exact"]["lambda1"], rel=1e-4)
        assert record["trace"] == pytest.approx(found["exact"]["trace"], rel=1e-4)
        assert record["peak_mib"] >= record["before_mib"] > 0
        assert record["cpu_ms"] > 0


@pytest.mark.slow
def test_what_does_not_fit_is_told():
    record = gradient_estimators._alone("e8", 128, "exact", 1, 2)
    assert record == {"size": "e8", "n": 128, "method": "exact", "died": "out of memory"}


def test_the_page_shows_the_stored_results():
    lines = gradient_estimators.OUT.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    text = gradient_estimators.page(records)
    assert text == gradient_estimators.PAGE.read_text(encoding="utf-8")
    assert sum(line.startswith("|") for line in text.splitlines()) == 2 + len(records)
    assert all(record["cos_u"] >= 0.99999 for record in records if "died" not in record)


@pytest.mark.parametrize("point", ["huge:8", "tiny", "tiny:x", "tiny:1"])
def test_mistakes_are_named(point):
    with pytest.raises(UserError, match="is not SIZE:SAMPLES"):
        gradient_estimators.main([f"--points={point}"])
