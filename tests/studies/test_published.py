import collections

import pytest

from remind_jax.data.groups import group_name
from remind_jax.data.missingness import parse_combinations
from remind_jax.data.sources import embed, image_twins, mimic_iv_twin
from remind_jax.studies import published
from remind_jax.studies.published import MODALITIES, Published


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("twin of MIMIC-IV (synthetic)", Published("MIMIC-IV", True)),
        ("MIMIC-IV 2.2", Published("MIMIC-IV", False)),
        ("EMBED", Published("EMBED", False)),
        ("fprm", Published("FPRM", False)),
        ("NHANES 2017-18", None),
        ("phenomenon (synthetic)", None),
    ],
)
def test_data_sets_of_the_paper_are_told_from_others(title, expected):
    assert published.published(title) == expected


@pytest.mark.parametrize(
    ("dataset", "method", "modalities", "metric", "expected"),
    [
        ("MIMIC-IV", "remind", ("notes",), "accuracy", (90.8, 1.53, 2)),
        ("MIMIC-IV", "fair_batch", ("labs",), "accuracy", (67.8, 2.42, 2)),
        ("EMBED", "soft_moe", None, "accuracy", (78.5, 0.2, 1)),
        ("EMBED", "remind", ("2d_mlo", "2d_cc"), "macro_f1", (75.1, 2.0, 8)),
        ("FPRM", "remind", ("fundus", "oxygen", "tabular"), "accuracy", (100.0, 0.0, 3)),
        ("FPRM", "remind", ("fundus", "flow", "tabular"), "accuracy", (100.0, 0.0, 3)),  # its other name
        ("EMBED", "remind_no_specialization", None, "accuracy", (80.0, None, 4)),
        ("EMBED", "residual_sinusoidal", ("c_view_cc", "2d_cc", "2d_mlo"), "accuracy", (65.5, None, 16)),
    ],
)
def test_figures_of_the_paper(dataset, method, modalities, metric, expected):
    assert Published(dataset, False).figure(method, modalities, metric) == pytest.approx(expected)


def test_what_the_paper_does_not_have_is_none():
    paper = Published("EMBED", True)
    assert paper.figure("remind_plus", None, "accuracy") is None
    assert paper.figure("remind", None, "auroc") is None
    assert paper.figure("remind", ("c_view_mlo",), "accuracy") is None
    assert paper.figure("remind", ("notes",), "accuracy") is None


def test_every_published_combination_of_the_twins_has_figures():
    """Names of modalities here and in the sources are the same."""
    sources = {"EMBED": embed.PUBLISHED, "MIMIC-IV": mimic_iv_twin.PUBLISHED, "FPRM": image_twins.FPRM_PUBLISHED}
    for dataset, combinations in sources.items():
        masks, _ = parse_combinations(combinations, MODALITIES[dataset])
        for mask in masks:
            names = group_name(mask, MODALITIES[dataset]).split("+")
            assert Published(dataset, True).figure("flex_moe", names, "macro_f1") is not None


def test_the_file_is_whole():
    """Tables 1 to 3 have 8 methods; 7, 8 and 6 rows; twice, for accuracy and F1. Table 4 adds 2 columns, 16 adds 6."""
    counts = collections.Counter(key[0] for key in published._figures())
    assert counts == {"EMBED": 2 * 7 * 8 + 7 * 8, "MIMIC-IV": 2 * 8 * 8, "FPRM": 2 * 6 * 8}
    overall = [figure.mean for (_, _, group, method), figure in published._figures().items() if group == "all"]
    assert all(50 < mean < 100 for mean in overall)
