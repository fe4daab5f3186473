"""Methods and sizes as the config files take them, the argument string, and the named entries of sweeps."""

import importlib
import pathlib

import pytest

from configs import embed
from remind_jax.config import keys, validate, value_of
from remind_jax.config.sources import OF_SOURCES
from remind_jax.errors import UserError
from remind_jax.methods import ARENA, METHODS, PLAIN, QUICK, SIZES, TABLES, Variant, choose
from remind_jax.models.spec import model_spec
from remind_jax.training import plain_models

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"arena"})  # which is of many data sets
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
    "remind_stack": (True, "group", "group_dro", "shuffled"),  # and those of its candidates
    "remind_plus": (True, "modality+group", "group_dro", "shuffled"),
    "remind_blend": (True, "modality+group", "group_dro", "shuffled"),  # of its networks
}


def _build(name: str, argument: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(argument)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", [*METHODS, *PLAIN, *ARENA])
@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_and_is_valid(name, method, size):
    config = _build(name, f"method={method},size={size}")
    validate(config)
    model_spec(config)
    assert (config.method, config.size) == (method, size)


def test_a_smoke_run_is_small_and_keeps_what_a_method_is():
    known = set(keys()).union(*(keys(source) for source in OF_SOURCES))
    assert set(QUICK) <= known
    for name in NAMES:
        quick, small = _build(name, "method=remind,size=quick"), _build(name, "method=remind")
        for key, value in QUICK.items():
            if key in keys(quick.data.source):
                assert value_of(quick, key) == value
        assert quick.train.epochs <= small.train.epochs
        assert quick.eval.bootstrap < small.eval.bootstrap
    assert (
        _build("mimic", "method=remind_plus,size=quick").train.joint_epochs
        == METHODS["remind_plus"]["train.joint_epochs"]
    )


def test_defaults_are_small_and_of_the_paper_or_of_own_data_what_is_at_the_knee():
    for name in NAMES:
        method = "remind_blend" if name == "manifest" else "remind"
        assert _build(name).to_dict() == _build(name, f"size=small,method={method}").to_dict()
        assert (_build(name).method, _build(name).size) == (method, "small")
    assert _build("manifest", "size=paper").method == "remind"


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_those_of_the_design(method):
    config = _build("mimic", f"method={method}")
    found = (config.fusion.group_routers, config.model.imputation, config.objective.kind, config.sampler)
    assert found == DESIGN[method]


def test_design_and_presets_name_the_same_methods():
    assert set(DESIGN) == set(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_methods_differ_in_method_keys_only(name):
    """Encoders, optimizer, epochs and data of all methods of a data set are the same: a fair comparison."""
    allowed = {key for preset in METHODS.values() for key in preset} | {"method"}
    one = _flat(_build(name, "method=remind"))
    allowed |= {key for preset in ARENA.values() for key in preset}
    for method in (*METHODS, *PLAIN, *ARENA):
        other = _flat(_build(name, f"method={method}"))
        assert {key for key in one if one[key] != other[key]} <= allowed


def _flat(config) -> dict:
    return {path: value_of(config, path) for path in keys(config.data.source)}


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


@pytest.mark.parametrize("method", METHODS)
def test_fair_mixup_on_embed_takes_the_smaller_batch_and_rate_of_the_paper(method):
    """Paper, section 7.4.2, EMBED: batch 16 and 2e-5 for FairMixup, 32 and 5e-5 for the others."""
    config = _build("embed", f"method={method},size=paper")
    expected = (16, 2e-5) if method == "fair_mixup" else (32, 5e-5)
    assert (config.train.batch_size, config.optim.lr) == pytest.approx(expected)
    assert config.optim.weight_decay == pytest.approx(5e-5)
    assert _build("embed", f"method={method}").train.batch_size == keys()["train.batch_size"].default


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


# ---- Sweeps ----------------------------------------------------------------------------------------------------------


def _apply(variant: Variant, size: str = "paper"):
    """EMBED's config as a variant makes it."""
    config = embed.get_config(f"method={variant.method},size={size}")
    variant.apply(config)
    return config


def test_all_is_every_method_and_plain_model():
    assert [variant.name for variant in choose("all", "")] == [*METHODS, *PLAIN]
    assert [variant.name for variant in choose("cox,soft_moe", "")] == ["cox", "soft_moe"]
    assert all(variant == Variant(variant.name, variant.name) for variant in choose("all", ""))


def test_the_arena_is_asked_for_by_name():
    assert [variant.name for variant in choose("arena", "")] == list(ARENA)
    assert [variant.name for variant in choose("late_fusion,soft_moe", "")] == ["late_fusion", "soft_moe"]
    assert not set(ARENA) & {*METHODS, *PLAIN}


def test_plain_models_are_those_that_exist():
    assert set(PLAIN) == set(plain_models.MODELS) == set(plain_models.TASKS_OF)
    assert not set(PLAIN) & set(METHODS)


def test_table_4_is_the_ablation():
    names = [variant.name for variant in choose("all", "4")]
    assert names == ["soft_moe", "remind_no_dro", "remind_no_specialization", "remind"]
    assert set(names) <= set(METHODS)


def test_table_16_has_the_paper_s_values_on_embed_at_paper_size():
    """η 0.1 and 0.5 (γ of Eq. 4), 32 and 64 experts against 128, zero embeddings, sinusoidal residual routers."""
    found = {}
    for variant in choose("all", "16"):
        config = _apply(variant)
        validate(config)
        found[variant.name] = (
            config.dro.gamma,
            config.fusion.experts,
            config.model.imputation,
            config.fusion.residual_init,
        )
    default = (0.02, 128, "group", "zero")
    assert found.pop("remind") == default
    differing = {name: [b for a, b in zip(default, values, strict=True) if a != b] for name, values in found.items()}
    assert differing == {
        "dro_gamma_0.1": [0.1],
        "dro_gamma_0.5": [0.5],
        "experts_quarter": [32],
        "experts_half": [64],
        "imputation_zero": ["zero"],
        "residual_sinusoidal": ["sinusoidal"],
    }


def test_variants_of_remind_plus_are_valid_and_change_what_the_preset_has():
    preset = _apply(Variant("remind_plus", "remind_plus"), "small")
    for variant in TABLES["remind_plus"]:
        validate(_apply(variant, "small"))
        for key, value in variant.changes:
            section, _, name = key.rpartition(".")
            assert (preset[section] if section else preset)[name] != value, (variant.name, key)


@pytest.mark.parametrize("table", TABLES)
def test_presets_are_valid_and_differ_on_small_data(table):
    configs = [_apply(variant, "small").to_dict() for variant in TABLES[table]]
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])
    names = [variant.name for variant in TABLES[table]]
    assert len(set(names)) == len(names)


def test_names_choose_in_order_and_once():
    chosen = choose("imputation_zero,soft_moe,imputation_zero,logistic_regression", "16")
    assert [variant.name for variant in chosen] == ["imputation_zero", "soft_moe", "logistic_regression"]
    assert chosen[0].method == "remind"


@pytest.mark.parametrize(
    ("names", "table", "parts"),
    [
        ("remnd", "", ("'remnd'", "did you mean 'remind'")),
        ("imputation_zero", "", ("'imputation_zero'",)),
        ("imputation_zer", "16", ("did you mean 'imputation_zero'",)),
        ("all", "5", ("table=5", "4, 16, remind_plus")),
        (",", "", ("no methods",)),
    ],
)
def test_mistakes_are_named(names, table, parts):
    with pytest.raises(UserError) as error:
        choose(names, table)
    assert all(part in str(error.value) for part in parts)
