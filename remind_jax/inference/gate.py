"""The gate of group routers: a threshold measured on tuning rows, and what a report says of how the gate decided."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from remind_jax.config import keys
from remind_jax.data import pipeline
from remind_jax.models.fusion.soft_moe import has_measured_gate
from remind_jax.models.model import Params
from remind_jax.models.network import Network
from remind_jax.models.spec import model_spec
from remind_jax.ops import routing, soft_moe

STUCK = 0.005  # an open rate this close to 0 or 1 is that of a gate that decides nothing


def is_measured(config: Any) -> bool:
    """Returns whether the threshold is measured on tuning rows (`fusion.gate_threshold=auto`)."""
    return has_measured_gate(model_spec(config).fusion)


def measure(config: Any, network: Network, params: Params, store: pipeline.Store) -> Params:
    """Finds the thresholds that open gates for `fusion.gate_share` of some rows while group routers rest.

    `network`, or the ensemble, is that of the weights; `store` holds at least two tuning rows. Returns a threshold of
    each block by path, float32 (); of an ensemble one a network, [k].
    """
    fusion, members = config.fusion, config.model.members
    look = jax.jit(lambda params, batch: network.apply(params, batch, gate="never").gate_values)
    placed, parts = jax.device_put(params), []
    for batch in pipeline.eval_batches(store, config.eval.batch_size):
        real = np.repeat(batch["weight"] > 0, members)
        parts.append([np.asarray(values)[..., real, :] for values in look(placed, batch)])
    found = {}
    for i, blocks in enumerate(zip(*parts, strict=True)):
        values, path = np.concatenate(blocks, axis=-2), f"block_{i}/gate_threshold"
        of_networks = values.reshape(-1, *values.shape[-2:])
        each = [routing.threshold_for_share(x, fusion.gate_metric, fusion.gate_share) for x in of_networks]
        found[path] = np.float32(each).reshape(np.shape(params[path]))
    return found


def thresholds(config: Any, params: Params) -> list[float]:
    """Returns the thresholds in use, of the config or measured: block by block, and in a block network by network."""
    blocks, networks = config.fusion.blocks, config.ensemble
    if not is_measured(config):
        number = config.fusion.gate_threshold
        # Methods without group routers have no gate to measure.
        number = keys()["fusion.gate_threshold"].default if number == "auto" else number
        return [float(number)] * (blocks * networks)
    return [float(x) for i in range(blocks) for x in np.reshape(params[f"block_{i}/gate_threshold"], -1)]


def told(config: Any, params: Params) -> str:
    """Returns one line about the measured thresholds."""
    fusion, values = config.fusion, ", ".join(f"{x:.6g}" for x in thresholds(config, params))
    side = "up to" if routing.UNCERTAINTY_METRICS[fusion.gate_metric][1] < 0 else "from"
    return f"Gate: open {side} {fusion.gate_metric} {values}, as {fusion.gate_share:.0%} of the tuning rows have it"


def summary(config: Any, params: Params, rule: str, rates: Sequence[float]) -> dict[str, Any]:
    """Returns what a report says of the gate under the `rule` of evaluation, `gated`, `always` or `never`.

    `params` are the reported weights; `rates` are shares of open gates, that of the held-out rows first, then those of
    evaluations of stage 2. The result has `rule`; `open_rate` of the held-out rows; `stuck`, `open` or `closed` where
    the gate never decided anything, with `why`, the reason and what to do; and `threshold`, a number, or several of
    blocks and networks.
    """
    stuck = None
    if rule == "gated" and max(rates) <= STUCK:
        stuck = "closed"
    elif rule == "gated" and min(rates) >= 1 - STUCK:
        stuck = "open"
    found = {"rule": rule, "open_rate": rates[0], "stuck": stuck}
    if rule == "gated":
        values = thresholds(config, params)
        found["threshold"] = values[0] if len(set(values)) == 1 else values
    return found | ({"why": _why(config, params, stuck)} if stuck else {})


def _why(config: Any, params: Params, stuck: str) -> str:
    """Returns why a gate decided nothing, and what to do."""
    fusion, metric = config.fusion, config.fusion.gate_metric
    if is_measured(config):
        return f"Stage 2 moved {metric} away from its threshold, which was measured before: raise train.joint_epochs."
    auto = "Set fusion.gate_threshold=auto, which opens it for a stated share of the tuning rows (fusion.gate_share)"
    threshold, scale = float(fusion.gate_threshold), _scale(params)
    normalised = soft_moe.PRESETS[fusion.preset].normalize
    if stuck == "open" and metric == "entropy" and normalised and 0 < threshold < 1:
        needed = routing.scale_that_closes(threshold, fusion.experts, config.model.width)
        if scale < needed:
            return (
                f"Tokens and routers have unit length, so that the entropy of routing is nearly the largest: in random "
                f"directions it falls to {threshold:g} of it at a scale of about {needed:.0f} (width "
                f"{config.model.width}, {fusion.experts} experts), and the scale is {scale:.2f}. {auto}, "
                f"fusion.scale={needed:.0f} or fusion.preset=paper_eq."
            )
    return f"Its {metric} never crossed the threshold of {threshold:g}. {auto}."


def _scale(params: Params) -> float:
    """Returns the largest length of a normalised router among blocks and networks."""
    return max(float(np.max(np.abs(x))) for path, x in params.items() if path.endswith("/router_scale"))
