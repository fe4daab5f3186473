"""Named entries of a sweep, and the presets of Tables 4 and 16."""

import pytest

from configs import common, embed
from remind_jax import methods, settings
from remind_jax.errors import UserError
from remind_jax.methods import TABLES, Variant, choose
from remind_jax.studies import baselines

METHODS = tuple(common.METHODS)


def _apply(variant: Variant, size: str = "paper"):
    """EMBED's config as a variant makes it."""
    config = embed.get_config(f"method={variant.method},size={size}")
    for flag in variant.flags(config):
        key, value = flag.removeprefix("--config.").split("=")
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[name] = value == "True" if isinstance(section[name], bool) else type(section[name])(value)
    return config


def test_all_is_every_method_and_plain_model():
    names = [variant.name for variant in choose("all", "", METHODS)]
    assert names == [*METHODS, *baselines.MODELS]
    assert all(variant.flags(None) == [] for variant in choose("all", "", METHODS))


def test_plain_models_are_those_that_exist():
    assert set(methods.PLAIN) == set(baselines.MODELS)
    assert not set(methods.PLAIN) & set(METHODS)


def test_table_4_is_the_ablation():
    names = [variant.name for variant in choose("all", "4", METHODS)]
    assert names == ["soft_moe", "remind_no_dro", "remind_no_specialization", "remind"]
    assert set(names) <= set(METHODS)


def test_table_16_has_the_paper_s_values_on_embed_at_paper_size():
    """η 0.1 and 0.5 (γ of Eq. 4), 32 and 64 experts against 128, zero embeddings, sinusoidal residual routers."""
    found = {}
    for variant in choose("all", "16", METHODS):
        config = _apply(variant)
        settings.validate(config)
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
        settings.validate(_apply(variant, "small"))
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
    chosen = choose("imputation_zero,soft_moe,imputation_zero,logistic_regression", "16", METHODS)
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
        choose(names, table, METHODS)
    assert all(part in str(error.value) for part in parts)
