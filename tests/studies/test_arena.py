"""The arena: cells and their runs, the file of results, what is added to it, and what a second run says of it."""

import contextlib
import csv
import io
import json
import pathlib
import shutil

import pytest

from configs import arena as open_arena
from remind_jax import cli, sweep, tasks
from remind_jax.config import keys, value_of
from remind_jax.data import dataset
from remind_jax.errors import UserError
from remind_jax.methods import ARENA, METHODS, PLAIN
from remind_jax.studies import arena, arena_results, entries, runner
from remind_jax.training import cost
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
DATA = {key: value for key, value in tiny_runs.TINY.items() if key.startswith("data.")}
KEYS = {key: value for key, value in tiny_runs.TINY.items() if key not in DATA | {"train.select": ""}}
KEYS |= {"train.epochs": 1.0, "train.joint_epochs": 0.5, "eval.bootstrap": 20}
SETS = {
    "one": ("phenomenon", DATA | {"train.select": "loss"}),
    "two": ("phenomenon", DATA | {"train.select": "loss", "data.train": 120, "data.held_out_per_group": 14}),
    "bad": ("phenomenon", DATA | {"train.select": "c_index"}),
    "away": ("heart", {}),
}
FILE = f"""
SETS = {SETS!r}
METHODS = ("logistic_regression", "gradient_boosting")
PROTOCOLS = {open_arena.PROTOCOLS!r}
SECONDS = {{"one": 36, "two": 72}}
"""


class Place:
    """A folder with the file of an arena, a cache, and what its pages were made of."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.pages = folder, []
        (folder / "arena.py").write_text(FILE, encoding="utf-8")

    def arguments(self, *options: str, out: str = "out") -> list[str]:
        keys = [f"--config.{key}={value}" for key, value in (KEYS | {"data.cache": self.folder / "cache"}).items()]
        where = [f"--config={self.folder / 'arena.py'}", f"--workdir={self.folder / out}"]
        return [*where, "--resamples=20", *keys, *options]

    def read(self, *options: str, out: str = "out") -> arena.Arena:
        arguments = self.arguments(*options, out=out)
        return arena.read(entries.arena_of(arguments), arguments)

    def run(self, *options: str, out: str = "out") -> str:
        """What the command prints."""
        arguments, printed = self.arguments(*options, out=out), io.StringIO()
        with contextlib.redirect_stdout(printed):
            arena.main(entries.arena_of(arguments), arguments, lambda *given: self.pages.append(given))
        return printed.getvalue()

    def rows(self, out: str = "out") -> list[dict[str, str]]:
        with open(self.folder / out / "arena.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


SOME = ("--sets=one,two", "--protocols=as_found,mcar-0.5", "--seeds=0", "--methods=late_fusion,logistic_regression")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished arena of two sets, two protocols, a network and a plain model, and what it printed."""
    place = Place(tmp_path_factory.mktemp("arena"))
    return place, place.run(*SOME)


def test_a_row_has_the_figures_and_costs_of_its_run(done):
    place, _ = done
    rows = place.rows()
    cells = [(data, protocol) for data in ("one", "two") for protocol in ("as_found", "mcar-0.5")]
    assert [tuple(row.values())[:4] for row in rows] == [
        (*cell, method, "0") for cell in cells for method in ("late_fusion", "logistic_regression")
    ]
    for row in rows:
        folder = place.folder / "out" / f"{row['data']}-{row['protocol']}" / f"{row['method']}-seed0"
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert (row["task"], row["figure"], row["second"]) == ("classes", "auroc", "macro_f1")
        assert float(row["value"]) == 100 * report["overall"]["auroc"]
        assert float(row["second_tail"]) == 100 * report["tail_pooled"]["macro_f1"]
        assert float(row["worst"]) == 100 * report["worst_group"]["accuracy"]
        assert [int(row[name]) for name in ("n", "n_tail", "parameters")] == [
            report["n"],
            report["tail_pooled"]["n"],
            report["parameters"],
        ]
        assert float(row["seconds"]) > 0
        assert float(row["processor_seconds"]) > 0
        assert bool(row["flops"]) == (row["method"] == "late_fusion")
        assert row["jax"] == json.loads((folder / "environment.json").read_text("utf-8"))["packages"]["jax"]
    # Methods are paired by samples and their modalities; predictions and settings are each run's own.
    held_out = {(row["data"], row["protocol"]): row["rows"] for row in rows}
    assert len(set(held_out.values())) == 4
    assert all(row["rows"] == held_out[row["data"], row["protocol"]] for row in rows)
    assert len({row["predictions"] for row in rows}) == len({row["config"] for row in rows}) == 8


