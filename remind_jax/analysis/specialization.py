"""Shows which experts each modality combination uses (REMIND figure 4).

    remind analyse specialization --workdir=RUN [--also=RUN2,RUN3]

    --also=RUN2,…       further runs to draw next to it
    --top=3             number of a sample's first experts that count
    --count=sample      sample (experts ranked by their mean weight over a sample's tokens) | token
                        (by each token)
    --tokens=all        all | observed; `observed` leaves out the weights of missing modalities'
                        tokens
    --split=held_out    held_out | tuning | train
    --block=0           fusion block
    --least=10          samples that a combination needs to count in the distance
    --permutations=500  permutations of combinations among samples, for the distance expected by
                        chance

Writes specialization.csv, specialization_summary.csv, .png and .svg under RUN/analysis. The weights
are those with which tokens read experts (Eq. 6), summed over an expert's slots, in evaluation. How
to read it: docs/analyses.md.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, opening
from remind_jax.analysis.command import INK, QUIET, Options, Row
from remind_jax.analysis.opening import Run
from remind_jax.errors import UserError
from remind_jax.evaluation.names import short_names
from remind_jax.ops import soft_moe

NAME = "specialization"
COLUMNS = ("run", "method", "seed", "group", "tail", "n_train", "expert", "frequency", "n", "settings")
SUMMARY_COLUMNS = (
    *("run", "method", "seed", "distance", "chance", "chance_high", "excess", "p", "combinations", "samples"),
    *("gate_open_rate", "settings"),
)


def settings_text(options: Options, gate: str) -> str:
    """Returns the options that rows of the tables depend on."""
    parts = {key: getattr(options, key) for key in ("top", "count", "tokens", "split", "block")} | {"gate": gate}
    return " ".join(f"{key}={value}" for key, value in parts.items())


class Pattern(NamedTuple):
    """One run's use of experts: its title, its rows of `command.combinations`, head first, and a row of the summary.

    `frequency` [g, e] is the share of each combination's samples that have an expert among their first.
    """

    title: str
    groups: list[Row]
    frequency: np.ndarray
    summary: Row


def top_mask(weights: jax.Array, top: int) -> jax.Array:
    """Returns 1 at the `top` largest weights of each row, else 0, [..., e] -> [..., e]; of equal ones the first win."""
    _, best = jax.lax.top_k(weights, top)
    return jnp.sum(jax.nn.one_hot(best, weights.shape[-1]), axis=-2)


def sample_usage(logits: jax.Array, counted: jax.Array, top: int, count: str) -> jax.Array:
    """Returns each expert's share among the `top` first experts of each sample, [b, e]; each row has the sum `top`.

    `logits` [b, n, e, s] are those of the router in use; `counted`, bool [b, n], marks the tokens whose weights count,
    at least one a sample. The count `sample` ranks experts by their mean weight over tokens; `token` averages the ranks
    of each token.
    """
    weights = jnp.sum(soft_moe.combine_weights(logits), axis=3)
    share = counted.astype(weights.dtype)
    share = share / jnp.sum(share, axis=1, keepdims=True)
    if count == "token":
        return jnp.einsum("bne,bn->be", top_mask(weights, top), share)
    return top_mask(jnp.einsum("bne,bn->be", weights, share), top)


def group_means(usage: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean of `usage` [n, e] over the samples of each of `count` groups, [g, e]."""
    return (np.eye(count)[index].T @ usage) / np.bincount(index, minlength=count)[:, None]


def mean_distance(patterns: np.ndarray) -> float:
    """Returns the mean Jensen-Shannon distance over pairs of rows, in [0, 1]; nan with fewer than two rows.

    The distance is the square root of the divergence in bits. Rows of `patterns` [g, e] are scaled to sum one.
    """
    p = patterns / patterns.sum(axis=1, keepdims=True)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -np.sum(q * np.log2(np.where(q > 0, q, 1.0)), axis=-1)

    first, second = np.triu_indices(len(p), k=1)
    if not len(first):
        return float("nan")
    divergence = entropy((p[first] + p[second]) / 2) - (entropy(p[first]) + entropy(p[second])) / 2
    return float(np.mean(np.sqrt(np.maximum(divergence, 0.0))))


