"""What a step does to samples and weights before the network meets them, as values made from a config."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.samplers import KNOCKOUT
from remind_jax.models.model import Batch, Params, is_group_router
from remind_jax.models.spare_rows import is_table
from remind_jax.ops import draws, hiding
from remind_jax.training import row_adamw
from remind_jax.training.objective import is_plain

_HIDING = 3_000  # keeps the draws of modality dropout apart from those of the network


class Transforms(NamedTuple):
    """Transforms of a step.

    Attributes:
      draws: whether samples need random keys, for dropout, noise or modality dropout.
      hide: modality dropout, (batch, keys [b]) -> batch; None leaves all modalities.
      hold: parameters -> parameters, some of which get no gradient; None trains all.
      by_rows: whether a step reads and moves only those rows of tables of combinations that its batch has.
    """

    draws: bool = False
    hide: Callable[[Batch, jax.Array], Batch] | None = None
    hold: Callable[[Params], Params] | None = None
    by_rows: bool = False


def make_transforms(config: Any, masks: np.ndarray) -> Transforms:
    """Makes the transforms of a run with the combinations `masks`, bool [g, m]."""
    train, objective = config.train, config.objective
    noisy = config.fusion.kind != "soft_moe" or objective.fewer_weight or objective.mofe_weight
    hides, knocks = train.hide_samples > 0, config.sampler == "knockout"
    hide = modality_dropout(train.hide_samples, train.hide_modalities, masks) if hides else None
    return Transforms(
        draws=bool(noisy or hides or knocks or config.model.encoder_dropout > 0 or config.fusion.dropout > 0),
        hide=modality_dropout(1.0, None, masks) if knocks else hide,
        hold=without_group_parts(config.ensemble_plain) if config.ensemble_plain else None,
        by_rows=row_adamw.only_of_batch(config, len(masks)),
    )


def modality_dropout(
    samples: float, modalities: float | None, masks: np.ndarray
) -> Callable[[Batch, jax.Array], Batch]:
    """Makes modality dropout: a share of the samples loses modalities, and has the combination of what is left.

    Such a sample loses each with the probability `modalities`, or with those that its batch names; one always stays.
    `masks` bool [g, m] are the combinations.
    """

    def hide(batch: Batch, keys: jax.Array) -> Batch:
        own = draws.fold_in(keys, _HIDING)
        rates = batch[KNOCKOUT] if modalities is None else modalities
        present = hiding.hide_modalities(batch["present"], own, samples=samples, modalities=rates)
        return {**batch, "present": present, "group": hiding.group_of(present, jnp.asarray(masks))}

    return hide


def without_group_parts(plain: int) -> Callable[[Params], Params]:
    """Makes a transform that holds the parameters of combinations in the first `plain` networks of an ensemble."""

    def hold(params: Params) -> Params:
        of_groups, here = (
            [path for path in params if is_table(path) or is_group_router(path)],
            is_plain(plain),
        )
        held = {path: jnp.where(here, jax.lax.stop_gradient(params[path]), params[path]) for path in of_groups}
        return {path: held.get(path, x) for path, x in params.items()}

    return hold
