"""Configs and data of plain models, small enough for tests."""

import pathlib
from typing import Any

from remind_jax import cli
from remind_jax.data import dataset as datasets
from tests import tiny_runs
from tests.data.manifest_files import write_manifest


def config_of(folder: pathlib.Path, root: pathlib.Path, **changes: Any) -> Any:
    """configs/manifest.py on a folder of data; in `changes` a double underscore stands for the dot of a key."""
    keys = {"data.root": root, "data.cache": folder / "cache", "data.max_tokens": 8, "data.vocabulary": 64}
    keys |= {"eval.bootstrap": 20, "data.fractions": "(0.6, 0.2, 0.2)", "train.select": "auroc"}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return cli.parse_config([f"--config={tiny_runs.ROOT}/configs/manifest.py:method=remind", *flags])[0]


def hospital(folder: pathlib.Path) -> tuple[Any, datasets.Dataset]:
    """A config and the prepared data of 240 samples in a folder."""
    config = config_of(folder, write_manifest(folder / "data", n=240))
    return config, datasets.load_dataset(config)
