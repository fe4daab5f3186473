"""A network's forward pass as a compiled function, and what it gives of the rows of a store."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from remind_jax.data import pipeline
from remind_jax.models import spare_rows
from remind_jax.models.model import Params
from remind_jax.models.network import Network


class Predicted(NamedTuple):
    """Predictions [n, p] of the task and labels [n, ...] of all rows of a store in order; the share of open gates."""

    probabilities: np.ndarray
    labels: np.ndarray
    open_rate: float


class Logits(NamedTuple):
    """What a network says of all rows of a store in order, before anything is chosen on tuning rows.

    Logits [n, o], indices of combinations, int [n], labels [n, ...], and the share of open gates.
    """

    logits: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    open_rate: float


def compiled(config: Any, network: Network, spare: int) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Makes a function (params, batch, gate) -> logits [b, c], features [b, d], share of open gates [b].

    Tables of combinations have so many spare rows in its program.
    """

    def forward(params: Params, batch: pipeline.Batch, gate: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        output = network.apply(params, batch, gate=gate)
        return output.logits.astype("float32"), output.features, output.open_rate

    one, each, axis = jax.jit(forward), jax.jit(forward, static_argnums=2), int(config.ensemble > 1)

    def call(params: Params, batch: pipeline.Batch, gate: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        # A run judges weights before and after its group routers act, by one program.
        switched = config.fusion.group_routers and gate != "always"
        if not any(isinstance(x, jax.core.Tracer) for x in params.values()):
            params = spare_rows.add(params, spare, axis, unseen=True)
        return one(params, batch, np.bool_(gate == "gated")) if switched else each(params, batch, gate)

    return call
