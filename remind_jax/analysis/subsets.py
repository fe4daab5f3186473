"""A run's predictions for samples of which any modalities are hidden."""

import json
from typing import TYPE_CHECKING

import numpy as np

from remind_jax.errors import UserError

if TYPE_CHECKING:
    from remind_jax.analysis import Run
    from remind_jax.data.pipeline import Batch, Store
    from remind_jax.models.model import Params


class Predictor:
    """Predictions as the run's report has them, of any part of what a sample has.

    A sample without modalities predicts the class frequencies of the train rows. A combination not seen in training is
    predicted by the shared router, as everywhere.
    """

    def __init__(self, run: "Run", params: "Params"):
        """Makes the program.

        Args:
          run: finished.
          params: that its report was made with.

        Raises:
          UserError: the run's predictions of a sample depend on other samples.
        """
        import jax

        from remind_jax.inference.predictions import logit_offset

        if run.eval_gate == "gated" and run.config.fusion.gate_granularity == "batch":
            raise UserError("fusion.gate_granularity=batch makes predictions depend on the batch: nothing to compare")
        report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
        self.run, self.params = run, jax.device_put(params)
        self.size = run.config.eval.batch_size
        self.prior = run.data.class_fractions
        self._power = report.get("prior_adjustment", {}).get("power", 0.0)
        self._offset = logit_offset(run.config, run.data.label_counts)

        def logits(params, batch, gate):
            return run.network.apply(params, batch, gate=gate).logits.astype("float32")

        self._logits = jax.jit(logits, static_argnums=2)

    def __call__(self, store: "Store", positions: np.ndarray, presence: np.ndarray) -> np.ndarray:
        """Probabilities of samples of which some modalities are left.

        Args:
          store: of a split.
          positions: int [k], places in the split, repeats allowed.
          presence: bool [k, m], what is left of each; what a sample lacks stays missing.

        Returns:
          float64 [k, c].
        """
        found = np.tile(self.prior, (len(positions), 1))
        some = np.flatnonzero(presence.any(axis=1))
        for start in range(0, len(some), self.size):
            part = some[start : start + self.size]
            filled = np.resize(part, self.size)  # one shape, one program
            batch = hidden(self.run, store, positions[filled], presence[filled])
            logits = np.asarray(self._logits(self.params, batch, self.run.eval_gate))[: len(part)]
            found[part] = self.finish(logits, batch["group"][: len(part)])
        return found

    def finish(self, logits: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Probabilities of logits [k, c] of combinations [k], with what the run adjusts after the network."""
        from scipy.special import softmax

        from remind_jax.inference.predictions import adjust_prior

        logits = np.asarray(logits, np.float64)
        probabilities = softmax(logits if self._offset is None else logits + self._offset[group], axis=1)
        return adjust_prior(probabilities, self.prior, self._power) if self._power else probabilities

    def seen(self, presence: np.ndarray) -> np.ndarray:
        """Whether training had each combination, bool [k]."""
        return self.run.data.groups.index(presence) < len(self.run.data.groups)


def hidden(run: "Run", store: "Store", positions: np.ndarray, presence: np.ndarray) -> "Batch":
    """A batch of rows of which only `presence` [k, m] is left; inputs of what is gone are zeros, as in missing ones."""
    different, back = np.unique(positions, return_inverse=True)
    batch = {name: array.take(back, axis=0) for name, array in store.take(different).items()}
    left = presence & batch["present"]
    for j, name in enumerate(run.data.groups.modalities):
        batch[name][~left[:, j]] = 0
    return batch | {"present": left, "group": run.data.groups.index(left)}


def positions_of(text: str, count: int) -> np.ndarray:
    """Reads positions such as `0,3,10-19`, or `all`, out of `count` samples.

    Raises:
      UserError: it cannot be read, or names a sample that is not there.
    """
    if text == "all":
        return np.arange(count)
    try:
        ends = [[int(end) for end in part.split("-", 1)] for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(f"--samples={text} is neither all nor positions such as 0,3,10-19") from error
    found = np.array(sorted({i for part in ends for i in range(part[0], part[-1] + 1)}), np.int64)
    if not len(found) or found[-1] >= count:
        raise UserError(f"--samples={text} names no sample of the {count} held-out ones, which count from 0")
    return found


def modalities_of(text: str, modalities: tuple[str, ...], option: str) -> np.ndarray:
    """Reads names separated by commas as a mask bool [m].

    Raises:
      UserError: a name is unknown.
    """
    from remind_jax.errors import did_you_mean

    names = list(filter(None, text.replace("+", ",").split(",")))
    for name in names:
        if name not in modalities:
            hint = did_you_mean(name, modalities)
            raise UserError(f"--{option}: {name!r} is no modality of the run{hint}: {', '.join(modalities)}")
    return np.array([name in names for name in modalities], bool)
