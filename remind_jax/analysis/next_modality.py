"""Ranks missing modalities by the expected drop in a prediction's entropy. Research, not advice.

    remind analyse next_modality --workdir=RUN [--samples=0,3,10-19]

    --samples=all        held-out samples by position, counted from 0, or all of them
    --donors=20          train samples that lend a missing modality, the nearest in the modalities
                         of the sample
    --pool=4000          train samples to search for donors, drawn at random from larger data
    --checks=2000        held-out samples of the validation, drawn likewise
    --seed=0             seed of these draws and of the bootstrap

The donors of a modality A are the train samples that have A and every modality of the sample, the
nearest by encoded tokens. Each lends its tokens of A, and the drop in entropy is averaged over
donors. Writes next_modality.csv (a row for each missing modality of a sample, no patient ids),
next_modality_validation.csv, .png and .svg under RUN/analysis.

The validation hides each modality of held-out samples in turn and compares the expected drop with
the true one, which the hidden modality makes when it comes back: Spearman's rank correlation with a
95 % interval (bootstrap over samples), next to that of a rule without donors, the entropy before. A
drop in entropy is no gain in accuracy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, opening
from remind_jax.analysis.command import Row
from remind_jax.analysis.opening import Run
from remind_jax.analysis.what_if import group_columns
from remind_jax.data.groups import count_combinations
from remind_jax.data.pipeline import Store
from remind_jax.inference import model_folder
from remind_jax.runtime import progress

NAME = "next_modality"
LABEL = "research, not advice"
SPLIT = "held_out"
RESAMPLES = 1_000
FEWEST = 20  # fewer samples have no rank correlation
COLUMNS = (
    *("sample", "group", "tail", "modality", "entropy", "expected_entropy", "expected_drop", "rank"),
    *("donors", "distance", "seen", "use"),
)
CHECKED = ("modality", "n", "rho", "rho_low", "rho_high", "rho_entropy_before", "mean_expected", "mean_true", "use")


class Encoded(NamedTuple):
    """Encoded samples of a split: tokens [k, n, d], as the fusion receives them, and presence, bool [k, m]."""

    tokens: np.ndarray
    presence: np.ndarray

    def take(self, at: np.ndarray) -> "Encoded":
        """Returns the samples at these positions."""
        return Encoded(self.tokens[at], self.presence[at])


class Estimate(NamedTuple):
    """The expected effect of a modality on samples that lack it.

    `expected` [k] is the mean predictive entropy with a donor's tokens, nan without donors; `donors`, int [k], is their
    number, and `distance` [k] the root mean square distance of their tokens to the sample's.
    """

    expected: np.ndarray
    donors: np.ndarray
    distance: np.ndarray


class Fusion:
    """A run's network from tokens on: samples are encoded once and predicted with any of them missing or lent."""

    def __init__(self, run: Run):
        """Makes the programs of a run of a single network."""
        self.run, self.model, self.size, self._of = run, run.model, run.config.eval.batch_size, run.task.entropy
        self._of(np.array([run.task.baseline]))  # refuses a task that has none before anything slow
        params = jax.device_put(run.model.params)
        self._params = params

        def logits(params, tokens, observed, group, gate):
            return run.model.network.fuse(params, tokens, observed, group, gate=gate).logits.astype("float32")

        self._logits, self._encode = jax.jit(logits, static_argnums=4), jax.jit(run.model.network.encode)
        # Tokens of missing modalities depend on the combination alone: a row for each, the last for unseen ones.
        count, masks = len(run.data.groups) + 1, run.data.groups.masks
        store = run.data.stores["train"]
        batch = run.model.hidden(store, np.zeros(count, np.int64), np.zeros((count, masks.shape[1]), bool))
        batch["group"] = np.arange(count, dtype=np.int32)
        self.imputed = np.asarray(self._encode(params, batch))
        self.owner = self._owner(store)

    def _owner(self, store: Store) -> np.ndarray:
        """Returns the modality of each token, int [n]: a sample of one modality has observed tokens of that one."""
        count = len(self.run.data.groups.modalities)
        batch = store.take(np.zeros(count, np.int64)) | {"present": np.eye(count, dtype=bool)}
        observed = jax.jit(lambda params, batch: self.run.model.network.apply(params, batch, gate="never").observed)
        return np.asarray(observed(self._params, batch)).argmax(axis=0)

    def encode(self, store: Store, positions: np.ndarray) -> Encoded:
        """Encodes rows of a split with all their modalities."""
        tokens, presence = [], []
        for start in range(0, len(positions), self.size):
            part = positions[start : start + self.size]
            batch = store.take(np.resize(part, self.size))
            tokens.append(np.asarray(self._encode(self._params, batch))[: len(part)])
            presence.append(batch["present"][: len(part)])
        return Encoded(np.concatenate(tokens), np.concatenate(presence))

    def entropy(self, tokens: np.ndarray, presence: np.ndarray) -> np.ndarray:
        """Returns the predictive entropy in nats, [k], of tokens [k, n, d]; `presence` [k, m] marks the real ones."""
        group = self.run.data.groups.index(presence)
        found = np.zeros(len(tokens))
        for start in range(0, len(tokens), self.size):
            part = np.arange(start, min(start + self.size, len(tokens)))
            filled = np.resize(part, self.size)
            observed = presence[filled][:, self.owner]
            given = np.where(observed[:, :, None], tokens[filled], self.imputed[group[filled]])
            logits = self._logits(self._params, given, observed, group[filled], self.run.model.gate)
            found[part] = self._of(self.model.probabilities(np.asarray(logits, np.float64)[: len(part)], group[part]))
        found[~presence.any(axis=1)] = self._of(np.array([self.model.task.baseline]))[0]
        return found


