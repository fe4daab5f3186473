"""The data sets by name: each turns the `data` section of a config into a manifest."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from remind_jax.data.manifest import Manifest
from remind_jax.data.reading import read_manifest
from remind_jax.data.sources import (
    eicu,
    embed,
    events_twin,
    gbsg2,
    image_twins,
    mimic_iv,
    mimic_iv_outcomes,
    mimic_iv_twin,
    nhanes,
    support2,
    synthetic,
    uci_heart,
)
from remind_jax.errors import UserError


def _nhanes(data: Any, seed: int) -> Manifest:
    return nhanes.load(views=data.views, label=data.label)


def _gbsg2(data: Any, seed: int) -> Manifest:
    return gbsg2.load()


def _uci_heart(data: Any, seed: int) -> Manifest:
    return uci_heart.load(data.root)


def _support2(data: Any, seed: int) -> Manifest:
    return support2.load(data.root, data.label)


def _synthetic(data: Any, seed: int) -> Manifest:
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
    if data.root:
        return mimic_iv.load(
            data.root,
            notes_root=data.notes_root,
            outcome=data.outcome,
            cohort=data.cohort,
            label=data.label,
            hours=data.hours,
            notes=data.notes,
            note_characters=data.note_characters,
            labs=data.labs,
            max_events=data.max_events,
            codes=data.codes,
            icd=data.icd,
            icd_versions=data.icd_versions,
            missing=data.missing or "natural",
            drop=data.drop,
            seed=data.seed,
            images_root=data.images_root,
            image_size=data.image_size,
            window=data.window,
            bad_files=data.bad_files,
        )
    options = {"n": data.stays, "seed": data.seed, "drop": data.drop, "icd": data.icd}
    options["missing"] = data.missing or "published"
    if data.outcome in mimic_iv_outcomes.OUTCOMES:
        return mimic_iv_outcomes.load(data.outcome, **options)
    if data.outcome != "died":
        raise UserError(f"data.outcome={data.outcome} is not of the twin: name the folder of MIMIC-IV with data.root")
    return mimic_iv_twin.load_twin(**options)


def _eicu(data: Any, seed: int) -> Manifest:
    return eicu.load(data.root, outcome=data.outcome, hours=data.hours, labs=data.labs, max_events=data.max_events)


def _embed(data: Any, seed: int) -> Manifest:
    if data.root:
        return embed.load(
            data.root,
            unit=data.unit,
            key=data.key,
            suffix=data.suffix,
            image_size=data.image_size,
            bad_files=data.bad_files,
            window=data.window,
        )
    return image_twins.load_embed_twin(n=data.exams, seed=data.seed, image_size=data.image_size)


def _fprm(data: Any, seed: int) -> Manifest:
    if data.root:
        manifest = _manifest(data, seed)
        names = tuple(modality.name for modality in manifest.schema.modalities)
        comparable = names == image_twins.FPRM_MODALITIES
        return dataclasses.replace(manifest, published=dict(image_twins.FPRM_PUBLISHED)) if comparable else manifest
    return image_twins.load_fprm_twin(n=data.samples, seed=data.seed, image_size=data.image_size, frames=data.frames)


def _events(data: Any, seed: int) -> Manifest:
    return events_twin.load(n=data.stays, seed=data.seed, most=data.max_events)


def _manifest(data: Any, seed: int) -> Manifest:
    if data.digest:
        raise UserError(
            "the rows of this run came from memory, and it does not keep them: write them with `remind import`, and "
            "train on that folder"
        )
    if not data.root:
        raise UserError("data.root is empty: name the folder that holds schema.yaml, --config.data.root=DIR")
    if not pathlib.Path(data.root).is_dir():
        raise UserError(f"data folder {data.root!r} does not exist or is not a folder")
    options = {key: data[key] for key in ("image_size", "frames", "bad_files", "window")}
    return read_manifest(data.root, **options)


SOURCES: dict[str, Callable[[Any, int], Manifest]] = {
    "eicu": _eicu,
    "embed": _embed,
    "events": _events,
    "fprm": _fprm,
    "gbsg2": _gbsg2,
    "manifest": _manifest,
    "mimic_iv": _mimic_iv,
    "nhanes": _nhanes,
    "support2": _support2,
    "synthetic": _synthetic,
    "uci_heart": _uci_heart,
}


def load(data: Any, seed: int) -> Manifest:
    """Loads the data set that the `data` section of a config names.

    Args:
      data: the section; `source` is a key of `SOURCES`, the other keys depend on it.
      seed: of the run; only the synthetic benchmark draws its world from it.
    """
    return SOURCES[data.source](data, seed)
