"""Keys of a config: their defaults, what values they may have, completed files, and that no key is mute or unread."""

import ast
import dataclasses
import json
import pathlib
import re

import pytest

from remind_jax.config import base, complete, defaults, keys, set_value, validate, value_of
from remind_jax.config.limits import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, POSITIVE
from remind_jax.config.rules import RULES
from remind_jax.config.sources import OF_SOURCES
from remind_jax.config.table import SECTIONS
from remind_jax.data import samplers, sources
from remind_jax.data.kinds import numbers
from remind_jax.data.sources import embed, mimic_iv_cohort, mimic_iv_outcomes, nhanes, synthetic
from remind_jax.errors import UserError
from remind_jax.models.encoders import registry, t5
from remind_jax.models.fusion import sparse_moe as sparse_fusion
from remind_jax.models.spec import FusionSpec, ModelSpec, model_spec
from remind_jax.objectives import group_dro, logit_adjust, reweigh
from remind_jax.ops import imputation, routing, soft_moe, sparse_moe
from remind_jax.runtime import devices
from remind_jax.training import frozen_features, objective, optimizer, row_adamw
from tests.test_architecture import dotted

EVERY = [(source, path) for source in ("", *OF_SOURCES) for path in keys(source) if source or path in keys()]
CHOICES = {path: key.allowed for path, key in keys().items() if isinstance(key.allowed, tuple)}


@pytest.fixture
def config():
    return base("synthetic")


def _message(config) -> str:
    with pytest.raises(UserError) as error:
        validate(config)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- Declared keys ---------------------------------------------------------------------------------------------------


def test_every_key_says_what_it_is():
    for source, path in EVERY:
        assert len(keys(source)[path].meaning) > 5, path


@pytest.mark.parametrize("source", OF_SOURCES)
def test_defaults_are_valid(source):
    validate(base(source))


def test_keys_of_a_source_are_beside_those_of_all():
    assert defaults("nhanes")["data"] == {**defaults()["data"], "source": "nhanes", "views": 7, "label": "health"}
    assert set(keys("mimic_iv")) - set(keys()) == {f"data.{name}" for name in OF_SOURCES["mimic_iv"]}


def test_a_config_has_the_declared_keys_and_cannot_change_what_others_get():
    config = base("synthetic")
    config.optim.lr = 7.0
    config.groups.tail = ("a",)
    assert base("synthetic").to_dict() == defaults("synthetic")
    assert value_of(config, "optim.lr") == 7.0
    set_value(config, "seed", 3)
    assert config.seed == value_of(config, "seed") == 3


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("parallel", devices.KINDS),
        ("programs", devices.PROGRAMS),
        ("sampler", samplers.SAMPLERS),
        ("data.source", sources.SOURCES),
        ("data.numbers", numbers.NUMBERS),
        ("model.text_size", t5.SIZES),
        ("model.image_encoder", registry.IMAGE),
        ("model.volume_encoder", registry.VOLUME),
        ("model.imputation", imputation.KINDS),
        ("fusion.routing", sparse_fusion.ROUTINGS),
        ("fusion.scores", sparse_moe.SCORES),
        ("fusion.preset", soft_moe.PRESETS),
        ("fusion.gate_metric", routing.UNCERTAINTY_METRICS),
        ("fusion.gate_granularity", routing.GATE_GRANULARITY),
        ("objective.kind", objective.OBJECTIVES),
        ("objective.reweigh_rule", reweigh.RULES),
        ("objective.prior", logit_adjust.PRIORS),
        ("objective.prior_mode", logit_adjust.MODES),
        ("dro.absent", group_dro.ABSENT),
        ("dro.initial", group_dro.INITIAL_WEIGHTS),
        ("train.feature_cache", frozen_features.KINDS),
        ("train.feature_dtype", frozen_features.DTYPES),
        ("optim.decay", optimizer.DECAYED),
        ("optim.group_rows", row_adamw.KINDS),
    ],
)
def test_choices_are_those_that_the_code_knows(path, code):
    assert sorted(CHOICES[path]) == sorted(code)


def test_choices_of_sources_are_those_that_they_know():
    own = {source: {name: key.allowed for name, key in OF_SOURCES[source].items()} for source in OF_SOURCES}
    assert own["mimic_iv"]["label"] == tuple(mimic_iv_cohort.LABELS)
    assert own["mimic_iv"]["outcome"] == ("died", *mimic_iv_cohort.OUTCOMES)
    assert own["mimic_iv"]["cohort"] == mimic_iv_cohort.COHORTS
    assert set(mimic_iv_outcomes.OUTCOMES) <= set(mimic_iv_cohort.OUTCOMES)
    assert own["embed"] | {"unit": embed.UNITS, "key": embed.KEYS, "suffix": embed.SUFFIXES} == own["embed"]
    assert OF_SOURCES["nhanes"]["views"].default in nhanes.VIEW_SETS
    assert OF_SOURCES["synthetic"]["combinations"].default == synthetic.EMBED


