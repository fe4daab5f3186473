"""Configs: how they are made and checked. Every key stands in `table`, the rules of several keys stand in `rules`.

A config file starts from `base(source)`, sets what differs and ends in `methods.apply_method`. Single keys are set on
the command line: `--config.optim.lr=1e-3`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from remind_jax.config.limits import Key, Limit
from remind_jax.config.rules import RULES
from remind_jax.config.sources import OF_SOURCES
from remind_jax.config.table import RETIRED, SECTIONS
from remind_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:  # benchmarks run where it is not installed
    import ml_collections


def keys(source: str = "") -> dict[str, Key]:
    """Returns the keys of a config by path, such as `optim.lr`: those of all data sets, and those of `source`."""
    shared = {f"{section}.{name}".lstrip("."): key for section, each in SECTIONS.items() for name, key in each.items()}
    return shared | {f"data.{name}": key for name, key in OF_SOURCES.get(source, {}).items()}


def value_of(config: Any, path: str) -> Any:
    """The value of a key, such as `optim.lr`."""
    for name in path.split("."):
        config = config[name]
    return config


def set_value(config: Any, path: str, value: Any) -> None:
    """Sets the value of a key, such as `optim.lr`."""
    section, _, name = path.rpartition(".")
    (value_of(config, section) if section else config)[name] = value


def defaults(source: str = "") -> dict[str, Any]:
    """The default of every key, as dictionaries; `source` as for `keys`, and the default of `data.source`."""
    config: dict[str, Any] = dict.fromkeys(SECTIONS[""]) | {section: {} for section in SECTIONS if section}
    for path, key in keys(source).items():
        set_value(config, path, key.default)
    config["data"]["source"] = source
    return config


def base(source: str = "") -> "ml_collections.ConfigDict":
    """A config with the default of every key, REMIND on small data; `source` as for `defaults`."""
    import ml_collections
    from ml_collections import config_dict

    config = ml_collections.ConfigDict(defaults(source))
    for path, key in keys(source).items():
        if key.words:  # a field without a type, which a number of a file would give it
            section, _, name = path.rpartition(".")
            del value_of(config, section)[name]
            set_value(config, path, config_dict.FieldReference(key.default, field_type=object))
    return config


def complete(values: Mapping[str, Any]) -> "ml_collections.ConfigDict":
    """Returns the config that a file holds by section; keys that are newer than the file have their default.

    Raises UserError: names a key that there is not, or one whose value has another type.
    """
    config = base(values.get("data", {}).get("source", ""))
    set_values(config, {path: value for path, value in leaves(values) if path not in RETIRED})
    return config


def set_values(config: Any, values: Mapping[str, Any]) -> None:
    """Sets keys by section, or by path such as `optim.lr`; raises UserError as `complete`."""
    known, given = keys(config.data.source), dict(leaves(values))
    _refuse_unknown(given, known)
    for path, value in given.items():
        default = known[path].default
        try:
            if value is None and default is not None:
                raise TypeError
            set_value(config, path, value.item() if hasattr(value, "item") else value)  # numpy's numbers
        except TypeError:
            raise UserError(f"{path}={value!r} is no {type(default).__name__}, such as {default!r}") from None


def validate(config: Any) -> None:
    """Refuses keys that there are not, and values that no code path could use (UserError, which says what may be)."""
    known, there = keys(config.data.source), dict(leaves(config))
    for path, key in known.items():
        if path not in there:
            raise UserError(f"{path} is missing, which data.source={config.data.source} has: take its own config file")
        value, allowed = there[path], key.allowed
        if key.words and (isinstance(value, bool) or not isinstance(value, int | float)):
            if value in key.words:
                continue
            words = ", ".join(key.words)
            raise UserError(f"{path}={value!r} is unknown{did_you_mean(value, key.words)}; known: a number, {words}")
        if isinstance(allowed, Limit) and not allowed.holds(value):
            raise UserError(f"{path}={value!r} must be {allowed.says}")
        if isinstance(allowed, tuple) and value not in allowed:
            raise UserError(f"{path}={value!r} is unknown{did_you_mean(value, allowed)}; known: {', '.join(allowed)}")
    _refuse_unknown(there, known)
    for rule in RULES:
        if rule.is_broken(config):
            raise UserError(rule.says.format(c=config))


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields path and value of each key of a config, or of dictionaries."""
    for name, value in values.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _refuse_unknown(there: Iterable[str], known: Mapping[str, Key]) -> None:
    for path in there:
        if path not in known:
            raise UserError(f"unknown config key {path}{did_you_mean(path, known)}")
