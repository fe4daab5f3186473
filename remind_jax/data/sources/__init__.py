"""The data sets by name: each turns the `data` section of a config into a manifest."""

import pathlib
from collections.abc import Callable
from typing import Any

from remind_jax.data.manifest import Manifest, read_manifest
from remind_jax.errors import UserError


def _nhanes(data: Any, seed: int) -> Manifest:
    from remind_jax.data.sources import nhanes

    return nhanes.load(views=data.views)


def _synthetic(data: Any, seed: int) -> Manifest:
    from remind_jax.data.sources import synthetic

    return synthetic.load(
        seed=seed,
        combinations=data.combinations,
        n_train=data.train,
        n_tuning=data.tuning,
        n_test_per_group=data.held_out_per_group,
        latent=data.latent,
        tokens=data.tokens,
        token_width=data.token_width,
        noise=data.noise,
        shift=data.shift,
        atoms=data.atoms,
        sharpness=data.sharpness,
        classes=data.classes,
    )


def _mimic_iv(data: Any, seed: int) -> Manifest:
    from remind_jax.data.sources import mimic_iv

    if data.root:
        raise UserError(
            "this version does not read the PhysioNet folder of MIMIC-IV yet: leave data.root empty for the twin, "
            "or bring the stays as a manifest with configs/manifest.py"
        )
    return mimic_iv.load_twin(n=data.stays, seed=data.seed, missing=data.missing, drop=data.drop)


def _manifest(data: Any, seed: int) -> Manifest:
    if not data.root:
        raise UserError("data.root is empty: name the folder that holds schema.yaml, --config.data.root=DIR")
    if not pathlib.Path(data.root).is_dir():
        raise UserError(f"data folder {data.root!r} does not exist or is not a folder")
    return read_manifest(data.root)


SOURCES: dict[str, Callable[[Any, int], Manifest]] = {
    "manifest": _manifest,
    "mimic_iv": _mimic_iv,
    "nhanes": _nhanes,
    "synthetic": _synthetic,
}


def load(data: Any, seed: int) -> Manifest:
    """Loads the data set that the `data` section of a config names.

    Args:
      data: the section; `source` is a key of `SOURCES`, the other keys depend on it.
      seed: of the run; only the synthetic benchmark draws its world from it.
    """
    return SOURCES[data.source](data, seed)
