"""Curves that never fall: their shares are those of scikit-learn, order and calibration, and no rounding moves them."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from remind_jax.tasks import isotonic


def simulated(n=4_000, seed=0):
    """Chances told, those that are true, and cases: told ones are far too sure."""
    rng = np.random.default_rng(seed)
    true = rng.beta(1, 3, n)
    told = true**3 / (true**3 + (1 - true) ** 3)
    return np.round(told, 3), true, rng.random(n) < true  # rounded, so that some are equal


def test_shares_are_those_of_isotonic_regression_and_stand_at_the_mean_chance_of_their_step() -> None:
    told, _, cases = simulated(300)
    at, shares = isotonic.fit(told, cases)
    plain = IsotonicRegression().fit_transform(told, cases)
    steps = [plain == share for share in np.unique(plain)]
    assert at == pytest.approx([told[step].mean() for step in steps])
    assert shares == pytest.approx(np.clip(np.unique(plain), 1 / 302, 301 / 302))


def test_shares_are_found_where_chances_were_told_wrongly() -> None:
    told, _, cases = simulated()
    fresh, true, _ = simulated(seed=1)
    found = isotonic.along((isotonic.fit(told, cases),), fresh[:, None])[:, 0]
    assert np.abs(found - true).mean() < 0.03 < np.abs(fresh - true).mean()
    assert (np.diff(found[np.argsort(fresh)]) >= 0).all()


def test_numpy_and_jax_agree_in_their_type_and_rounding_moves_nothing_far() -> None:
    told, _, cases = simulated(500)
    curves = (isotonic.fit(told, cases), isotonic.fit(1 - told, ~cases))
    chances = np.stack([told, 1 - told], axis=1).astype(np.float32)
    found = isotonic.along(curves, chances)
    assert found.dtype == np.float32
    np.testing.assert_allclose(isotonic.along(curves, jnp.asarray(chances)), found, atol=1e-6)
    assert np.abs(isotonic.along(curves, chances + np.float32(1e-6)) - found).max() < 1e-3


def test_one_outcome_alone_is_never_certain() -> None:
    assert isotonic.fit(np.array([0.2, 0.4]), np.array([False, False])) == (pytest.approx((0.3,)), (0.25,))