def distinctness(usage: np.ndarray, index: np.ndarray, least: int, permutations: int, seed: int = 0) -> Row:
    """Measures the distance between the patterns of combinations, and the distance expected by chance.

    `usage` [n, e] is that of `sample_usage`, and `index`, int [n], the combination of each sample; a combination needs
    `least` samples. Permutations of the combinations among these samples keep their sizes, and so their noise.

    Returns `distance`, the `chance` mean and its 95th percentile `chance_high`, their difference `excess`, `p` (share
    of permutations at least as far apart), all nan with fewer than two combinations; `combinations` and `samples`.
    """
    sizes = np.bincount(index)
    large = np.flatnonzero(sizes >= least)
    inside = np.isin(index, large)
    usage, labels = usage[inside], np.searchsorted(large, index[inside])
    common = {"combinations": len(large), "samples": len(labels)}
    if len(large) < 2:
        return dict.fromkeys(("distance", "chance", "chance_high", "excess", "p"), float("nan")) | common
    distance, rng = mean_distance(group_means(usage, labels, len(large))), np.random.default_rng(seed)
    orders = (rng.permutation(labels) for _ in range(permutations))
    shuffled = np.array([mean_distance(group_means(usage, order, len(large))) for order in orders])
    return {
        "distance": distance,
        "chance": float(shuffled.mean()),
        "chance_high": float(np.quantile(shuffled, 0.95)),
        "excess": distance - float(shuffled.mean()),
        # The observed order counts as one, so that p is never smaller than the number of permutations allows.
        "p": float((1 + np.sum(shuffled >= distance - 1e-12)) / (1 + permutations)),
        **common,
    }


def pattern(run: Run, title: str, options: Options) -> Pattern:
    """Computes one run's use of experts; refuses a run with no more experts than count as first (UserError)."""
    if options.top >= run.config.fusion.experts:
        experts = f"the run in {run.path} has {run.config.fusion.experts} experts"
        raise UserError(f"--top={options.top}: {experts}, all would count")

    def function(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        routes = run.model.network.route(params, batch, gate=run.model.gate)
        counted = routes.observed if options.tokens == "observed" else jnp.ones_like(routes.observed)
        output = run.model.network.apply(params, batch, gate=run.model.gate)
        return sample_usage(routes.blocks[options.block].used, counted, options.top, options.count), output.open_rate

    usage, open_rate = command.over_rows(run, options.split, function)
    groups, index = command.combinations(run, options.split)
    found = distinctness(usage, index, options.least, options.permutations)
    facts = {"settings": settings_text(options, run.model.gate), "gate_open_rate": float(open_rate.mean())}
    found |= command.identity(run) | facts
    return Pattern(title, groups, group_means(usage, index, len(groups)), found)


def table(found: Pattern) -> list[Row]:
    """Returns the rows of the CSV."""
    common = {key: found.summary[key] for key in ("run", "method", "seed", "settings")}
    return [
        common | group | {"expert": expert, "frequency": float(frequency)}
        for group, row in zip(found.groups, found.frequency, strict=True)
        for expert, frequency in enumerate(row)
    ]


def summary(patterns: Sequence[Pattern], least: int) -> str:
    """Returns the summary for a terminal."""
    lines = [f"{'Jensen-Shannon distance of combinations':<40} {'found':>6} {'chance':>7} {'excess':>7} {'p':>6}"]
    for found in patterns:
        row = found.summary
        title = f"{found.title} ({row['combinations']} with {least} samples or more)"
        cells = [f"{row[key]:.3f}" if np.isfinite(row[key]) else "-" for key in ("distance", "chance", "excess", "p")]
        lines.append(f"{title:<40} {cells[0]:>6} {cells[1]:>7} {cells[2]:>7} {cells[3]:>6}")
    return "\n".join(lines)


GAP = 0.45  # rows between head and tail
PALE = 0.5  # opacity of combinations too small to count
LABELLED_EXPERTS = 24  # with more experts, not all have their numbers written


def draw(patterns: Sequence[Pattern], declared: Sequence[str], options: Options) -> "command.Figure":
    """Draws a heatmap for each run: combinations in rows, head above tail; experts in columns, most used first."""
    import matplotlib

    experts, rows = max(p.frequency.shape[1] for p in patterns), max(len(p.groups) for p in patterns)
    same = all([g["group"] for g in p.groups] == [g["group"] for g in patterns[0].groups] for p in patterns)
    panel = min(6.0, max(2.4, 0.26 * experts))
    width = (2.6 if same else 2.6 * len(patterns)) + panel * len(patterns) + 0.6
    figure = command.new_figure(width, 1.75 + 0.21 * (rows + GAP))
    axes = figure.subplots(1, len(patterns), squeeze=False)[0]
    colours = matplotlib.colormaps["cividis"]
    for number, (axis, found) in enumerate(zip(axes, patterns, strict=True)):
        draw_panel(axis, found, declared, colours, options.least, names=number == 0 or not same)
    mesh = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0.0, 1.0), colours)
    bar = figure.colorbar(mesh, ax=list(axes), fraction=0.03, aspect=25, pad=0.015)
    bar.outline.set_visible(False)
    unit = "samples" if options.count == "sample" else "tokens"
    bar.set_label(f"share of {unit} with\nthe expert in their top {options.top}", fontsize=8.5)
    split = options.split.replace("_", "-")
    note = f"Number: {split} samples; pale: fewer than {options.least}, not in the distance"
    figure.supxlabel(note, fontsize=8, color=QUIET)
    return figure


