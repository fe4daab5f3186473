"""What the three data sets of the paper look like to a model, told without reading any data."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.data.kinds import KINDS
from remind_jax.data.missingness import parse_combinations
from remind_jax.data.schema import InputSpec
from remind_jax.data.sources import embed, image_twins, mimic_iv_twin


class Outline(NamedTuple):
    """A data set as `plan` needs it."""

    inputs: dict[str, InputSpec]  # what each modality gives the model, in declared order
    groups: int  # number of modality combinations that the paper trains on
    classes: int  # number of classes
    samples: int  # number of samples of the data set
    present: np.ndarray  # share of the samples that have each modality, float64 [m]


def _mimic_iv(data: Any) -> Outline:
    kinds = {"notes": "text", "labs": "text", "icd": data.icd}
    inputs = {name: KINDS[kind].spec((data.max_tokens,), data.vocabulary) for name, kind in kinds.items()}
    published = mimic_iv_twin.PUBLISHED
    return Outline(inputs, len(published), 2, 73_181, _shares(published, inputs))  # ICU stays of version 2.2


def _embed(data: Any) -> Outline:
    image = KINDS["image"].spec((data.image_size, data.image_size, 1))
    inputs, published = dict.fromkeys(embed.MODALITIES, image), embed.PUBLISHED
    return Outline(inputs, len(published), len(embed.CLASSES), 72_770, _shares(published, inputs))


def _fprm(data: Any) -> Outline:
    side = data.image_size
    inputs = {
        "fundus": KINDS["image"].spec((side, side, 3)),
        "flow": KINDS["volume"].spec((data.frames, side, side, 3)),
        "oxygen": KINDS["image"].spec((side, side, 3)),
        "tabular": KINDS["tabular"].spec((64,)),
    }
    published = image_twins.FPRM_PUBLISHED
    return Outline(inputs, len(published), 3, 3_394, _shares(published, inputs))


def _shares(published: Sequence[tuple[str, float]], modalities: Iterable[str]) -> np.ndarray:
    """Returns the share of the samples that have each modality by the published combinations, [m]."""
    masks, frequencies = parse_combinations(published, tuple(modalities))
    return frequencies @ masks


OUTLINES: dict[str, Callable[[Any], Outline]] = {"embed": _embed, "fprm": _fprm, "mimic_iv": _mimic_iv}
