"""What a search tries: default spaces of every method and size, what users write, and what is refused."""

import pytest

from remind_jax import cli
from remind_jax.config import set_value, validate, value_of
from remind_jax.errors import UserError
from remind_jax.methods import METHODS
from remind_jax.studies import spaces
from remind_jax.studies.spaces import Range
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)


def _config(method: str = "remind", *flags: str, size: str = "small", name: str = "manifest"):
    return cli.parse_config([f"--config={tiny_runs.ROOT}/configs/{name}.py:method={method},size={size}", *flags])[0]


@pytest.mark.parametrize("size", ["small", "paper", "quick"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "remind_stack"])
def test_every_value_of_a_default_space_makes_a_config_and_the_own_one_is_among_them(method, size):
    config = _config(method, size=size, name="nhanes")
    space = spaces.default_space(config, (), ("tabular", "text"))
    assert "optim.lr" in space
    for key, choices in space.items():
        assert spaces.holds(choices, value_of(config, key)), key
        for value in choices[:2] if isinstance(choices, Range) else choices:
            found = _config(method, size=size, name="nhanes")
            set_value(found, key, value)
            validate(found)


def test_shapes_stay_at_the_papers_size_and_keys_of_a_smoke_run_in_one():
    small, paper, quick = (
        set(spaces.default_space(_config(size=size), (), ("tabular",))) for size in ("small", "paper", "quick")
    )
    assert small - paper == {"model.width", "fusion.experts"}
    assert small - quick == {"model.width", "fusion.experts", "train.epochs"}


def test_keys_that_are_set_and_those_of_other_kinds_and_methods_are_left_out():
    of = spaces.default_space
    assert "data.numbers" in of(_config(), (), ("tabular",))
    assert "data.numbers" not in of(_config(), (), ("text",))
    assert "optim.lr" not in of(_config(), ("optim.lr",), ("text",))
    assert "dro.gamma" in of(_config("remind"), (), ())
    assert "dro.gamma" not in of(_config("soft_moe"), (), ())
    assert not spaces.searches("remind_stack")
    assert not spaces.searches("logistic_regression")


def test_a_space_is_read_as_it_is_written():
    config = _config()
    text = "optim.lr=0.0001..0.01:log,fusion.experts=2..16,model.width=32|64,model.wide=True|False,train.patience=3|5"
    text += ",fusion.gate_threshold=0.5|auto,data.numbers=standard|quantile"
    space = spaces.read_space(text, config, (), ())
    assert space == {
        "optim.lr": Range(1e-4, 1e-2, True),
        "fusion.experts": Range(2, 16),
        "model.width": (32, 64),
        "model.wide": (True, False),
        "train.patience": (3, 5),
        "fusion.gate_threshold": (0.5, "auto"),
        "data.numbers": ("standard", "quantile"),
    }
    assert [type(x) for x in (*space["fusion.experts"][:2], *space["model.width"])] == [int] * 4
    again = ",".join(f"{key}={values}" for key, values in spaces.written(space).items())
    assert spaces.read_space(again, config, (), ()) == space


def test_named_keys_take_the_place_of_the_default_ones_or_stand_next_to_them():
    config = _config()
    default = spaces.default_space(config, (), ())
    assert set(spaces.read_space("model.tokens=2|4", config, (), ())) == {"model.tokens"}
    both = spaces.read_space("default,model.tokens=2|4,model.width=16|32", config, (), ())
    assert set(both) == {*default, "model.tokens"}
    assert both["model.width"] == (16, 32)
    assert spaces.read_space("", config, (), ()) == default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.rl=1e-4..1e-2", "optim.rl is no key that can be searched .did you mean 'optim.lr'"),
        ("data.fractions=1|2", "data.fractions is no key that can be searched"),
        ("eval.adjust_prior=none|accuracy", "eval.adjust_prior is no key"),
        ("train.select=loss|auroc", "train.select is no key"),
        ("seed=1|2", "seed is no key"),
        ("method=remind|soft_moe", "method is no key"),
        ("optim.lr", "leaves nothing to search|is no float"),
        ("optim.lr=0.1", "leaves nothing to search"),
        ("optim.lr=a|b", "optim.lr=a is no float"),
        ("optim.lr=nan|1", "optim.lr=nan is no float"),
        ("optim.lr=1e-2..1e-4:log", "needs LOW below HIGH"),
        ("optim.lr=0..1e-2:log", "above 0 for :log"),
        ("optim.lr=1e-4..1e-2:lg", "is no range of numbers"),
        ("optim.lr=-1..1", "optim.lr=-1.0 must be above 0"),
        ("data.numbers=standard..quantile", "is no range of numbers"),
        ("model.width=30|32", "model.width=30 is not a multiple of fusion.heads"),
        ("model.width=2.5|3", "model.width=2.5 is no int"),
        ("model.wide=yes|no", "model.wide=yes is no bool"),
        ("data.numbers=standard|wild", "data.numbers='wild' is unknown"),
        ("optim.clip=0.5|1", "optim.clip is set as well"),
    ],
)
def test_what_no_search_could_try_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as told:
        spaces.read_space(text, _config(), ("optim.clip",), ())
    assert "\n" not in str(told.value)


def test_a_space_without_keys_is_refused():
    config = _config()
    with pytest.raises(UserError, match="all keys of the default space are set"):
        spaces.read_space("", config, tuple(spaces.default_space(config, (), ())), ())