def draw_panel(
    axis: "command.Axes", found: Pattern, declared: Sequence[str], colours: Any, least: int, names: bool
) -> None:
    """Draws one run's heatmap, with a gap between head and tail."""
    groups, experts = found.groups, found.frequency.shape[1]
    large = np.array([group["n"] >= least for group in groups])
    order = np.argsort(-found.frequency[large if large.any() else ~large].mean(axis=0), kind="stable")
    tail = np.array([group["tail"] for group in groups])
    place = np.arange(len(groups)) + np.where(tail & (np.sum(~tail) > 0), GAP, 0.0)
    for y, row, counts in zip(place, found.frequency, large, strict=True):
        extent = (-0.5, experts - 0.5, y + 0.5, y - 0.5)
        axis.imshow(row[None, order], extent=extent, cmap=colours, vmin=0, vmax=1, alpha=1.0 if counts else PALE)
    axis.set(xlim=(-0.5, experts - 0.5), ylim=(place[-1] + 0.5, -0.5), aspect="auto", xlabel="expert (most used first)")
    step = -(-experts // LABELLED_EXPERTS)
    axis.set_xticks(np.arange(0, experts, step), order[::step], fontsize=7)
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if names:
        shown, _ = short_names((group["modalities"] for group in groups), declared, 28)
        labels = [f"{name}  {group['n']:>4}" for name, group in zip(shown, groups, strict=True)]
        command.name_rows(axis, place, labels, tail)
        for label, counts in zip(axis.get_yticklabels(), large, strict=True):
            label.set_style("normal" if counts else "italic")
    row = found.summary
    score = "none: one combination"
    if np.isfinite(row["distance"]):
        score = f"{row['distance']:.2f}, by chance {row['chance']:.2f}"
    axis.set_title(found.title, fontsize=10, fontweight="bold", color=INK, pad=18)
    above = {"xycoords": "axes fraction", "xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
    axis.annotate(f"distance {score}", (0.5, 1.0), fontsize=8, color=QUIET, **above)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    integers = {"top": (3, 1), "block": (0, 0), "least": (10, 1), "permutations": (500, 1)}
    choices = {"count": ("sample", "token"), "tokens": ("all", "observed"), "split": command.SPLITS}
    paths, options = command.read_options(arguments, integers=integers, choices=choices)
    runs, found = [], []
    for run in opening.open_runs(paths, functools.partial(command.check_routed, block=options.block)):
        runs.append(run)
        found.append(pattern(run, "", options))
    opening.check_comparable(runs)
    found = [one._replace(title=title) for one, title in zip(found, command.titles(runs), strict=True)]
    folder = opening.output_folder(paths[0])
    command.write_csv(folder / f"{NAME}.csv", COLUMNS, [row for one in found for row in table(one)])
    command.write_csv(folder / f"{NAME}_summary.csv", SUMMARY_COLUMNS, [one.summary for one in found])
    command.write_figure(folder / NAME, lambda: draw(found, tuple(runs[0].titles.values()), options))
    print(summary(found, options.least))
    print(f"Written: {folder / NAME}.csv, _summary.csv, .png, .svg")


if __name__ == "__main__":
    cli.run(main, __doc__)
