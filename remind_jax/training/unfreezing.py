"""What an adaptation trains: parts of a network, as rows of its parameters.

Parts are cut out of their arrays for training, so that no optimizer sees the rest of an array.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data import pipeline
from remind_jax.errors import UserError, did_you_mean
from remind_jax.models.model import Params, is_statistic
from remind_jax.models.network import Network
from remind_jax.ops import soft_moe

PARTS = ("nothing", "head", "router", "shared_router", "experts", "all")
ROWS = ("new", "all")
_TABLE = re.compile(r"^block_\d+/group_router$|^imputation/group$")  # a row a combination
_SHARED = re.compile(r"^block_\d+/(router|router_scale|noise_router)$")
_HEAD = re.compile(r"^head/|^wide$|(^members|^block_0/experts)/head(_bias)?$|^block_0/out/")
_EXPERTS = re.compile(r"^(block_\d+)/expert_(in|out)(_bias)?$")
CUT = "cut/"  # before the path of an array: its trained rows


class Choice(NamedTuple):
    """How to adapt; the fields are the options of the command.

    Attributes:
      parts: names of `PARTS` without `experts`.
      experts: share of the experts, 0 for none.
      rows: `new` trains on rows of new combinations, `all` on those of known ones too.
      steps: of training.
      lr: highest learning rate; 0 is the run's.
      patience: evaluations without improvement before training ends; 0 never ends it.
    """

    parts: tuple[str, ...]
    experts: float = 0.0
    rows: str = "new"
    steps: int = 300
    lr: float = 0.0
    patience: int = 0

    @property
    def unfreeze(self) -> str:
        """The parts and the share of the experts as the command line names them."""
        return ",".join([*self.parts, *([f"experts={self.experts:g}"] if self.experts else [])])


def parse_unfreeze(text: str) -> tuple[tuple[str, ...], float]:
    """Reads names of `PARTS` and the share of experts. Raises UserError: a part is unknown, twice, or not to be
    combined.
    """
    parts, share = [], 0.0
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = item.partition("=")
        if name not in PARTS or (value and name != "experts"):
            known = ", ".join(PARTS).replace("experts", "experts=SHARE")
            raise UserError(f"--unfreeze: {item!r} is unknown{did_you_mean(name, PARTS)}; known: {known}")
        if name in parts:
            raise UserError(f"--unfreeze names {name} twice")
        parts.append(name)
        if name == "experts":
            share = _share(value)
    if not parts:
        raise UserError(f"--unfreeze is empty: name some of {', '.join(PARTS)}")
    alone = [name for name in ("nothing", "all") if name in parts]
    if alone and len(parts) > 1:
        raise UserError(f"--unfreeze={alone[0]} goes with nothing else")
    return tuple(name for name in PARTS if name in parts and name != "experts"), share


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"--unfreeze: experts={text} must be a share above 0, up to 1, such as experts=0.25")
    return share


def extend(params: Params, count: int) -> Params:
    """Adds rows for `count` combinations to all tables: routers of zero, and the mean of the trained vectors."""

    def more(path: str, x: np.ndarray) -> np.ndarray:
        mean = np.asarray(jnp.mean(x, axis=0)) if path.startswith("imputation/") else np.zeros(x.shape[1:], x.dtype)
        return np.concatenate([x, np.broadcast_to(mean, (count, *mean.shape))])

    return {path: more(path, x) if _TABLE.search(path) else x for path, x in params.items()}


def trained_rows(
    params: Params, choice: Choice, new: np.ndarray, experts: Mapping[str, np.ndarray], group_routers: bool
) -> dict[str, np.ndarray | None]:
    """Finds what a choice trains, by path: rows of the first axis, or None for the whole array.

    `params` are extended, `new` int [k] are the rows of the new combinations, and `experts` the chosen experts of each
    block by its name; without `group_routers` the method has no routers of combinations.
    """
    parts, found = set(choice.parts), {}
    if "router" in parts and not group_routers:
        parts.add("shared_router")
    for path in params:
        block = _EXPERTS.search(path)
        if is_statistic(path):
            continue
        whole = ("head" in parts and _HEAD.search(path)) or ("shared_router" in parts and _SHARED.search(path))
        if "all" in parts or whole:
            found[path] = None
        elif "router" in parts and _TABLE.search(path):
            found[path] = new
        elif block and choice.experts:
            chosen = experts[block[1]]
            found[path] = None if len(chosen) == len(params[path]) else chosen
    return found


def cut(params: Params, trained: Mapping[str, np.ndarray | None]) -> Params:
    """Adds the trained rows of each array as an array of its own."""
    return params | {CUT + path: params[path][rows] for path, rows in trained.items() if rows is not None}


def joined(params: Params, trained: Mapping[str, np.ndarray | None]) -> Params:
    """Puts trained rows back into their arrays; undoes `cut`."""
    whole = {path: x for path, x in params.items() if not path.startswith(CUT)}
    rows_of = {path: rows for path, rows in trained.items() if rows is not None}
    return whole | {path: jnp.asarray(whole[path]).at[rows].set(params[CUT + path]) for path, rows in rows_of.items()}


def rank_experts(network: Network, params: Params, store: pipeline.Store, batch_size: int) -> np.ndarray | None:
    """Ranks the experts of each block by how much the rows of a store read them, most first, int [blocks, e].

    An expert's use is the weight with which tokens read it under the shared router (Eq. 6), summed over its slots, mean
    over tokens and rows. None where tokens are not softly routed by one predictor.
    """
    if network.route is None:
        return None

    def use(params: Params, batch: pipeline.Batch) -> jax.Array:
        routes = network.route(params, batch, gate="never")
        each = [jnp.mean(soft_moe.combine_weights(route.used), axis=1).sum(axis=-1) for route in routes.blocks]
        return jnp.einsum("lbe,b->le", jnp.stack(each), jnp.asarray(batch["weight"]))

    use = jax.jit(use)
    total = sum(np.asarray(use(params, batch), np.float64) for batch in pipeline.eval_batches(store, batch_size))
    return np.argsort(-total, axis=1, kind="stable")
