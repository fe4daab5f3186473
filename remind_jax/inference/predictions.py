"""Predictions of a trained network on prepared rows, and the figures that weights are chosen by."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data import pipeline
from remind_jax.evaluation import metrics as figures
from remind_jax.models.model import Network, Params
from remind_jax.objectives import logit_adjust
from remind_jax.runtime import devices

PRIOR_POWERS = tuple(i / 10 for i in range(-5, 16))
"""Powers of the class prior that `choose_prior_power` tries."""


class Predicted(NamedTuple):
    """Probabilities [n, c], labels [n], and the share of open gates, of all rows of a store in order."""

    probabilities: np.ndarray
    labels: np.ndarray
    open_rate: float


def make_forward(network: Network, offset: np.ndarray | None = None) -> Callable[..., tuple[jax.Array, ...]]:
    """A jitted function (parameters, batch, gate) -> logits [b, c], features [b, d], share of open gates [b].

    Args:
      network: as pure functions.
      offset: added to the logits of a sample, by group and class, [g + 1, c]; the last row is for combinations not seen
        in training.
    """

    def forward(params: Params, batch: pipeline.Batch, gate: str) -> tuple[jax.Array, ...]:
        output = network.apply(params, batch, gate=gate)
        logits = output.logits.astype(jnp.float32)
        logits = logits if offset is None else logits + jnp.asarray(offset, jnp.float32)[batch["group"]]
        return logits, output.features, output.open_rate

    return jax.jit(forward, static_argnums=2)


def make_predict(
    network: Network, batch_size: int, offset: np.ndarray | None = None
) -> Callable[[Params, pipeline.Store, str], Predicted]:
    """A function (parameters, store, gate) -> Predicted, compiled once for each gate.

    Several processes take the batches in turn and give one another what they found, so that each has all rows.

    Args:
      network: as pure functions.
      batch_size: rows at a time.
      offset: as for `make_forward`.
    """
    forward = make_forward(network, offset)

    def predict(params: Params, store: pipeline.Store, gate: str) -> Predicted:
        params = jax.device_put(params)
        process, processes, found = jax.process_index(), jax.process_count(), None
        count = -(-len(store) // batch_size)
        # With more processes than batches, the last ones look at a batch for its shapes.
        batches = pipeline.eval_batches(store, batch_size, first=min(process, count - 1), every=processes)
        for i, batch in zip(range(process, max(count, process + 1), processes), batches, strict=True):
            logits, _, open_rate = forward(params, batch, gate)
            values = np.asarray(jax.nn.softmax(logits)), batch["label"], np.asarray(open_rate)
            if found is None:
                found = tuple(np.zeros((len(store), *x.shape[1:]), x.dtype) for x in values)
            rows = slice(i * batch_size, (i + 1) * batch_size)
            for x, value in zip(found, values, strict=True):
                x[rows] = value[: len(x[rows])]  # without what fills up the last batch
        probabilities, labels, open_rate = devices.merged(found)
        return Predicted(probabilities, labels, float(np.mean(open_rate)))

    return predict


def logit_offset(config: Any, label_counts: np.ndarray) -> np.ndarray | None:
    """What a run adds to the logits of its predictions, [g + 1, c], from its config and its train labels [g, c]."""
    prior = config.objective
    return logit_adjust.predict_offset(
        prior.prior, prior.prior_mode, prior.prior_tau, label_counts, prior.prior_smoothing
    )


def tuning_metrics(predicted: Predicted) -> dict[str, float | None]:
    """What the choice of weights can go by."""
    values, _ = figures.metrics(predicted.labels, predicted.probabilities)
    chosen = predicted.probabilities[np.arange(len(predicted.labels)), predicted.labels]
    values = {name: values[name] for name in ("accuracy", "macro_f1", "auroc")}
    return {"loss": float(-np.mean(np.log(np.maximum(chosen, 1e-12)))), **values}


def adjust_prior(probabilities: np.ndarray, prior: np.ndarray, power: float) -> np.ndarray:
    """Probabilities [n, c] divided by a power of the class prior [c] and made to sum to one again."""
    adjusted = probabilities / np.maximum(prior, 1e-12) ** power
    return adjusted / adjusted.sum(axis=1, keepdims=True)


def choose_prior_power(predicted: Predicted, prior: np.ndarray, figure: str) -> float:
    """The power of the prior that is best for a figure of some predictions; of equals the one nearest to none.

    Args:
      predicted: of the tuning rows.
      prior: share of each class among the train rows, [c].
      figure: `accuracy` or `macro_f1`.
    """

    def value(power: float) -> tuple[float, float]:
        adjusted = adjust_prior(predicted.probabilities, prior, power)
        found = tuning_metrics(predicted._replace(probabilities=adjusted))[figure]
        return (-np.inf if found is None else found, -abs(power))

    return max(PRIOR_POWERS, key=value)
