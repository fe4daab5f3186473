"""Steps made from a config, for tests that look at what one step does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from remind_jax.models.network import Network
from remind_jax.training.objective import Loss, make_objective, sample_losses
from remind_jax.training.stages import Stage
from remind_jax.training.step import Step, make_step, step_options
from remind_jax.training.transforms import make_transforms

Optimizer = optax.GradientTransformationExtraArgs


def composed(
    config: Any,
    network: Network,
    label_counts: np.ndarray,
    stage: Stage,
    optimizer: Callable[[Optimizer], Optimizer],
    *,
    decay: float = 0.0,
    masks: np.ndarray | None = None,
    loss: Loss | None = None,
) -> tuple[Step, Optimizer]:
    """A step of a config, and its optimizer.

    Args:
      config: of a run.
      network: a single one.
      label_counts: training samples by combination and class, [g, c].
      stage: to take steps of.
      optimizer: the transform that keeps λ -> the optimizer, whose part `dro` it is.
      decay: of the averaged weights.
      masks: the combinations, bool [g, m]; needed for modality dropout.
      loss: of single samples, instead of the config's.
    """
    objective = make_objective(config, label_counts)
    if loss is not None:
        objective = objective._replace(losses=sample_losses(loss))
    made = optimizer(objective.dro)
    transforms = make_transforms(config, np.ones((len(label_counts), 1), bool) if masks is None else masks)
    options = step_options(config, 100)._replace(decay=decay)
    return make_step(network, objective, transforms, made, stage, options), made


def descent(rate: float = 1.0) -> Callable[[Optimizer], Optimizer]:
    """An optimizer that takes plain steps down the gradient, for `composed`."""
    return lambda dro: optax.named_chain(("descend", optax.sgd(rate)), ("dro", dro))
