import numpy as np
import pytest
from scipy.stats import t

from remind_jax.evaluation.differences import difference
from remind_jax.evaluation.intervals import patient_weights


def test_differences_are_students_with_a_p_that_fits():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1.0, 40)
    counts = np.concatenate(list(patient_weights(np.arange(40), 40, 0, resamples=2_000)))
    ci, p, note = difference(values.mean(), counts @ values / 40, counts, 40, "x")
    error = values.std(ddof=1) / 40**0.5
    assert np.mean(ci) == pytest.approx(values.mean())
    assert (ci[1] - ci[0]) / 2 / error == pytest.approx(t.ppf(0.975, 39), rel=0.05)
    assert p == pytest.approx(2 * t.sf(abs(values.mean()) / error, 39), rel=0.2)
    assert note is None
    assert (p < 0.05) == (ci[0] > 0 or ci[1] < 0)
    assert difference(0.1, np.full(9, 0.1), np.ones((9, 4)), 4, "x")[:2] == (None, None)