# ---- Values ----------------------------------------------------------------------------------------------------------


def test_every_rule_can_say_what_is_wrong(config):
    said = [rule.says.format(c=config) for rule in RULES]
    assert len(set(said)) == len(said)
    assert not [text for text in said if "{" in text or "\n" in text]


@pytest.mark.parametrize("key", CHOICES)
def test_unknown_choice_is_refused_with_the_known_ones(config, key):
    known = list(CHOICES[key])
    assert len(known) > 1
    set_value(config, key, f"{known[-1]}x")
    message = _message(config)
    assert message.startswith(f"{key}='{known[-1]}x' is unknown")
    assert f"did you mean {known[-1]!r}" in message
    assert message.endswith(", ".join(known))
    set_value(config, key, "#")
    assert "did you mean" not in _message(config)


@pytest.mark.parametrize(("key", "choice"), [(key, choice) for key in CHOICES for choice in CHOICES[key]])
def test_every_known_choice_is_valid(key, choice):
    config = base(choice if key == "data.source" else "synthetic")
    set_value(config, key, choice)
    config.fusion.group_routers = config.fusion.kind == "soft_moe"
    validate(config)


def test_group_routers_are_parts_of_the_soft_moe_block(config):
    config.fusion.kind = "fuse_moe"
    with pytest.raises(UserError, match=r"group_routers belong to fusion\.kind=soft_moe"):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_routers": False}, "with fusion.group_routers=true"),
        ({"group_routers": False, "kind": "fuse_moe"}, "belongs to fusion.kind=soft_moe"),
        ({"residual_init": "sinusoidal"}, "fusion.residual_init=sinusoidal"),
    ],
)
def test_composed_routers_take_the_place_of_a_table_of_routers(config, changes, message):
    config.fusion.router_rank = 2
    validate(config)
    config.fusion.update(changes)
    assert message in _message(config)