def nearest(samples: np.ndarray, donors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest donors of each sample by features [k, f] and [p, f]: `count` of them, or all p.

    Returns positions, int [k, min(count, p)], nearest first, and their root mean square distances.
    """
    count = min(count, len(donors))
    squares = np.sum(samples**2, axis=1)[:, None] + np.sum(donors**2, axis=1)[None] - 2.0 * samples @ donors.T
    found = np.argsort(squares, axis=1, kind="stable")[:, :count]
    distances = np.maximum(np.take_along_axis(squares, found, axis=1), 0.0)
    return found, np.sqrt(distances / max(1, samples.shape[1]))


def estimate(fusion: Fusion, samples: Encoded, pool: Encoded, modality: int, count: int) -> Estimate:
    """Estimates the effect of a modality, given by its position, on samples that lack it, with `count` donors each.

    A hidden modality counts as missing; the pool holds encoded train samples.
    """
    n = len(samples.presence)
    found = Estimate(np.full(n, np.nan), np.zeros(n, np.int64), np.full(n, np.nan))
    masks, _, index = count_combinations(samples.presence)
    lent = fusion.owner == modality
    for g, mask in enumerate(masks):
        able = np.flatnonzero(pool.presence[:, modality] & pool.presence[:, mask].all(axis=1))
        if not len(able):
            continue
        here, shared, with_it = np.flatnonzero(index == g), mask[fusion.owner], mask.copy()
        with_it[modality] = True
        features = pool.tokens[able][:, shared].reshape(len(able), -1)
        some = max(1, fusion.size * 8 // min(count, len(able)))
        for block in (here[start : start + some] for start in range(0, len(here), some)):
            own = samples.tokens[block]
            at, distances = nearest(own[:, shared].reshape(len(block), -1), features, count)
            each = at.shape[1]
            tokens = np.repeat(own, each, axis=0)
            tokens[:, lent] = pool.tokens[able[at.reshape(-1)]][:, lent]
            entropies = fusion.entropy(tokens, np.tile(with_it, (len(tokens), 1)))
            found.expected[block] = entropies.reshape(-1, each).mean(axis=1)
            found.donors[block], found.distance[block] = each, distances.mean(axis=1)
    return found


def recommend(fusion: Fusion, samples: Encoded, pool: Encoded, positions: np.ndarray, count: int) -> list[Row]:
    """Returns a row for each missing modality of each sample, ranked by the expected drop."""
    run = fusion.run
    before = fusion.entropy(samples.tokens, samples.presence)
    names, facts = run.data.groups.modalities, group_columns(run, samples.presence)
    rows: list[Row] = []
    for j, name in enumerate(progress.over(names, "missing modalities")):
        lacking = np.flatnonzero(~samples.presence[:, j])
        found = estimate(fusion, samples.take(lacking), pool, j, count)
        with_it = samples.presence[lacking]
        with_it[:, j] = True
        seen = fusion.model.seen(with_it)
        for i, at in enumerate(lacking):
            drop = before[at] - found.expected[i]
            row = {"sample": int(positions[at]), "modality": name} | {key: facts[key][at] for key in ("group", "tail")}
            row |= {"entropy": before[at], "expected_entropy": found.expected[i], "expected_drop": drop}
            row |= {"donors": int(found.donors[i]), "distance": found.distance[i], "seen": bool(seen[i]), "use": LABEL}
            rows.append(row)
    rows.sort(key=lambda row: (row["sample"], -row["expected_drop"] if row["donors"] else np.inf))
    place: dict[int, int] = {}
    for row in rows:
        place[row["sample"]] = place.get(row["sample"], 0) + 1
        row["rank"] = place[row["sample"]] if row["donors"] else None
    return rows


class Checks(NamedTuple):
    """Samples with one modality hidden: sample, modality, entropy before, expected and true drop, and tail."""

    sample: np.ndarray
    modality: np.ndarray
    before: np.ndarray
    expected: np.ndarray
    true: np.ndarray
    tail: np.ndarray

    def take(self, at: np.ndarray) -> "Checks":
        """Returns the checks at these positions."""
        return Checks(*(values[at] for values in self))


def check(fusion: Fusion, samples: Encoded, pool: Encoded, count: int) -> Checks:
    """Hides every modality of every sample that has another one, and compares the expected drop with the true one."""
    full = fusion.entropy(samples.tokens, samples.presence)
    tail = np.array(group_columns(fusion.run, samples.presence)["tail"], bool)
    parts = []
    for j in progress.over(range(samples.presence.shape[1]), "validation"):
        able = np.flatnonzero(samples.presence[:, j] & (samples.presence.sum(axis=1) > 1))
        hidden = samples.take(able)
        hidden.presence[:, j] = False
        before = fusion.entropy(hidden.tokens, hidden.presence)
        found = estimate(fusion, hidden, pool, j, count)
        checks = Checks(able, np.full(len(able), j), before, before - found.expected, before - full[able], tail[able])
        parts.append(checks.take(found.donors > 0))
    return Checks(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def correlate(checks: Checks, seed: int) -> tuple[float | None, float | None, float | None]:
    """Returns the rank correlation of expected and true drop and its 95 % interval, None for few samples or one value.

    The interval is a bootstrap over samples.
    """
    samples, index = np.unique(checks.sample, return_inverse=True)
    rho = spearman(checks.expected, checks.true)
    if len(samples) < FEWEST or rho is None:
        return None, None, None
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(len(samples) + 1))
    rng, values = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        picked = rng.integers(len(samples), size=len(samples))
        at = np.concatenate([order[starts[i] : starts[i + 1]] for i in picked])
        values.append(spearman(checks.expected[at], checks.true[at]))
    known = np.array([value for value in values if value is not None])
    return rho, *(float(x) for x in np.percentile(known, [2.5, 97.5]))


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation; None where one of the two does not vary."""
    from scipy.stats import rankdata

    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def validation(checks: Checks, modalities: Sequence[str], seed: int) -> list[Row]:
    """Returns a row for each modality, and one for all together."""
    rows = []
    for j, name in enumerate((*modalities, "all")):
        part = checks if name == "all" else checks.take(checks.modality == j)
        rho, low, high = correlate(part, seed)
        row = {"modality": name, "n": len(part.sample), "rho": rho, "rho_low": low, "rho_high": high}
        row["rho_entropy_before"] = spearman(part.before, part.true) if rho is not None else None
        for key, drops in (("mean_expected", part.expected), ("mean_true", part.true)):
            row[key] = float(drops.mean()) if len(drops) else None
        row["use"] = LABEL
        rows.append(row)
    return rows


MOST_POINTS = 400  # most points of a panel


def draw(checks: Checks, rows: Sequence[Row], title: str) -> "command.Figure":
    """Draws true over expected drop, a panel for each modality; circles are head combinations, triangles tail."""
    shown = [row for row in rows if row["n"] and row["modality"] != "all"]
    names = [row["modality"] for row in rows if row["modality"] != "all"]
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = command.new_figure(max(4.8, 0.8 + 2.1 * columns), 1.5 + 2.1 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, row in zip(axes.flat, shown, strict=False):
        part = checks.take(checks.modality == names.index(row["modality"]))
        part = part.take(np.arange(len(part.sample))[:: -(-len(part.sample) // MOST_POINTS)])
        for side in command.SIDES:
            at = part.tail == side
            look = {"color": command.COLOURS[side], "marker": command.MARKERS[side]}
            axis.scatter(part.expected[at], part.true[at], s=11, alpha=0.5, linewidths=0, **look)
        both = np.concatenate([part.expected, part.true])
        axis.axline((float(both.mean()),) * 2, slope=1, color=command.QUIET, lw=0.8, linestyle=":")
        axis.axhline(0, color="#cccccc", lw=0.7)
        rho = "too few" if row["rho"] is None else f"ρ = {row['rho']:.2f} [{row['rho_low']:.2f}, {row['rho_high']:.2f}]"
        axis.set_title(f"{row['modality']} (n = {row['n']})\n{rho}", fontsize=8.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.locator_params(nbins=4)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    looks = [(command.COLOURS[side], command.MARKERS[side]) for side in command.SIDES]
    command.name_marks(figure, tuple(command.SIDES.values()), looks, size=5)
    figure.suptitle(f"Next modality ({LABEL}): {title}\n", fontsize=10)
    figure.supxlabel("expected drop in predictive entropy, nats (dotted: equal)", fontsize=9)
    figure.supylabel("true drop, nats", fontsize=9)
    return figure


def summary(rows: Sequence[Row], checked: Sequence[Row]) -> str:
    """Returns the validation and the modalities of first rank, as text."""

    def cells(row: Row) -> str:
        known = [row[key] for key in ("rho", "rho_low", "rho_high", "rho_entropy_before")]
        return " ".join("      -" if value is None else f"{value:7.2f}" for value in known)

    lines = [f"Next modality: {LABEL}. Rank correlation of expected and true drop in entropy:"]
    lines.append(f"{'hidden':<24} {'n':>6} {'rho':>7} {'low':>7} {'high':>7} {'entropy before':>15}")
    lines += [f"{row['modality']:<24} {row['n']:>6} {cells(row)}" for row in checked]
    first = [row for row in rows if row["rank"] == 1]
    for name in dict.fromkeys(row["modality"] for row in first):
        drops = [row["expected_drop"] for row in first if row["modality"] == name]
        lines.append(f"{name}: largest expected drop for {len(drops)} samples, {np.mean(drops):.3f} nats on average")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    integers = {"donors": (20, 1), "pool": (4_000, 1), "checks": (2_000, 1), "seed": (0, 0)}
    (path,), options = command.read_options(arguments, strings={"samples": "all"}, integers=integers, several=False)
    (run,) = opening.open_runs([path], model_folder.refuse_several)
    folder = opening.output_folder(path)
    held_out, train = run.data.stores[SPLIT], run.data.stores["train"]
    positions = command.positions_of(options.samples, len(held_out))
    fusion = Fusion(run)
    pool = fusion.encode(train, drawn(len(train), options.pool, options.seed))
    rows = recommend(fusion, fusion.encode(held_out, positions), pool, positions, options.donors)
    command.write_csv(folder / f"{NAME}.csv", COLUMNS, rows)
    samples = fusion.encode(held_out, drawn(len(held_out), options.checks, options.seed))
    checks = check(fusion, samples, pool, options.donors)
    checked = validation(checks, run.data.groups.modalities, options.seed)
    command.write_csv(folder / f"{NAME}_validation.csv", CHECKED, checked)
    print(summary(rows, checked))
    written = f"{folder / NAME}.csv, _validation.csv"
    if len(checks.sample):
        title = f"{run.config.method} on {run.data.manifest.title}"
        command.write_figure(folder / NAME, lambda: draw(checks, command.titled(run, checked, "modality"), title))
        written += ", .png, .svg"
    print(f"Written: {written}")


def drawn(count: int, most: int, seed: int) -> np.ndarray:
    """Draws at most `most` of `count` samples at random; returns their positions, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


if __name__ == "__main__":
    cli.run(main, __doc__)
