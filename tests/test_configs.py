"""The config files: what each method and size sets, and that no shared key is mute or unread."""

import ast
import importlib
import io
import pathlib
import tokenize

import pytest

from configs import common
from remind_jax import settings
from remind_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "common")
# Design, methods of the paper: fusion with group routers, missing tokens, objective, sampler.
DESIGN = {
    "soft_moe": (False, "modality", "erm", "shuffled"),
    "fair_mixup": (False, "modality", "erm", "group_pairs"),
    "reweigh": (False, "modality", "reweigh", "shuffled"),
    "group_dro": (False, "modality", "group_dro", "group_balanced"),
    "fair_batch": (False, "modality", "erm", "fair_batch"),
    "fuse_moe": (False, "modality", "erm", "shuffled"),
    "flex_moe": (False, "bank", "erm", "most_modalities_first"),
    "logit_adjust": (False, "modality", "erm", "shuffled"),
    "remind": (True, "group", "group_dro", "shuffled"),
    "remind_no_dro": (True, "group", "erm", "shuffled"),
    "remind_no_specialization": (False, "group", "group_dro", "shuffled"),
    "remind_plus": (True, "modality+group", "group_dro", "shuffled"),
}


def _build(name: str, argument: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(argument)


def _leaves(config, prefix: str = "") -> set[str]:
    leaves = set()
    for key, value in config.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}"}
    return leaves


