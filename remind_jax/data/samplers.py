"""Which training samples a step takes: orders as pure functions of (seed, step), and the samplers of a run.

An order gives the samples of a step; it is made of a seed in [0, 2**64) and, where groups matter, the group of each of
the n training samples, int [n]. A seed out of range or no samples are a UserError. Resuming an order needs the number
of the step and nothing else. FairBatch is the exception: its shares follow the training losses, and a checkpoint keeps
them. Every sampler answers the same questions: a loop knows none by name.

Random bits come straight from the counter-based Philox generator, whose stream NumPy keeps for good; the distributions
of `numpy.random.Generator` may change between NumPy versions, and an order built on them with them.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from remind_jax.data.subsets import shapley, subset_masks
from remind_jax.errors import UserError

Order = Callable[[int, int], np.ndarray]  # (step, batch_size) -> int64 [b], positions in the training rows

_SHUFFLE, _BALANCE, _TIES, _PAIR, _FAIR, _SPREAD, _KNOCK = range(1, 8)  # keep the samplers' streams apart
KNOCKOUT = "knockout/rates"
"""Of a batch: with what probability each modality of a sample is knocked out, float32 [b, m]."""
EXACT, ORDERS = 8, 32  # most modalities of which all subsets are asked for; orders that are drawn of more


def shuffled(seed: int, n: int) -> Order:
    """Makes an endless stream in which every epoch is a permutation of its own of the n samples.

    Batch t takes the places [t*b, (t+1)*b) of the stream; it may lie across the border of two epochs, so that every
    sample occurs exactly once per epoch whatever the batch size.
    """
    _check(seed, n)
    return _epochs(n, lambda epoch: _permutation(seed, epoch, _SHUFFLE, n))


def most_modalities_first(seed: int, observed: np.ndarray, epochs: int) -> Order:
    """Makes an order as `shuffled`, but for some epochs from samples with all modalities to the fewest (Flex-MoE).

    `observed`, int [n], counts the modalities of each sample. Samples with the same number come in a random order, a
    new one every epoch: that of the rows of a table may be by patient or label.
    """
    observed = np.asarray(observed)
    n = len(observed)
    _check(seed, n)

    def permutation(epoch: int) -> np.ndarray:
        if epoch >= epochs:
            return _permutation(seed, epoch, _SHUFFLE, n)
        ties = _permutation(seed, epoch, _TIES, n)
        return ties[np.argsort(-observed[ties], kind="stable")]

    return _epochs(n, permutation)


def _permutation(seed: int, index: int, purpose: int, n: int, stream: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Returns a random permutation of n that depends on the other arguments only, int64 [n]."""
    # Ties between 64-bit numbers are too rare to matter, and a stable sort makes them reproducible.
    return np.argsort(_bits(seed, index, purpose, n, stream), kind="stable").astype(np.int64)


def _epochs(n: int, permutation: Callable[[int], np.ndarray]) -> Order:
    """Makes an order of the endless stream of the permutations of epochs 0, 1, …."""
    permutation = functools.lru_cache(maxsize=3)(permutation)  # prefetching threads may stand on both sides of a border

    def order(step: int, batch_size: int) -> np.ndarray:
        place, stop = step * batch_size, (step + 1) * batch_size
        parts = []
        while place < stop:
            epoch, start = divmod(place, n)
            end = min(n, start + stop - place)
            parts.append(permutation(epoch)[start:end])
            place += end - start
        return np.concatenate(parts)

    return order


def group_balanced(seed: int, groups: np.ndarray) -> Order:
    """Makes an order that draws a group uniformly, then one of its members uniformly, with replacement."""
    _check(seed, len(groups))
    members, starts, counts = _by_group(groups)

    def order(step: int, batch_size: int) -> np.ndarray:
        bits = _bits(seed, step, _BALANCE, 2 * batch_size).reshape(2, batch_size)
        group = _below(bits[0], np.full(batch_size, len(counts)))
        return members[starts[group] + _below(bits[1], counts[group])]

    return order


