"""The made-up stays: what their outcome hangs on, and on what it does not."""

import numpy as np
import polars as pl
import pytest

from remind_jax import cli
from remind_jax.data import check
from remind_jax.data.sources import events_twin
from remind_jax.errors import UserError
from remind_jax.evaluation import metrics
from tests import tiny_runs

N = 4_000


def auroc(labels, scores):
    return metrics.auroc(labels, np.stack([-scores, scores], axis=1))[0]


@pytest.fixture(scope="module")
def made():
    return events_twin.load(n=N, seed=1), events_twin.draw(N, np.random.default_rng(1))


def test_it_is_a_sound_manifest_and_says_that_it_is_made_up(made):
    manifest, stays = made
    assert not [each for each in check.find_problems(manifest) if each.fatal]
    assert "synthetic" in manifest.title
    np.testing.assert_array_equal(manifest.presence, stays.present)
    assert events_twin.load(n=N, seed=1).digest == manifest.digest != events_twin.load(n=N, seed=2).digest


def test_outcomes_are_drawn_by_the_risk(made):
    manifest, stays = made
    for low in (0.1, 0.4, 0.8):
        inside = (stays.risk >= low) & (stays.risk < low + 0.1)
        assert abs(manifest.labels[inside].mean() - stays.risk[inside].mean()) < 4 * np.sqrt(0.25 / inside.sum())
    assert auroc(manifest.labels, stays.risk) > 0.85


def test_the_last_heart_rate_tells_nothing_and_its_course_does(made):
    manifest, stays = made
    have = stays.present[:, 0]
    rows = pl.DataFrame({"row": np.flatnonzero(have), "cell": manifest.table["vitals"].filter(pl.Series(have))})
    events = rows.explode("cell").unnest("cell").filter(pl.col("code") == "heart rate")
    ends = events.group_by("row", maintain_order=True).agg(
        first=pl.col("value").first(), last=pl.col("value").last(), n=pl.len()
    )
    labels = manifest.labels[ends["row"].to_numpy()]
    last, course = ends["last"].to_numpy(), (ends["last"] - ends["first"]).to_numpy()
    assert abs(auroc(labels, last) - 0.5) < 0.05
    assert auroc(labels, course) > 0.65


def test_a_drug_soon_after_a_fall_is_what_protects(made):
    manifest, stays = made
    for i in np.flatnonzero(stays.present[:, 0])[:200]:
        events = manifest.table["vitals"][int(i)].struct.unnest()
        fall = events.filter((pl.col("code") == "pressure") & (pl.col("value") < 56))["hours"]
        drug = events.filter(pl.col("code") == "vasopressor")["hours"].item()
        after = drug - fall[(fall - drug).abs().arg_min()]
        assert (0 <= after <= 2) == (stays.response[i] < 0), i


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
def test_the_config_reads_it_and_sizes_are_checked():
    config = cli.parse_config(["--config=events"])[0]
    assert (config.data.source, config.data.stays, config.model.event_layers) == ("events", 3_000, 0)
    for wrong in ({"n": 0}, {"most": 0}):
        with pytest.raises(UserError, match="must be at least 1"):
            events_twin.load(**{"n": 5} | wrong)