@pytest.mark.parametrize("size", common.SIZES)
@pytest.mark.parametrize("method", common.METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_and_is_valid(name, method, size):
    config = _build(name, f"method={method},size={size}")
    settings.validate(config)
    settings.model_spec(config)
    assert (config.method, config.size) == (method, size)
    assert _leaves(config) >= _leaves(common.base())


def test_defaults_are_remind_and_small():
    for name in NAMES:
        assert _build(name).to_dict() == _build(name, "size=small,method=remind").to_dict()
        assert (_build(name).method, _build(name).size) == ("remind", "small")


@pytest.mark.parametrize("method", common.METHODS)
def test_methods_are_those_of_the_design(method):
    config = _build("mimic", f"method={method}")
    found = (config.fusion.group_routers, config.model.imputation, config.objective.kind, config.sampler)
    assert found == DESIGN[method]


def test_design_and_presets_name_the_same_methods():
    assert set(DESIGN) == set(common.METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_methods_differ_in_method_keys_only(name):
    """Encoders, optimizer, epochs and data of all methods of a data set are the same: a fair comparison."""
    allowed = {key for preset in common.METHODS.values() for key in preset} | {"method"}
    one = _flat(_build(name, "method=remind"))
    for method in common.METHODS:
        other = _flat(_build(name, f"method={method}"))
        assert {key for key in one if one[key] != other[key]} <= allowed


def _flat(config) -> dict:
    flat = {}
    for leaf in _leaves(config):
        value = config
        for part in leaf.split("."):
            value = value[part]
        flat[leaf] = value
    return flat


def test_group_dro_is_that_of_sagawa_and_remind_that_of_the_design():
    sagawa, remind = _build("mimic", "method=group_dro").dro, _build("mimic", "method=remind").dro
    assert (sagawa.every, sagawa.initial, sagawa.weights) == (1, "uniform", "updated")
    assert (remind.every, remind.initial, remind.weights, remind.gamma) == (10, "sqrt_frequency", "current", 0.02)


@pytest.mark.parametrize("name", ["nhanes", "heart", "manifest"])
def test_many_combinations_take_the_imputation_with_a_modality_part(name):
    for method in ("remind", "remind_no_dro", "remind_no_specialization"):
        assert _build(name, f"method={method}").model.imputation == "modality+group"


def test_small_data_presets_are_regularised():
    config = _build("nhanes")
    assert (config.model.encoder_dropout, config.fusion.dropout, config.optim.weight_decay) == (0.4, 0.4, 0.3)
    assert config.optim.ema > 0
    assert config.train.select == "loss"


# Paper, section 7.4: learning rate, weight decay, width, experts, most epochs.
PAPER = {
    "nhanes": (5e-5, 5e-6, 128, 32, 50),
    "heart": (5e-5, 5e-6, 128, 32, 50),
    "mimic": (1e-4, 5e-5, 768, 128, 20),
    "phenomenon": (5e-5, 5e-5, 768, 128, 20),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_size_has_the_published_hyper_parameters(name):
    config = _build(name, "size=paper")
    optim, fusion = config.optim, config.fusion
    found = (optim.lr, optim.weight_decay, config.model.width, fusion.experts, config.train.epochs)
    assert found == pytest.approx(PAPER[name])
    assert (fusion.heads, fusion.slots, config.train.batch_size) == (8, 1, 32)
    assert (config.objective.loss, config.objective.focal_gamma) == ("focal", 2.0)
    assert (optim.schedule, optim.step_epochs, optim.step_rate) == ("step", 5.0, 0.1)
    assert (optim.ema, optim.clip, optim.decay) == (0.0, 0.0, "all")
    assert config.dro.gamma == 0.02
    assert config.model.text_size == "base"
    assert config.model.tokens == 16
    # One expert maps width -> 4 x width -> width: the parameter counts of the paper say so.
    assert fusion.hidden == 4 * config.model.width


@pytest.mark.parametrize("method", common.METHODS)
def test_fair_mixup_on_embed_takes_the_smaller_batch_and_rate_of_the_paper(method):
    """Paper, section 7.4.2, EMBED: batch 16 and 2e-5 for FairMixup, 32 and 5e-5 for the others."""
    config = _build("embed", f"method={method},size=paper")
    expected = (16, 2e-5) if method == "fair_mixup" else (32, 5e-5)
    assert (config.train.batch_size, config.optim.lr) == pytest.approx(expected)
    assert config.optim.weight_decay == pytest.approx(5e-5)
    assert _build("embed", f"method={method}").train.batch_size == common.base().train.batch_size


def test_mimic_reads_every_modality_as_text_at_paper_size():
    """Paper, section 7.4.2: "we treat each modality as text input"."""
    assert (_build("mimic").data.icd, _build("mimic", "size=paper").data.icd) == ("codes", "text")
    assert _build("mimic", "size=paper").data.labs == "text"


def test_twin_names_the_tail_of_the_paper():
    assert set(_build("mimic").groups.tail) == {"notes", "labs", "icd"}


# ---- The argument string ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("method=remnd", ("'remnd'", "did you mean 'remind'", "soft_moe")),
        ("size=papr", ("'papr'", "did you mean 'paper'", "small")),
        ("sise=small", ("'sise'", "did you mean 'size'", "method")),
        ("remind", ("'remind'", "method, size")),
        ("method", ("unknown method ''",)),
        ("method=", ("unknown method ''",)),
        ("method=Remind", ("'Remind'", "did you mean 'remind'")),
    ],
)
def test_bad_argument_is_named_with_what_is_known(argument, parts):
    with pytest.raises(UserError) as error:
        _build("mimic", argument)
    assert all(part in str(error.value) for part in parts)
    assert "\n" not in str(error.value)


def test_argument_string_in_any_order_and_with_loose_commas():
    expected = _build("mimic", "method=soft_moe,size=paper").to_dict()
    assert _build("mimic", "size=paper,method=soft_moe").to_dict() == expected
    assert _build("mimic", ",size=paper,,method=soft_moe,").to_dict() == expected


# ---- Shared keys -----------------------------------------------------------------------------------------------------


def test_every_shared_key_says_what_it_is():
    source = (ROOT / "configs" / "common.py").read_text(encoding="utf-8")
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    base = next(node for node in ast.parse(source).body if getattr(node, "name", "") == "base")
    keys = [
        (node.lineno, ast.unparse(node.targets[0]))
        for node in base.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Attribute)
        and "ConfigDict" not in ast.unparse(node.value)
    ]
    assert len(keys) == len(_leaves(common.base()))
    assert [name for line, name in keys if line not in commented] == []


def test_every_shared_key_is_read_by_the_program():
    """A key that nothing reads would promise what does not happen."""
    read = set()
    for path in [*(ROOT / "remind_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # In configs only reading counts: assignments to `config.size` and the like are Store.
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else ast.unparse(node.value)
                read.add((owner, node.attr))

    def is_read(key: str) -> bool:
        section, _, name = key.rpartition(".")
        owners = {section or "config", *({"spec", "fusion"} if section in ("model", "fusion") else ())}
        return any((owner, name) in read for owner in owners)

    assert [key for key in sorted(_leaves(common.base())) if not is_read(key)] == []
    assert not is_read("optim.momentum")
