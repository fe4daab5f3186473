"""Names of combinations: in full, by what is missing, abbreviated, cut."""

from remind_jax.evaluation.names import short_names


def test_short_names():
    declared = ["alpha", "alps", "beta", "gamma", "delta"]
    names, used = short_names([["alpha", "beta"], declared, declared[1:], ["alpha", "alps", "beta"], []], declared, 13)
    assert names == ["alpha+beta", "all 5", "all but alpha", "all but gam..", "none"]
    names, used = short_names([["alpha", "alps", "beta"], ["beta"]], declared, 16)
    assert names == ["alpha+alps+beta", "beta"]
    assert used == {}
    names, used = short_names([["alpha", "alps", "gamma"]], [*declared[:-1], "zeta", "eta", "theta"], 14)
    assert names == ["alph+alps+gam"]
    assert used == {"alpha": "alph", "gamma": "gam"}