def test_the_page_is_made_of_the_rows_and_the_differences_of_each_cell(done):
    place, printed = done
    ((folder, rows, differences, notes),) = place.pages[:1]
    assert (folder, rows, notes) == (place.folder / "out", place.rows(), [])
    assert list(differences) == [(d, p) for d in ("one", "two") for p in ("as_found", "mcar-0.5")]
    for (data, protocol), some in differences.items():
        with open(folder / f"{data}-{protocol}" / "differences.csv", encoding="utf-8", newline="") as file:
            assert some == list(csv.DictReader(file)) != []
    assert "== two-mcar-0.5 (4 of 4)" in printed


def test_the_command_writes_the_page_beside_the_rows(tmp_path, capsys):
    place = Place(tmp_path)
    sweep.main(place.arguments("--sets=one,two", "--seeds=0"))
    assert {"index.html", "arena.md", "arena.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "arena.md").read_text("utf-8")
    assert page.startswith("# Arena: 2 methods on 2 data sets")
    assert "gradient_boosting" in page
    assert capsys.readouterr().out.rstrip().endswith("arena.csv")


def test_the_same_command_runs_nothing_again(done):
    place, _ = done
    before = place.rows(), [path.stat().st_mtime_ns for path in sorted(place.folder.glob("out/*/*/report.json"))]
    printed = place.run(*SOME)
    assert printed.count("(finished before)") == 8
    after = [path.stat().st_mtime_ns for path in sorted(place.folder.glob("out/*/*/report.json"))]
    assert (place.rows(), after) == before


def test_other_settings_are_no_results_of_this_arena(done, tmp_path):
    place, _ = done
    shutil.copytree(place.folder / "out", place.folder / "other")
    (place.folder / "other" / "arena.csv").unlink()
    one = ("--sets=one", "--protocols=as_found", "--seeds=0", "--methods=late_fusion,logistic_regression")
    with pytest.raises(UserError, match="1 of 1 sweeps have failed: one-as_found: 1 of 2 runs failed: late_fusion"):
        place.run(*one, "--config.optim.lr=0.5", out="other")
    assert [row["method"] for row in place.rows("other")] == ["logistic_regression"]


# ---- Going on, and failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_arena_goes_on(tmp_path, monkeypatch, seeds):
    options = ("--sets=one,two", f"--seeds={','.join(map(str, range(seeds)))}")
    place, run_config, seen = Place(tmp_path), runner.run_config, []

    def stopping(config, folder, *rest):
        seen.append(folder.name)
        if len(seen) == 2 * seeds + 2:  # the second run of the second set
            raise KeyboardInterrupt
        return run_config(config, folder, *rest)

    monkeypatch.setattr(runner, "run_config", stopping)
    with pytest.raises(KeyboardInterrupt):
        place.run(*options)
    assert [row["data"] for row in place.rows()] == ["one"] * 2 * seeds
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/report.json")}
    assert len(kept) == 2 * seeds + 1
    place.run(*options)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = Place(tmp_path)
    whole.run(*options, out="at_once")
    unclocked = [name for name in arena_results.COLUMNS if "seconds" not in name]
    assert [[row[name] for name in unclocked] for row in place.rows()] == [
        [row[name] for name in unclocked] for row in whole.rows("at_once")
    ]


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    place = Place(tmp_path)
    with pytest.raises(UserError, match=r"1 of 3 sweeps have failed: bad-as_found: no run finished.*c_index"):
        place.run("--sets=one,bad,two", "--seeds=0")
    assert [(row["data"], row["method"]) for row in place.rows()] == [
        (data, method) for data in ("one", "two") for method in ("logistic_regression", "gradient_boosting")
    ]
    ((_, rows, _, notes),) = place.pages
    assert len(rows) == 4
    assert notes[0].startswith("bad-as_found: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sets=one,away",), r"set away is not at hand: data.root is empty.*\(in the arena --roots=away=DIR names"),
        (("--sets=onne",), "set 'onne' is unknown .did you mean 'one'"),
        (("--roots=three=x",), "set 'three' is unknown"),
        (("--protocols=mcer-0.3",), "protocol 'mcer-0.3' is unknown .did you mean 'mcar'"),
        (("--protocols=mcar-1.5",), "its rate must be above 0 and below 1, such as mcar-0.3"),
        (("--protocols=as_found-0.3",), "as_found has no rate"),
        (("--methods=soft_mo",), "unknown method 'soft_mo'"),
        (("--table=4",), "--table is of the sweep of one data set"),
        (("--set=one",), "unknown option --set .did you mean '--sets'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        Place(tmp_path).run(*(("--sets=one",) if "sets" not in options[0] else ()), *options)
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_runs_and_goes_by_finished_ones(done, tmp_path):
    place, _ = done
    printed = Place(tmp_path).run("--plan", "--sets=one,two", "--seeds=0,1,2")
    assert "one-as_found                           6        0    0.06  the file of the arena" in printed
    assert "12 runs are open: about 0.2 hours one by one" in printed  # 6 of 36 s and 6 of 72 s
    some = [option for option in SOME if "seeds" not in option]
    printed = place.run("--plan", "--seeds=0,1", "--jobs=2", *some)
    assert printed.count("finished runs") == 4
    assert "\nall                                   16        8 " in printed
    record = json.loads((place.folder / "out" / "one-as_found" / "sweep.json").read_text("utf-8"))["runs"]
    assert all(run["seconds"] for run in record.values())
    assert not (tmp_path / "out").exists()


# ---- Protocols -------------------------------------------------------------------------------------------------------


def test_protocols_reach_the_data(tmp_path):
    place = Place(tmp_path)
    asked = place.read("--sets=one", "--seeds=3", "--protocols=as_found,mcar,mnar-0.6,shift-0.5,unseen")
    cells = {cell.protocol: cell for cell in asked.cells()}
    assert list(cells) == ["as_found", "mcar-0.3", "mnar-0.6", "shift-0.5", "unseen-0.2"]
    fitted = {name: dataset.fit(cell.runs[0].config) for name, cell in cells.items()}
    found = fitted["as_found"]
    held_out = found.split == dataset.splits.HELD_OUT
    count = {name: each.manifest.presence[~held_out].sum() for name, each in fitted.items()}
    lost = {name: each.manifest.presence[held_out].sum() for name, each in fitted.items()}
    assert count["as_found"] == count["shift-0.5"] > count["mcar-0.3"] > count["mnar-0.6"]
    assert lost["as_found"] > lost["mcar-0.3"] > lost["shift-0.5"] > lost["mnar-0.6"]
    unseen = fitted["unseen-0.2"]
    assert (unseen.split[~held_out] == dataset.splits.UNUSED).any()
    assert not unseen.groups.tail.any()
    for cell in cells.values():
        assert {each.config.seed for each in cell.runs} == {3}
        assert len({json.dumps(each.config.data.to_dict()) for each in cell.runs}) == 1  # all methods see the same


def test_the_tail_of_unseen_combinations_is_those_samples(tmp_path):
    place = Place(tmp_path)
    place.run("--sets=one", "--seeds=0", "--protocols=unseen", "--methods=logistic_regression")
    (row,) = place.rows()
    report = json.loads(next(place.folder.glob("out/*/*/report.json")).read_text("utf-8"))
    unseen = sum(group["n"] for group in report["groups"] if group.get("unseen"))
    assert int(row["n_tail"]) == unseen > 0


def test_the_open_arena_has_twenty_methods_on_five_sets():
    assert len(open_arena.METHODS) == len(set(open_arena.METHODS)) == 20
    assert set(open_arena.METHODS) <= {*METHODS, *ARENA, *PLAIN}
    assert set(open_arena.SETS) == set(open_arena.SECONDS)
    for name, (config, changes) in open_arena.SETS.items():
        given = cli.read_config([f"--config={config}"]).config
        assert given.size == "small", name
        assert set(changes) <= set(keys(given.data.source))
        for changed, _ in open_arena.PROTOCOLS.values():
            for key in changed:
                value_of(given, key)
    asked = arena.read(entries.arena_of(["--config=arena"]), ["--config=arena", "--workdir=x", "--roots=heart=y"])
    assert [entry.method for entry in asked.cell("heart", "mar", asked.folder).runs[:20]] == list(open_arena.METHODS)
    assert asked.cell("heart", "mar", asked.folder).runs[0].config.data.root == "y"
    with pytest.raises(UserError, match=r"configs/arena.py holds many data sets"):
        cli.parse_config(["--config=arena"])


def test_only_the_file_of_an_arena_is_taken_for_one(tmp_path):
    assert entries.arena_of(["--config=nhanes", "--workdir=x"]) is None
    assert entries.arena_of(["--workdir=x"]) is None
    assert entries.arena_of(["--config=nothing"]) is None
    (tmp_path / "broken.py").write_text("SETS = ", encoding="utf-8")
    assert entries.arena_of([f"--config={tmp_path / 'broken.py'}"]) is None
    assert entries.arena_of(["--config", "arena:size=quick"])["SETS"] == open_arena.SETS


# ---- Rows of others --------------------------------------------------------------------------------------------------


def _file(path: pathlib.Path, rows: list[dict[str, str]]) -> pathlib.Path:
    arena_results.write(path, rows)
    return path


def test_rows_of_others_are_added_and_stay(done, tmp_path):
    place, _ = done
    theirs = [row | {"method": "mine", "value": "99.5"} for row in place.rows()[:2]][:1]
    shutil.copytree(place.folder / "out", place.folder / "grown")
    ours = place.rows("grown")
    place.run(f"--append={_file(tmp_path / 'theirs.csv', theirs)}", out="grown")
    assert place.rows("grown") == [*ours, *theirs]
    assert place.pages[-1][1] == [*ours, *theirs]
    place.run(*SOME, out="grown")
    assert place.rows("grown") == [*ours, *theirs]


def test_rows_of_a_seed_that_was_not_run_here_are_compared_with_the_data(done, tmp_path):
    """In an empty folder no run says which samples were held out."""
    place, _ = done
    one = place.rows()[:1]
    place.run(f"--append={_file(tmp_path / 'theirs.csv', one)}", out="empty")
    assert place.rows("empty") == one
    with pytest.raises(UserError, match="its held-out samples are others than ours of one as_found 4"):
        place.run(f"--append={_file(tmp_path / 'theirs.csv', [one[0] | {'seed': '4'}])}", out="empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "row 2: one as_found late_fusion 0 is in .*arena.csv already"),
        ({"method": "mine", "rows": "0" * 64}, "its held-out samples are others than ours of one as_found 0"),
        ({"method": "mine", "data": "three"}, "set 'three' is unknown"),
        ({"method": "mine", "protocol": "mcor-0.5"}, "protocol 'mcor-0.5' is unknown"),
        ({"method": "mine", "protocol": "mcar"}, "protocol 'mcar' is written mcar-0.3"),
        ({"method": "<b>"}, "row 2: method is not what the column holds"),
        ({"method": "mine", "value": "nan"}, "row 2: value is not"),
        ({"method": "mine", "value": ""}, "row 2: value is not"),
        ({"method": "mine", "seed": "-1"}, "row 2: seed is not"),
        ({"method": "mine", "rows": "A" * 64}, "row 2: rows is not"),
        ({"method": "mine", "processor": "a\x1b[0m"}, "row 2: processor is not"),
    ],
)
def test_rows_that_do_not_belong_are_refused_and_none_is_added(done, tmp_path, change, message):
    place, _ = done
    before = place.rows()
    good = before[0] | {"method": "good"}
    path = _file(tmp_path / "theirs.csv", [before[0] | change, good])
    with pytest.raises(UserError, match=message):
        place.run(f"--append={path}")
    assert place.rows() == before


