"""Runs small enough for tests: the phenomenon data with a network of a few hundred weights."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from remind_jax import cli

# config_flags of ml_collections loads config files in a way that Python 3.11 warns about.
CONFIG_FLAGS_WARNING = r"ignore:the load_module\(\) method:DeprecationWarning"
ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
    "data.train": 96,
    "data.tuning": 48,
    "data.held_out_per_group": 12,
    "model.width": 8,
    "model.encoder_hidden": 0,
    "model.encoder_dropout": 0.1,
    "fusion.heads": 2,
    "fusion.experts": 2,
    "fusion.hidden": 8,
    "fusion.dropout": 0.1,
    "fusion.train_gate": "gated",
    "dro.every": 4,
    "dro.gamma": 0.5,
    "optim.ema": 0.9,
    "train.batch_size": 8,
    "train.epochs": 2.0,
    "train.joint_epochs": 1.0,
    "train.log_every": 4,
    "train.select": "loss",
    "devices": 1,
}


def arguments(cache: pathlib.Path, method: str = "remind", **changes: Any) -> list[str]:
    """Command-line arguments of a tiny run; in `changes` a double underscore stands for the dot of a key."""
    keys = TINY | {"data.cache": str(cache)} | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return [f"--config={ROOT / 'configs' / 'phenomenon.py'}:method={method}", *flags]


def config(cache: pathlib.Path, method: str = "remind", **changes: Any) -> Any:
    """The config of a tiny run, see `arguments`."""
    return cli.parse_config(arguments(cache, method, **changes))[0]


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Less optimisation of what is compiled, most of a tiny run's time; the standard promotion of types.

    The latter because optax's Adam raises a float to an integer power, which the strict mode of the tests refuses.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    try:
        with jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        jax.config.update(name, before)
