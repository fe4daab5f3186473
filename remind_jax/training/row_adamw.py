"""Tables with a row for each combination, of which a step moves the rows of its batch and leaves the others at rest.

AdamW on a whole table moves rows whose combination is absent, by the momentum of steps long past and by weight decay,
and pays for all of them at every step. Here each row is trained by an AdamW of its own, whose steps are those steps of
the run in which its combination is in the batch: its moments and its count of steps rest in between, and so does the
row. The cost of a step does not depend on the number of combinations.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from remind_jax.models.spare_rows import is_table

Params = Mapping[str, jax.Array]
KINDS = ("auto", "all", "batch")
# Of optax.adamw, which trains what is no table.
DECAYS, _EPSILON = (0.9, 0.999), 1e-8


def only_of_batch(config: Any, num_groups: int) -> bool:
    """Tells whether steps move the rows of their batch only; `auto` does where combinations outnumber the batch."""
    if config.optim.group_rows != "auto":
        return config.optim.group_rows == "batch"
    # Samples that lose modalities may be of no combination, which reads the mean of all rows.
    able = config.fusion.kind == "soft_moe" and not makes_combinations(config)
    return able and num_groups > config.train.batch_size


def makes_combinations(config: Any) -> bool:
    """Tells whether samples of a step may lose modalities, and be of a combination that the data have not."""
    fewer = config.objective.fewer_weight or config.objective.mofe_weight
    return bool(config.train.hide_samples or fewer or config.sampler == "knockout")


def of_batch(groups: jax.Array, num_groups: int, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Finds the combinations of a batch, and the index of each sample's among them; `groups` [b] are below
    `num_groups`, g.

    Returns different rows in ascending order, filled up with g, int [r] with r = min(samples of the batch, g), and the
    index of each sample's combination, int [b]. `axis_name` is that of devices that see their share of the batch only;
    all find the same rows.
    """
    everywhere = groups if axis_name is None else jax.lax.all_gather(groups, axis_name, tiled=True)
    rows = jnp.unique(everywhere, size=min(len(everywhere), num_groups), fill_value=num_groups)
    # Rows are few: comparing all is one kernel, where a search is a loop of small ones.
    return rows, jnp.searchsorted(rows, groups, method="compare_all").astype(groups.dtype)


def take(params: Params, rows: jax.Array) -> dict[str, jax.Array]:
    """Takes `rows` [r] of each table in place of the table, [g, ...] -> [r, ...]; other parameters stay."""
    return {path: x.at[rows].get(mode="clip") if is_table(path) else x for path, x in params.items()}


def add(params: Params, updates: Params, rows: jax.Array | None) -> dict[str, jax.Array]:
    """Adds updates to the parameters, to the `rows` of tables; without them to whole tables."""
    if rows is None:
        return optax.apply_updates(params, updates)
    whole = optax.apply_updates(*({p: x for p, x in tree.items() if not is_table(p)} for tree in (params, updates)))
    return {p: whole[p] if p in whole else x.at[rows].add(updates[p], mode="drop") for p, x in params.items()}


def split_adamw(adamw: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer of what is no table, which leaves the updates of tables as they are."""

    def others(tree: Params) -> dict[str, jax.Array]:
        return {path: x for path, x in tree.items() if not is_table(path)}

    def update(updates, state, params, **extra_args):
        moved, state = adamw.update(others(updates), state, others(params), **extra_args)
        return {**updates, **moved}, state

    return optax.GradientTransformationExtraArgs(lambda params: adamw.init(others(params)), update)


class RowState(NamedTuple):
    """What the optimizer of rows remembers: steps of the stage, int32 (), and by table steps of each row, int32 [g],
    and first and second moments, [g, ...].
    """

    step: jax.Array
    counts: dict[str, jax.Array]
    mu: dict[str, jax.Array]
    nu: dict[str, jax.Array]


def row_adamw(schedule: Callable[[jax.Array], Any], weight_decay: float) -> optax.GradientTransformationExtraArgs:
    """Makes AdamW of the rows of tables, each with moments and bias correction of its own steps.

    The schedule goes by the step of the stage, whether a row is in it or not; the decay is decoupled, times the
    learning rate. `update(updates, state, params, *, rows)` takes gradients of `rows` [r] of each table, [r, ...], and
    gives what to add to those rows; the updates of other parameters stay as they are.
    """

    def init(params: Params) -> RowState:
        tables = {path: x for path, x in params.items() if is_table(path)}
        # One array a field: a donated state may not hold the same buffer twice.
        zeros = [jax.tree.map(jnp.zeros_like, tables) for _ in range(2)]
        return RowState(jnp.int32(0), {p: jnp.zeros(len(x), jnp.int32) for p, x in tables.items()}, *zeros)

    def update(updates, state, params, *, rows, accepted=True, **extra_args):
        del extra_args
        b1, b2 = DECAYS
        rate, moved, counts, mu, nu = schedule(state.step), {}, {}, {}, {}
        for path, kept in state.mu.items():
            gradient = updates[path]
            first, second, count, value = (
                x.at[rows].get(mode="clip") for x in (kept, state.nu[path], state.counts[path], params[path])
            )
            first, second = b1 * first + (1 - b1) * gradient, b2 * second + (1 - b2) * jnp.square(gradient)
            times = (count + 1).astype(jnp.float32).reshape(-1, *[1] * (gradient.ndim - 1))
            direction = (first / (1 - b1**times)) / (jnp.sqrt(second / (1 - b2**times)) + _EPSILON)
            moved[path] = -rate * (direction + weight_decay * value)
            counts[path] = state.counts[path].at[rows].set(count + 1, mode="drop")
            mu[path], nu[path] = (
                x.at[rows].set(new, mode="drop") for x, new in ((kept, first), (state.nu[path], second))
            )
        return {**updates, **moved}, RowState(state.step + jnp.int32(accepted), counts, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)