def group_pairs(seed: int, groups: np.ndarray, pairs: str = "random") -> Order:
    """Makes batches of two groups, rows 2i from the one and 2i + 1 from the other, drawn with replacement (Fair Mixup).

    `pairs` is `random`, two different groups, each pair as likely, so that the mean over steps is that over all pairs;
    or `vs_rest`, a group, each as likely, and the samples of all others. The batch size must be even.

    Raises UserError: all samples are of one group, or as for every order.
    """
    _check(seed, len(groups))
    members, starts, counts = _by_group(groups)
    if len(counts) < 2:
        raise UserError("sampler=group_pairs needs two groups, and all training samples have the same modalities")

    def order(step: int, batch_size: int) -> np.ndarray:
        half = batch_size // 2
        bits = _bits(seed, step, _PAIR, 2 + 2 * half)
        one = int(_below(bits[:1], np.array([len(counts)]))[0])
        shift = int(_below(bits[1:2], np.array([len(counts) - 1]))[0])
        other = (one + 1 + shift) % len(counts)
        first = starts[one] + _below(bits[2 : 2 + half], np.full(half, counts[one]))
        if pairs == "random":
            second = starts[other] + _below(bits[2 + half :], np.full(half, counts[other]))
        else:
            rest = _below(bits[2 + half :], np.full(half, len(members) - counts[one]))
            second = np.where(rest < starts[one], rest, rest + counts[one])
        return members[np.stack([first, second], axis=1).reshape(-1)]

    return order


