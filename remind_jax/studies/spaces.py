"""What a search tries: a range or choices for each key of a config, by default and as a user names them.

A user writes `optim.lr=1e-4..1e-2:log,model.width=32|64|128`: the keys that are searched in place of the default ones,
or next to them where the word `default` stands first.
"""

import copy
import math
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from remind_jax.config import keys, set_value, validate, value_of
from remind_jax.config.limits import Key
from remind_jax.errors import UserError, did_you_mean
from remind_jax.methods import METHODS, QUICK


class Range(NamedTuple):
    """Numbers from `low` to `high`, whole ones where the key is; `log` spreads their logarithms evenly."""

    low: float
    high: float
    log: bool = False


class Around(NamedTuple):
    """The config's own value divided by `factor` to it times `factor`, on a logarithmic scale."""

    factor: float


Choices = Range | tuple[Any, ...]
Space = dict[str, Choices]

# Every change of a value but that of the seed is another program of the train step, so that few values do not compile
# less than many; those of `SHAPES` change the programs of evaluations, too.
DEFAULT: dict[str, Around | tuple[Any, ...]] = {
    "optim.lr": Around(4.0),
    "optim.weight_decay": Around(10.0),
    "model.encoder_dropout": (0.1, 0.25, 0.4, 0.6),
    "train.epochs": (10.0, 20.0, 40.0),
    "data.numbers": ("standard", "quantile", "piecewise", "periodic"),
    "model.width": (32, 64, 128),
    "fusion.experts": (4, 8, 16),
}
"""The keys of every network; the config's own value is always among the choices."""
OF_METHODS: dict[str, dict[str, Around | tuple[Any, ...]]] = {
    **{name: {"dro.gamma": Around(5.0)} for name in ("remind", "remind_no_specialization", "group_dro")},
    **{name: {"train.hide_samples": (0.0, 0.3)} for name in ("remind_plus", "remind_blend")},
}
"""Further keys of single methods."""
OF_KINDS = {"data.numbers": "tabular"}
"""Keys that only modalities of a kind look at."""
SHAPES = ("model.width", "fusion.experts")
"""Keys that stay as they are at the paper's size, where published weights have them."""
_SECTIONS = ("model", "fusion", "objective", "dro", "train", "optim")
_SINGLE = ("ensemble", "ensemble_plain", "sampler", "sampler_epochs", "sampler_alpha", "data.numbers", "data.bins")
_SINGLE += ("data.max_tokens", "data.vocabulary")
_NOT = ("train.select", "train.track")  # what trials are judged by, and who is told


def searches(method: str) -> bool:
    """Tells whether a method has a space: a stack of folds is too dear, and plain models choose for themselves."""
    return method in METHODS and method != "remind_stack"


def default_space(config: Any, given: Container[str], kinds: Container[str]) -> Space:
    """Returns what is searched unless a user says otherwise: what suits the size, without the keys that are `given`.

    `kinds` are those of the modalities.
    """
    space: Space = {}
    fixed = {"paper": SHAPES, "quick": tuple(QUICK)}.get(config.size, ())
    for key, choices in (DEFAULT | OF_METHODS.get(config.method, {})).items():
        if key in given or key in fixed or OF_KINDS.get(key, "") not in ("", *kinds):
            continue
        own = value_of(config, key)
        if not isinstance(choices, Around):
            space[key] = choices if own in choices else tuple(sorted((*choices, own)))
        elif own:
            space[key] = Range(own / choices.factor, own * choices.factor, log=True)
    return space


def read_space(text: str, config: Any, given: Container[str], kinds: Container[str]) -> Space:
    """Reads what a user names, and returns the default space for an empty text; arguments as for `default_space`.

    Raises UserError: a key is none that can be searched or is set as well, or one of its values cannot be.
    """
    first, _, rest = text.partition(",")
    begins = not text or first == "default"
    space = default_space(config, given, kinds) if begins else {}
    known = {key: each for key, each in keys(config.data.source).items() if _is_open(key)}
    for entry in filter(None, (rest if begins else text).split(",")):
        key, _, values = entry.partition("=")
        if key not in known:
            raise UserError(f"space: {key} is no key that can be searched{did_you_mean(key, known)}")
        if key in given:
            raise UserError(f"space: {key} is set as well: leave one out")
        space[key] = _choices(key, values, known[key])
        _check(config, key, space[key])
    if not space:
        raise UserError("space: all keys of the default space are set: name some as --space=optim.lr=1e-4..1e-2:log")
    return space


def _is_open(key: str) -> bool:
    return key in _SINGLE or (key.partition(".")[0] in _SECTIONS and key not in _NOT)


def _choices(key: str, text: str, of: Key) -> Choices:
    """Reads `LOW..HIGH`, `LOW..HIGH:log` or `ONE|TWO`."""
    if ".." not in text:
        values = tuple(dict.fromkeys(_value(key, each, of) for each in text.split("|")))
        if len(values) < 2:
            raise UserError(f"space: {key}={text} leaves nothing to search: name several as ONE|TWO or LOW..HIGH")
        return values
    ends, _, scale = text.partition(":")
    low, high = (_value(key, each, of) for each in ends.split("..", 1))
    if scale not in ("", "log") or isinstance(low, str | bool) or isinstance(high, str | bool):
        raise UserError(f"space: {key}={text} is no range of numbers, such as 1e-4..1e-2:log")
    if not low < high or (scale and low <= 0):
        raise UserError(f"space: {key}={text} needs LOW below HIGH" + ", above 0 for :log" * bool(scale))
    return Range(low, high, scale == "log")


def _value(key: str, text: str, of: Key) -> Any:
    kind = type(of.default)
    if kind is str or text in of.words:
        return text
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        if kind in (bool, int, float) and math.isfinite(value):
            return value
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(f"space: {key}={text} is no {kind.__name__}, such as {of.default!r}")


def _check(config: Any, key: str, choices: Choices) -> None:
    """Refuses (UserError) values that the config could not have."""
    for value in choices[:2] if isinstance(choices, Range) else choices:
        found = copy.deepcopy(config)
        set_value(found, key, value)
        try:
            validate(found)
        except UserError as error:
            raise UserError(f"space: {error}") from None


def holds(choices: Choices, value: Any) -> bool:
    """Tells whether a value is among the choices."""
    if isinstance(choices, Range):
        return isinstance(value, int | float) and choices.low <= value <= choices.high
    return value in choices


def written(space: Mapping[str, Choices]) -> dict[str, str]:
    """Writes each key's choices as a user would."""
    return {
        key: f"{each.low:.6g}..{each.high:.6g}{':log' * each.log}"
        if isinstance(each, Range)
        else "|".join(map(str, each))
        for key, each in space.items()
    }