def test_another_file_is_no_file_of_results(done, tmp_path):
    place, _ = done
    path = tmp_path / "theirs.csv"
    path.write_text("data,method\na,b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"theirs.csv is no file of results: its columns must be data,protocol,"):
        place.run(f"--append={path}")
    with pytest.raises(UserError, match="there is no file"):
        place.run(f"--append={tmp_path / 'nothing.csv'}")
    twice = [place.rows()[0] | {"method": "mine"}] * 2
    with pytest.raises(UserError, match="has two rows of one data set, protocol, method and seed"):
        place.run(f"--append={_file(path, twice)}")


# ---- Run again -------------------------------------------------------------------------------------------------------


def test_rows_that_hold_are_the_same_in_a_second_run(done):
    place, _ = done
    rows = [row for row in place.rows() if row["method"] == "logistic_regression"]
    path = _file(place.folder / "sound.csv", rows)
    printed = place.run(f"--verify={path}:2", out="again")
    verified = [line for line in printed.splitlines() if line.endswith(": exactly the same")]
    assert verified == [
        "one as_found logistic_regression 0: exactly the same",
        "two as_found logistic_regression 0: exactly the same",
    ]


def test_a_changed_figure_is_found(done):
    place, _ = done
    (row,) = [row for row in place.rows() if (row["method"], row["data"]) == ("logistic_regression", "two")][:1]
    near = row | {"value": repr(float(row["value"]) + 0.5)}
    printed = place.run(f"--verify={_file(place.folder / 'near.csv', [near])}", out="again")
    assert f"value {row['value'][:12]} for {near['value'][:12]}" in printed
    far = row | {"second_tail": repr(float(row["second_tail"]) - 1.5)}
    with pytest.raises(UserError, match=r"1 of 1 rows of far.csv do not hold: two as_found logistic_regression 0"):
        place.run(f"--verify={_file(place.folder / 'far.csv', [far])}", out="again")
    other = row | {"rows": "0" * 64}
    with pytest.raises(UserError, match="1 of 1 rows"):
        place.run(f"--verify={_file(place.folder / 'other.csv', [other])}", out="again")


def test_a_run_that_cannot_be_made_does_not_hold(done):
    place, _ = done
    bad = place.rows()[0] | {"data": "bad", "method": "logistic_regression"}
    theirs = place.rows()[0] | {"method": "mine"}
    with pytest.raises(UserError, match=r"2 of 2 rows of bad.csv do not hold: one as_found mine 0; bad as_found"):
        place.run(f"--verify={_file(place.folder / 'bad.csv', [bad, theirs])}", out="again")


# ---- Hashes, and work ------------------------------------------------------------------------------------------------


def test_hashes_are_of_contents_and_leave_out_places(done, tmp_path):
    place, _ = done
    run = place.folder / "out" / "one-as_found" / "late_fusion-seed0"
    config = json.loads((run / "config.json").read_text("utf-8"))
    digest = arena_results.settings_digest
    moved = json.loads(json.dumps(config))
    moved["data"]["cache"], moved["compilation_cache"], moved["seed"] = "/elsewhere", "/there", 9
    assert digest(moved) == digest(config)
    moved["optim"]["lr"] = 0.5
    assert digest(moved) != digest(config)
    older = json.loads(json.dumps(config))
    del older["data"]["lose"]  # a key of its default, which an older version did not have
    assert digest(older) == digest(config)


def test_work_is_that_of_all_passes_of_a_step(tmp_path):
    """Twice the passes of the same network: SimMLM's step also predicts samples that have lost modalities."""
    given = cli.read_config(tiny_runs.arguments(tmp_path / "cache"))
    whole = given.of_method("simmlm")
    alone = given.of_method("simmlm")
    alone.objective.fewer_weight = alone.objective.mofe_weight = 0.0
    assert cost.step_flops(whole) == pytest.approx(2 * cost.step_flops(alone), rel=0.05)
    assert cost.step_flops(given.of_method("logistic_regression")) is None
    one, two = given.of_method("soft_moe"), given.of_method("soft_moe")
    two.ensemble = 2
    assert cost.step_flops(two) == 2 * cost.step_flops(one)


@pytest.mark.parametrize(
    ("task", "pair"),
    [
        ("classes", ("auroc", "macro_f1")),
        ("ordinal", ("auroc", "macro_f1")),
        ("multilabel", ("auroc_macro", "auprc_macro")),
        ("survival", ("c_uno", "c_index")),
        ("regression", ("mae", "rmse")),
    ],
)
def test_the_two_figures_of_a_task(task, pair):
    made = object.__new__(tasks.TASKS[task])  # what is compared is the class's
    assert arena_results.chosen(made.compared) == pair