def _by_group(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the samples of the first group, then of the second, …, and where each group begins and its size."""
    members = np.argsort(groups, kind="stable").astype(np.int64)
    _, starts, counts = np.unique(np.asarray(groups)[members], return_index=True, return_counts=True)
    return members, starts, counts


def move_shares(shares: np.ndarray, losses: np.ndarray, alpha: float, mode: str = "minmax") -> np.ndarray:
    """Moves the share `alpha` of batches from a group with a low loss to one with a high loss (Roh et al. 2021).

    `shares` of the groups in a batch, float64 [g], sum to one; `losses`, their means [g], are NaN where one is not
    known, and such a group keeps out of it. `mode` is `minmax`, from the lowest to the highest loss, or `adjacent`,
    between those neighbours in the order of the groups whose losses are furthest apart. With two groups both are the
    published rule: the share of the group with the higher loss grows by alpha, within [0, 1].
    """
    known = np.flatnonzero(~np.isnan(losses))
    if len(known) < 2:
        return shares
    values = losses[known]
    if mode == "minmax":
        low, high = values.argmin(), values.argmax()
    else:
        left = int(np.abs(np.diff(values)).argmax())
        low, high = (left, left + 1) if values[left] < values[left + 1] else (left + 1, left)
    if values[low] == values[high]:
        return shares
    moved = shares.copy()
    moved[known[high]] += alpha
    moved[known[low]] = max(0.0, moved[known[low]] - alpha)
    return moved / moved.sum()


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Shares out `total` in whole numbers (Hamilton's rule; the first of equal remainders goes first), int64 [g]."""
    quota = shares / shares.sum() * total
    counts = np.floor(quota).astype(np.int64)
    short = total - int(counts.sum())
    counts[np.argsort(counts - quota, kind="stable")[:short]] += 1
    return counts


def apportion(shares: np.ndarray, total: int, least: int) -> np.ndarray:
    """Shares out `total` by largest remainder, but for groups that would get less than `least`, int64 [g].

    Those get `least`, and the others give it up in proportion to what they have above it. With a total that is too
    small for all groups none is raised.
    """
    counts = largest_remainder(shares, total)
    if least * len(counts) > total:
        return counts
    raised = np.maximum(counts, least)
    above, excess = (raised - least).astype(np.float64), int(raised.sum()) - total
    return raised - largest_remainder(above, excess) if excess else raised


def fair_batch(seed: int, groups: np.ndarray, shares: np.ndarray, epoch_steps: int, least: int = 0) -> Order:
    """Makes batches in which groups have given shares [g], without replacement as long as a group's samples last.

    The samples of a whole epoch are apportioned to groups by largest remainder and the groups then spread evenly over
    its batches: apportioned batch by batch, a group with a share below half a sample would never be drawn. A group that
    is out of samples begins again, reshuffled, as all do after `epoch_steps`. Each of the groups 0..g-1 has samples;
    `least` of each are in an epoch, whatever its share is.
    """
    groups = np.asarray(groups)
    _check(seed, len(groups))
    members = [np.flatnonzero(groups == g) for g in range(len(shares))]

    @functools.lru_cache(maxsize=2)
    def places(epoch: int, size: int) -> np.ndarray:
        counts = apportion(shares, size, least)
        starts = (_bits(seed, epoch, _SPREAD, len(counts)) >> np.uint64(11)) / 2.0**53
        drawn, keys = [], []
        for g, count in enumerate(counts):
            n = len(members[g])
            passes = [_permutation(seed, epoch, _FAIR, n, (g, i)) for i in range(-(-int(count) // n))]
            drawn += [members[g][permutation] for permutation in passes[:-1]]
            drawn += [members[g][passes[-1][: count - n * (len(passes) - 1)]]] if passes else []
            keys.append((np.arange(count) + starts[g]) / max(count, 1))
        return np.concatenate(drawn)[np.argsort(np.concatenate(keys), kind="stable")]

    def order(step: int, batch_size: int) -> np.ndarray:
        epoch, i = divmod(step, epoch_steps)
        return places(epoch, epoch_steps * batch_size)[i * batch_size : (i + 1) * batch_size]

    return order


class Sampler:
    """Chooses the samples of every step. This one goes by an order that depends on the step alone."""

    def __init__(self, order: Order):
        self._order = order

    def order(self, step: int, batch_size: int) -> np.ndarray:
        """Returns the samples of a step, int64 [b]: positions in the training rows."""
        return self._order(step, batch_size)

    def known_until(self, step: int) -> int:
        """Returns the first step above `step` whose order is not known before all steps up to it are observed."""
        return sys.maxsize

    def observe(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Takes what a step has measured; `step` steps are done, this one among them.

        The metrics are `group_loss_sum` and `group_count`, sums of losses and numbers of samples of each combination
        in the step, [g]; and `train/rejected`, 1 for a step that was not taken.
        """

    def judge(self, step: int, utility: Callable[[np.ndarray], float]) -> dict[str, np.ndarray]:
        """Looks at the model where `known_until` says so, after `step` steps, and returns what it finds to record, one
        number for each modality, [m], by name.

        `utility` tells how good predictions of tuning rows are by some modalities, bool [m]; more is better.
        """
        del step, utility
        return {}

    def facts(self, size: int) -> dict[str, np.ndarray]:
        """Returns what else a batch of the next steps has by name, [b, ...] each."""
        del size
        return {}

    def figures(self) -> dict[str, np.ndarray]:
        """Returns numbers to record by their name, one for each combination, [g]."""
        return {}

    def record(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs besides the step, for JSON."""
        return {}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Takes up what `record` gave."""


class FairBatch(Sampler):
    """Gives groups shares of batches that move once an epoch towards the groups with higher training loss.

    Losses are the means over the samples of the epoch as they were trained on, without a pass over the training set of
    its own. A group that an epoch did not draw keeps its last loss.
    """

    def __init__(
        self, seed: int, groups: np.ndarray, batch_size: int, *, alpha: float, mode: str = "minmax", floor: bool = True
    ):
        """Begins with the frequencies of the groups 0..g-1, each of which has samples.

        `alpha` and `mode` are as for `move_shares`. With `floor` each group has a sample in every epoch, whatever its
        share is: else a group whose share has fallen to nothing is never drawn again, so that no loss of it can raise
        its share.
        """
        self._seed, self._groups, self._alpha, self._mode = seed, np.asarray(groups), alpha, mode
        self._least = int(floor)
        self.epoch_steps = max(1, round(len(groups) / batch_size))
        shares = np.bincount(groups) / len(groups)
        self._sum, self._count = np.zeros(len(shares)), np.zeros(len(shares))
        self._losses = np.full(len(shares), np.nan)
        self._set_shares(shares)

    def _set_shares(self, shares: np.ndarray) -> None:
        self.shares = shares  # float64 [g]
        self._order = fair_batch(self._seed, self._groups, shares, self.epoch_steps, self._least)

    def known_until(self, step: int) -> int:
        return (step // self.epoch_steps + 1) * self.epoch_steps

    def observe(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Takes the losses of a step, and moves the shares where it is the last of its epoch."""
        if not metrics["train/rejected"]:
            self._sum = self._sum + np.asarray(metrics["group_loss_sum"], np.float64)
            self._count = self._count + np.asarray(metrics["group_count"], np.float64)
        if step % self.epoch_steps:
            return
        self._losses = np.where(self._count > 0, self._sum / np.maximum(self._count, 1e-12), self._losses)
        self._sum, self._count = np.zeros_like(self._sum), np.zeros_like(self._count)
        self._set_shares(move_shares(self.shares, self._losses, self._alpha, self._mode))

    def figures(self) -> dict[str, np.ndarray]:
        return {"sampler/share": self.shares}

    def record(self) -> dict[str, Any]:
        losses = [None if np.isnan(x) else float(x) for x in self._losses]
        sums = {"loss_sum": self._sum.tolist(), "loss_count": self._count.tolist()}
        return {"shares": self.shares.tolist(), **sums, "losses": losses}

    def restore(self, record: Mapping[str, Any]) -> None:
        self._sum, self._count = np.array(record["loss_sum"]), np.array(record["loss_count"])
        self._losses = np.array([np.nan if x is None else x for x in record["losses"]], np.float64)
        self._set_shares(np.array(record["shares"], np.float64))


def knockout_rates(values: np.ndarray, power: float, least: float, most: float) -> np.ndarray:
    """Returns with what probability each modality is knocked out, from Shapley values [m]; float64 [m].

    All stay together with probability 1/2 where values are the same. A modality with m w times the mean value, w being
    the values above the lowest as shares of their sum, has (m w)^power times that rate, within `least` and `most`.
    """
    m, above = len(values), values - values.min()
    shares = above / above.sum() if above.sum() > 0 else np.full(m, 1.0 / m)
    return np.clip((1.0 - 0.5 ** (1.0 / m)) * (m * shares) ** power, least, most)


class Knockout(Sampler):
    """Takes modalities from samples at rates that follow what each adds to the model (Nizam et al. 2026, ShapKO).

    Rates lie in batches under `KNOCKOUT`, and steps knock out by them. Every `every` steps the model is asked how well
    it predicts tuning rows by each subset of modalities, and the rates of those that add most become the highest.
    """

    def __init__(self, order: Order, modalities: int, every: int, **options: float):
        """Begins with the same rate of m modalities; `options` are those of `knockout_rates`."""
        super().__init__(order)
        self._every, self._options = every, options
        self.rates = knockout_rates(np.zeros(modalities), **options)  # float64 [m]

    def known_until(self, step: int) -> int:
        return (step // self._every + 1) * self._every

    def judge(self, step: int, utility: Callable[[np.ndarray], float]) -> dict[str, np.ndarray]:
        if step % self._every:
            return {}
        values = self._values(step, utility)
        self.rates = knockout_rates(values, **self._options)
        return {"knockout/value": values, "knockout/rate": self.rates}

    def _values(self, step: int, utility: Callable[[np.ndarray], float]) -> np.ndarray:
        """Computes the Shapley value of each modality, or their mean over `ORDERS` orders where there are many."""
        m = len(self.rates)
        if m <= EXACT:
            return shapley(np.array([[utility(mask) for mask in subset_masks(m)]]))[0]
        orders = [_permutation(step, i, _KNOCK, m) for i in range(ORDERS)]
        prefixes = [np.argsort(order)[None] < np.arange(m + 1)[:, None] for order in orders]
        gains = [np.diff([utility(mask) for mask in masks]) for masks in prefixes]
        return np.mean([gain[np.argsort(order)] for gain, order in zip(gains, orders, strict=True)], axis=0)

    def facts(self, size: int) -> dict[str, np.ndarray]:
        return {KNOCKOUT: np.tile(np.float32(self.rates), (size, 1))}

    def record(self) -> dict[str, Any]:
        return {"rates": self.rates.tolist()}

    def restore(self, record: Mapping[str, Any]) -> None:
        self.rates = np.array(record["rates"], np.float64)


class Rows(NamedTuple):
    """What samplers know of the training rows, int [n] each: combination, and number of modalities; and how many
    modalities the data have.
    """

    groups: np.ndarray
    observed: np.ndarray
    modalities: int


def _fair_batch(config: Any, rows: Rows) -> Sampler:
    options = {"alpha": config.sampler_alpha, "floor": config.sampler_floor}
    return FairBatch(config.seed, rows.groups, config.train.batch_size, **options)


def _knockout(config: Any, rows: Rows) -> Sampler:
    n = len(rows.groups)
    every = max(1, round(config.sampler_every * n / config.train.batch_size))
    options = {"power": config.sampler_power, "least": config.sampler_least, "most": config.sampler_most}
    return Knockout(shuffled(config.seed, n), rows.modalities, every, **options)


SAMPLERS: dict[str, Callable[[Any, Rows], Sampler]] = {
    "shuffled": lambda config, rows: Sampler(shuffled(config.seed, len(rows.groups))),
    "group_balanced": lambda config, rows: Sampler(group_balanced(config.seed, rows.groups)),
    "most_modalities_first": lambda config, rows: Sampler(
        most_modalities_first(config.seed, rows.observed, config.sampler_epochs)
    ),
    "group_pairs": lambda config, rows: Sampler(group_pairs(config.seed, rows.groups)),
    "fair_batch": _fair_batch,
    "knockout": _knockout,
}
"""Values of the key `sampler`: (config, rows) -> the sampler of a run."""


def _check(seed: int, n: int) -> None:
    if not 0 <= seed < 2**64:
        raise UserError(f"the seed must be a whole number of at least 0 and below 2**64, got {seed}")
    if n < 1:
        raise UserError("there are no training samples to draw from")


def _bits(seed: int, index: int, purpose: int, count: int, stream: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Draws random uint64 [count] that depend on the other arguments only."""
    key = np.array([seed, index], np.uint64)  # a list with a seed above 2**63 would pass through float64
    counter = np.array([0, *stream, purpose], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def _below(bits: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Makes whole numbers in [0, limit) of the upper 32 bits, int64 [b]; off uniform by limit / 2**32 at most."""
    return ((bits >> np.uint64(32)) * limit.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
