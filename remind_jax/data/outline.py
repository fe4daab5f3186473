"""What the three data sets of the paper look like to a model, told without reading any data."""

from collections.abc import Callable
from typing import Any, NamedTuple

from remind_jax.data.kinds import KINDS
from remind_jax.data.schema import InputSpec
from remind_jax.data.sources import embed, image_twins, mimic_iv_twin


class Outline(NamedTuple):
    """A data set as `plan` needs it."""

    inputs: dict[str, InputSpec]  # what each modality gives the model, in declared order
    groups: int  # number of modality combinations that the paper trains on
    classes: int  # number of classes
    samples: int  # number of samples of the data set


def _mimic_iv(data: Any) -> Outline:
    kinds = {"notes": "text", "labs": "text", "icd": data.icd}
    inputs = {name: KINDS[kind].spec((data.max_tokens,), data.vocabulary) for name, kind in kinds.items()}
    return Outline(inputs, len(mimic_iv_twin.PUBLISHED), 2, 73_181)  # ICU stays of version 2.2


def _embed(data: Any) -> Outline:
    image = KINDS["image"].spec((data.image_size, data.image_size, 1))
    return Outline(dict.fromkeys(embed.MODALITIES, image), len(embed.PUBLISHED), len(embed.CLASSES), 72_770)


def _fprm(data: Any) -> Outline:
    side = data.image_size
    inputs = {
        "fundus": KINDS["image"].spec((side, side, 3)),
        "flow": KINDS["volume"].spec((data.frames, side, side, 3)),
        "oxygen": KINDS["image"].spec((side, side, 3)),
        "tabular": KINDS["tabular"].spec((64,)),
    }
    return Outline(inputs, len(image_twins.FPRM_PUBLISHED), 3, 3_394)


OUTLINES: dict[str, Callable[[Any], Outline]] = {"embed": _embed, "fprm": _fprm, "mimic_iv": _mimic_iv}