@pytest.mark.parametrize(
    ("limit", "wrong", "edge", "rule"),
    [
        (AT_LEAST_ONE, 0, 1, "at least 1"),
        (POSITIVE, 0.0, 1e-9, "above 0 and finite"),
        (NOT_NEGATIVE, -1, 0, "at least 0 and finite"),
        (BELOW_ONE, 1.0, 0.0, "at least 0 and below 1"),
        (BELOW_ONE, -0.1, 0.999, "at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(limit, wrong, edge, rule):
    once = [(source, path) for source, path in EVERY if not source or path not in keys()]
    limited = [(source, path) for source, path in once if keys(source)[path].allowed is limit]
    assert len(limited) > 3
    for source, path in limited:
        config = base(source or "synthetic")
        config.fusion.heads, config.train.joint_epochs = 1, 0.0  # so that no other rule is in the way at the edges
        kind = type(value_of(config, path))
        set_value(config, path, kind(wrong))
        assert _message(config) == f"{path}={kind(wrong)} must be {rule}"
        set_value(config, path, kind(edge))
        validate(config)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("key", ["optim.lr", "dro.gamma", "train.epochs", "fusion.dropout"])
def test_numbers_that_are_none_are_refused(config, key, value):
    """NaN is neither below nor above a bound; taken on, it would turn every weight into NaN."""
    set_value(config, key, float(value))
    assert key in _message(config)


@pytest.mark.parametrize("text", ["10", "20:10", "3:3", "a:b", "-1:2", "1:2:3"])
def test_other_spans_of_steps_are_refused(config, text):
    config.profile = text
    assert f"profile={text!r} must be FIRST:STOP" in _message(config)
    config.profile = "10:20"
    validate(config)


def test_heads_must_divide_the_width(config):
    config.model.width, config.fusion.heads = 12, 8
    assert "model.width=12" in _message(config)
    assert "fusion.heads=8" in _message(config)


def test_one_expert_is_refused(config):
    """The entropy over experts, by which the gate decides, is zero for one whatever the number of slots."""
    config.fusion.experts, config.fusion.slots = 1, 2
    assert "fusion.experts=1" in _message(config)
    config.fusion.experts = 2
    validate(config)


def test_gate_over_a_batch_is_refused_where_devices_see_shares_of_it(config):
    """One decision a batch needs the whole batch; a device under pmap has its share only."""
    config.parallel, config.fusion.gate_granularity = "pmap", "batch"
    message = _message(config)
    assert "fusion.gate_granularity" in message
    assert "parallel" in message
    config.parallel = "jit"
    validate(config)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("m3care", {"parallel": "pmap"}, "neighbours in the whole batch"),
        ("m3care", {"model.members": 2}, "set model.members=1"),
        ("fuse_moe", {"model.pooling": "modalities", "model.members": 2}, "one head for all"),
        ("simmlm", {"objective.meta_weight": 1.0, "train.baselines_two_stage": True}, "fusion.kind=smil"),
        ("smil", {"objective.meta_weight": 1.0}, "train.baselines_two_stage=true"),
        ("smil", {"sampler": "knockout", "train.hide_samples": 0.5}, "train.hide_samples=0"),
    ],
)
def test_parts_of_the_arena_that_do_not_go_together_are_refused(config, kind, changes, message):
    config.fusion.kind, config.fusion.group_routers = kind, False
    validate(config)
    for key, value in changes.items():
        set_value(config, key, value)
    assert message in _message(config)


@pytest.mark.parametrize("key", ["objective.fewer_weight", "objective.mofe_weight"])
def test_samples_that_lose_modalities_need_whole_tables_and_whole_batches(config, key):
    set_value(config, key, 0.5)
    validate(config)
    config.train.accumulate = 2
    assert f"needs {key}=0.0" in _message(config)
    config.train.accumulate, config.optim.group_rows = 1, "batch"
    assert "knows the combinations of the data only" in _message(config)


def test_the_gate_s_threshold_is_a_number_or_a_word(config):
    for value in ("auto", 0.1, 1):
        config.fusion.gate_threshold = value
        validate(config)
        assert complete(json.loads(config.to_json())).fusion.gate_threshold == value
    for value in ("aut", "0.8", True, [0.8], None):
        config.fusion.gate_threshold = value
        assert _message(config).startswith(f"fusion.gate_threshold={value!r} is unknown")
    assert "did you mean 'auto'" in _message_of("aut", config)
    config.fusion.gate_threshold = float("nan")
    assert "must be finite" in _message(config)


def _message_of(value, config) -> str:
    config.fusion.gate_threshold = value
    return _message(config)


def test_a_measured_threshold_belongs_to_samples_or_tokens(config):
    config.fusion.gate_threshold, config.fusion.gate_granularity = "auto", "batch"
    assert "set fusion.gate_granularity=sample or token" in _message(config)
    config.fusion.gate_granularity = "token"
    validate(config)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_gate_opens_for_some_and_not_for_all(config, share):
    config.fusion.gate_share = share
    assert f"fusion.gate_share={share} must be above 0 and below 1" in _message(config)


def test_a_source_without_its_own_keys_is_refused(config):
    config.data.source = "nhanes"
    assert _message(config) == "data.views is missing, which data.source=nhanes has: take its own config file"


def test_a_key_that_nothing_reads_is_refused(config):
    config.optim.momentum = 0.9
    assert _message(config).startswith("unknown config key optim.momentum")


# ---- Files of older configs ------------------------------------------------------------------------------------------


def test_a_file_gives_the_config_that_was_written(config):
    config.optim.lr, config.groups.tail, config.train.epochs = 0.5, ("a", "a+b"), 3
    written = json.dumps(config.to_dict())
    again = complete(json.loads(written))
    assert json.dumps(again.to_dict()) == written
    assert again.groups.tail == ("a", "a+b")


def test_keys_that_a_file_lacks_have_their_default(config):
    config.optim.lr = 0.5
    older = config.to_dict()
    del older["optim"]["ema"], older["eval"], older["data"]["shift"]
    assert complete(older) == config


def test_keys_that_a_file_has_and_the_program_not_are_refused(config):
    newer = config.to_dict()
    newer["optim"]["wamup"] = 0.1
    with pytest.raises(UserError, match=r"unknown config key optim\.wamup \(did you mean 'optim\.warmup'\?\)"):
        complete(newer)


def test_a_value_of_another_type_is_refused(config):
    other = config.to_dict()
    other["optim"]["lr"] = "high"
    with pytest.raises(UserError, match=r"optim\.lr='high' is no float, such as 0\.002"):
        complete(other)


# ---- The network -----------------------------------------------------------------------------------------------------


def test_model_spec_carries_every_key_over():
    config = base()
    change = {bool: lambda v, i: not v, str: lambda v, i: f"{v}!", int: lambda v, i: v + i, float: lambda v, i: v + i}
    for section, spec in (("model", ModelSpec), ("fusion", FusionSpec)):
        for i, field in enumerate(dataclasses.fields(spec)):
            if field.name not in ("fusion", "several"):
                value = config[section][field.name]
                config[section][field.name] = change[type(value)](value, i + 1)
    spec = model_spec(config)
    sections = {**config.model.to_dict(), "fusion": config.fusion.to_dict()}
    assert dataclasses.asdict(spec) == {**sections, "several": False}
    assert spec != model_spec(base())
    assert model_spec(defaults()) == model_spec(base())


# ---- Keys that the code reads ----------------------------------------------------------------------------------------

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Names by which the code calls a section; a specification has the fields of two.
SPECS = {"model": ("spec",), "fusion": ("spec", "fusion"), "": ("config",)}
OF_CONFIG_DICT = {"items", "to_dict", "update"}
OTHERS = ("jax.", "pydicom.")  # have a config, too


def _chains(tree: ast.AST) -> set[str]:
    """What is read of configs, such as `optim.lr` or `seed`, also by way of a name that a section was given."""
    sections = "|".join(filter(None, SECTIONS))
    of_section, of_config = (re.compile(rf"(?:.*\.)?config(?:\.({sections})){times}") for times in ("", "?"))
    named = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            for target, value in pairs:
                found = of_section.fullmatch(dotted(value))
                if found and isinstance(target, ast.Name):
                    named[target.id] = found[1]
    read = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = dotted(node.value)
            found = of_config.fullmatch(owner)
            if found and not owner.startswith(OTHERS):
                read.add(f"{found[1] or ''}.{node.attr}".lstrip("."))
            elif owner in named:
                read.add(f"{named[owner]}.{node.attr}")
    return read


def _attributes(tree: ast.AST) -> set[tuple[str, str]]:
    """Owner's last name and name of every attribute that is read."""
    return {
        (dotted(node.value).rpartition(".")[2], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.fixture(scope="module")
def trees():
    files = [*(ROOT / "remind_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    # Rules look at keys for others, who then act on them.
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files if path.parent.name != "config"}


def _unread(attributes: set[tuple[str, str]]) -> list[str]:
    def is_read(path: str) -> bool:
        section, _, name = path.rpartition(".")
        return any((owner, name) in attributes for owner in (section, *SPECS.get(section, ())))

    return [path for path in sorted({path for _, path in EVERY}) if not is_read(path)]


def _undeclared(read: set[str]) -> list[str]:
    known = {path for _, path in EVERY} | set(SECTIONS)
    return sorted(path for path in read if path not in known and path.rpartition(".")[2] not in OF_CONFIG_DICT)


def test_every_declared_key_is_read(trees):
    """A key that nothing reads would promise what does not happen."""
    attributes = set().union(*map(_attributes, trees.values()))
    assert _unread(attributes) == []
    assert _unread(attributes - {("optim", "lr")}) == ["optim.lr"]


def test_every_key_that_is_read_is_declared(trees):
    read = {str(path): _undeclared(_chains(tree)) for path, tree in trees.items()}
    assert {path: found for path, found in read.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("config.optim.momentum", ["optim.momentum"]),
        ("self.run.config.sede", ["sede"]),
        ("train, optim = config.train, config.optim\noptim.lr, train.epoch", ["train.epoch"]),
        ("config.optim.lr, config.to_dict(), config.model.update(width=3), other.momentum", []),
    ],
)
def test_an_undeclared_key_would_be_found(source, found):
    assert _undeclared(_chains(ast.parse(source))) == found


@pytest.mark.parametrize(("key", "value"), [("precision", "bfloat16"), ("train.accumulate", 2)])
def test_running_means_are_of_whole_batches_in_float32(config, key, value):
    config.fusion.group_routers, config.model.imputation = False, "mean"
    validate(config)
    set_value(config, key, value)
    assert "model.imputation=mean keeps running means" in _message(config)


@pytest.mark.parametrize("kind", ["late_fusion", "healnet", "medfuse", "umse", "shaspec", "drfuse"])
def test_fusions_without_a_penalty_take_batches_in_parts(config, kind):
    config.fusion.group_routers, config.fusion.kind, config.train.accumulate = False, kind, 2
    if kind in ("shaspec", "drfuse"):
        assert f"healnet or medfuse or umse: {kind} looks at whole batches" in _message(config)
    else:
        validate(config)
