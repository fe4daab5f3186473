"""What a sweep runs: methods times seeds with their configs, and what is refused before anything is run."""

import sys

import pytest

from remind_jax import cli, sweep
from remind_jax.errors import UserError
from remind_jax.methods import METHODS, PLAIN
from remind_jax.studies import entries
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
MIMIC = f"--config={tiny_runs.ROOT}/configs/mimic.py"


def _setup(*arguments: str) -> entries.Setup:
    parser = cli.Parser("it")
    entries.add_options(parser)
    return entries.read_setup(*parser.parse_known_args(arguments))


def _plan(tmp_path, *more: str) -> list[entries.Entry]:
    return _setup(MIMIC, *more).plan(tmp_path)


def test_all_methods_and_seeds_are_planned_seed_by_seed(tmp_path):
    planned = _plan(tmp_path, "--seeds=3,1")
    names = [*METHODS, *PLAIN]
    assert [(entry.seed, entry.method) for entry in planned] == [(s, name) for s in (3, 1) for name in names]
    for entry in planned:
        assert (entry.config.seed, entry.config.method) == (entry.seed, entry.method)
        assert entry.folder == tmp_path / f"{entry.method}-seed{entry.seed}"
    assert len({str(entry.folder) for entry in planned}) == len(planned)
    assert not list(tmp_path.iterdir())


def test_configs_are_those_of_single_runs(tmp_path):
    """Also keys that a method sets, texts, tuples and booleans."""
    given = ["--config.dro.gamma=0.3", "--config.sampler=shuffled", "--config.groups.tail=('icd',)"]
    given += ["--config.data.complete_only", "--noconfig.fusion.residual", "--config.data.root", "a b"]
    for entry in _setup(f"{MIMIC}:size=paper,method=reweigh", "--seeds=7", *given).plan(tmp_path):
        alone = cli.parse_config([f"{MIMIC}:size=paper,method={entry.method}", *given, "--config.seed=7"])[0]
        assert entry.config.to_dict() == alone.to_dict(), entry.method
        assert entry.config.data.root == "a b"
        assert not entry.config.fusion.residual


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_model_has_the_settings_of_soft_moe(tmp_path, name):
    planned = _plan(tmp_path, f"--methods={name},soft_moe", "--seeds=0")
    plain, network = (entry.config.to_dict() for entry in planned)
    assert plain.pop("method") == name
    network.pop("method")
    assert plain == network


def test_variants_change_what_the_command_line_gave(tmp_path):
    flags = ("--config.fusion.experts=12", "--config.dro.gamma=0.3", "--table=16", "--seeds=0")
    found = {entry.method: entry.config for entry in _plan(tmp_path, *flags)}
    assert (found["experts_half"].fusion.experts, found["experts_quarter"].fusion.experts) == (6, 3)
    assert (found["experts_half"].dro.gamma, found["dro_gamma_0.5"].dro.gamma) == (0.3, 0.5)
    assert {config.method for config in found.values()} == {"remind"}


def test_a_study_changes_keys_and_a_variant_has_the_last_word(tmp_path):
    planned = _setup(MIMIC, "--table=16", "--seeds=0").plan(tmp_path, {"dro.gamma": 0.2, "data.leave_out": ("a", "b")})
    found = {entry.method: (entry.config.dro.gamma, entry.config.data.leave_out) for entry in planned}
    assert found["remind"] == (0.2, ("a", "b"))
    assert found["dro_gamma_0.5"] == (0.5, ("a", "b"))


def test_baseline_is_soft_moe_or_the_first():
    def baselines(*more):
        return _setup(f"{MIMIC}:size=paper,method=remind", *more).options.baselines

    assert baselines() == ["soft_moe"]
    assert baselines("--methods=remind,soft_moe") == ["soft_moe"]
    assert baselines("--methods=remind,reweigh") == ["remind"]
    assert baselines("--methods=remind,reweigh", "--baseline=reweigh") == ["reweigh"]
    assert baselines("--methods=remind,reweigh", "--baseline=reweigh,remind,reweigh") == ["reweigh", "remind"]
    assert baselines("--table=16") == ["remind"]


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--methods=remnd"], ("'remnd'", "did you mean 'remind'")),
        (["--seeds=0,0"], ("twice",)),
        (["--seeds=0,x"], ("command line", "x")),
        (["--baseline=group_dro", "--methods=remind"], ("baseline=group_dro", "remind")),
        (["--baseline=remind,group_dro", "--methods=remind"], ("baseline=group_dro", "remind")),
        (["--table=17"], ("table=17", "4, 16")),
        (["--jobs=0"], ("jobs",)),
        (["--share", "--jobs=2"], ("start the same command 2 times",)),
        (["--engine=slurm"], ("--engine", "slurm", "local", "ray")),
        (["--gpus=1"], ("--gpus", "--engine=ray", "--jobs")),
        (["--engine=ray", "--share"], ("leave out --share",)),
        (["--engine=ray", "--jobs=2"], ("leave out --share and --jobs",)),
        (["--engine=ray", "--address=ray://head:10001"], ("address=ray://head:10001", "HOST:PORT")),
        (["--engine=ray", "--gpus=1.5"], ("gpus=1.5", "whole")),
        (["--engine=ray", "--cpus=0"], ("cpus", "at least")),
        (["--config.optim.lrr=1"], ("lrr",)),
        (["--wrokdir=x"], ("wrokdir",)),
        (["extra"], ("unexpected arguments", "extra")),
        (["--workdir="], ("no workdir",)),
    ],
)
def test_mistakes_are_named_before_anything_is_run(tmp_path, more, parts):
    with pytest.raises(UserError) as error:
        sweep.main([MIMIC, f"--workdir={tmp_path / 'sweep'}", *more])
    assert all(part in str(error.value) for part in parts)
    assert not (tmp_path / "sweep").exists()


def test_without_ray_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    with pytest.raises(UserError, match=r"ray is not installed: pip install ray .*extra ray"):
        sweep.main([MIMIC, f"--workdir={tmp_path / 'sweep'}", "--engine=ray"])
    assert not (tmp_path / "sweep").exists()
