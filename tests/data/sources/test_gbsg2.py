"""GBSG2 as it arrives with lifelines."""

import importlib.util

import numpy as np
import pytest

from remind_jax.data import check
from remind_jax.data.sources import gbsg2
from remind_jax.errors import UserError


def test_everybody_is_read_as_published():
    found = gbsg2.load()
    assert found.labels.shape == (686, 2)
    assert found.labels[:, 1].sum() == 299  # events, in the paper and in every later one on these data
    assert found.labels[0].tolist() == [1814.0, 1.0]
    assert found.presence.all()
    assert found.table["age"].to_list()[:3] == [70.0, 56.0, 58.0]
    assert check.find_problems(found) == []
    assert np.isfinite(found.labels).all()


def test_without_lifelines_one_line_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install lifelines"):
        gbsg2.load()
