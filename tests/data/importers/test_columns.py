"""What columns are taken for, and numbers out of columns that hold other cells, too."""

import polars as pl
import pytest

from remind_jax.data.importers import columns


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2.5", None], "number"),
        (["True", "false", None, "TRUE"], "number"),
        (["007", "012", "101"], "codes"),
        (["a", "b"] * 10, "category"),
        (["one word", "two words here", "and more of them"], "text"),
        (["x.png", "y.JPG"], "image"),
        (["a.tif", "b.TIFF"], "image"),
        (["a.nii", "b.v2.nii.gz", "c.NII.GZ"], "volume"),
        (["a.png", "b.nii.gz"], "files of several kinds"),
        (["a/b.npy"], "embedding"),
        (["2020-01-02 10:00"], "a time"),
        (["01.02.2020", "31.12.2020"], "a time"),
        (["1/2/20", "12/31/2020 10:00", None], "a time"),
        (["1-Jan-2020", "2. März 2020", "Feb 3, 2020"], "a time"),
        (["10:30", "9:15:20"], "a time"),
        (["2020.5", "2021.5"], "number"),
        (["e11.9;i10", "j18.9"], "codes"),
        (["E11.9, I10", "J18"], "codes"),
        (["V45.1", *["401.9"] * 20], "codes"),
        ([f"患者主诉胸痛{i}天，今日出院" for i in range(30)], "text"),
        (["男", "女"] * 10, "category"),
        (["a b/c d 1.png", "e f.PNG"], "image"),
        ([*(f"p {i}.png" for i in range(30)), "none there"], "image"),
        ([*map(str, range(30)), ">200"], "number"),
        (["<1", ">2", "5-10", "4", "5", "6"], "number"),
        ([*(f"{i}.5" for i in range(30)), "pending"], "number"),
        (["1", "2", "unknown"] * 9, "category"),
        (["1,234", "5,678"], columns.UNCLEAR),
        ([None, None], "empty"),
        ([f"id{i}x" for i in range(200)], columns.IDS),
        ([f"w{i}-{'x' * (i % 9)}" for i in range(200)], columns.MANY),
    ],
)
def test_guesses(cells, kind):
    assert columns.decide(pl.Series(cells, dtype=pl.String)).word == kind


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["1", "2"])])
def test_columns_of_categories_are_categories_whatever_they_hold(dtype):
    assert columns.decide(pl.Series(["1", "2", None], dtype=dtype)).word == "category"


def test_guesses_do_not_depend_on_the_order_of_rows():
    """300 codes and a few other words: which come first must not matter."""
    cells = [*(f"A{i}" for i in range(300)), "unknown", "none known"]
    guesses = {columns.decide(pl.Series(order, dtype=pl.String)).word for order in (cells, cells[::-1])}
    assert guesses == {"codes"}
