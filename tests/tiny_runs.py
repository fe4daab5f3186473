"""Runs small enough for tests: the phenomenon data with a network of a few hundred weights."""

import contextlib
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

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
    "fusion.top_k": 1,
    "fusion.share_experts": True,
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
    "compilation_cache": "off",  # tests write nothing to the user's folder
}


def arguments(cache: pathlib.Path, method: str = "remind", **changes: Any) -> list[str]:
    """Command-line arguments of a tiny run; in `changes` a double underscore stands for the dot of a key."""
    keys = TINY | {"data.cache": str(cache)} | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return [f"--config={ROOT / 'configs' / 'phenomenon.py'}:method={method}", *flags]


def own_arguments(folder: pathlib.Path, cache: pathlib.Path, method: str = "remind", **changes: Any) -> list[str]:
    """As `arguments`, for a tiny run on the manifest folder `folder`."""
    keys = {key: value for key, value in TINY.items() if not key.startswith("data.")}
    keys |= {"data.root": folder, "data.cache": cache}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return [f"--config={ROOT / 'configs' / 'manifest.py'}:method={method}", *flags]


def config(cache: pathlib.Path, method: str = "remind", **changes: Any) -> Any:
    """The config of a tiny run, see `arguments`."""
    return cli.parse_config(arguments(cache, method, **changes))[0]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def quick_programs(folder: pathlib.Path) -> Iterator[None]:
    """Spares what most of a tiny run's time goes into; and lets types be promoted as usual.

    XLA optimises less, and what has been compiled once is found again in `folder`. Promotion, because optax's Adam
    raises a float to an integer power, which the strict mode of the tests refuses.
    """
    changes = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: jax.config.values[name] for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        with jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
