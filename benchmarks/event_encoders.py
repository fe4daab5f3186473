"""What reads made-up events best: sets of events with and without attention between them, or mTAND.

    python -m benchmarks.event_encoders --stays=10000 --epochs=20 --seeds=0,1 --encoders=layers=0,mtand --out=FILE.jsonl

The data are `remind_jax.data.sources.events_twin`, the method `soft_moe`. One line a run: AUROC on the held-out stays,
all and those with vital signs, that of the rule by which the outcomes were drawn, seconds, and number of weights.
mTAND is after Shukla and Marlin 2021 (arXiv 2101.10318): attention of fixed times over the events of each code.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from configs import events as preset
from remind_jax.data.sources import events_twin
from remind_jax.evaluation import metrics
from remind_jax.models import initial
from remind_jax.models.encoders import registry
from remind_jax.models.encoders.events import HEADS, WIDTH, EventEncoder
from remind_jax.ops.transformer import on_rows
from remind_jax.training.run import train_and_evaluate

_TIMES = 32  # that mTAND asks at
_TIME_WIDTH = 32


class MtandEncoder(EventEncoder):
    """Interpolates every code's values at fixed times by attention over time, and asks questions of these."""

    def __init__(self, vocabulary: int, **options):
        super().__init__(vocabulary, layers=0, **options)
        rngs = options["rngs"]
        self.codes = vocabulary
        self.frequency = initial.param(rngs, initial.normal(8.0), HEADS, _TIME_WIDTH)
        self.phase = initial.param(rngs, initial.normal(1.0), HEADS, _TIME_WIDTH)
        self.sharpness = initial.param(rngs, initial.constant(4.0), HEADS)
        self.joined = initial.linear(2 * vocabulary * HEADS, WIDTH, rngs)
        self.place = initial.param(rngs, initial.normal(0.1), _TIMES, WIDTH)

    def events(self, x, keys):
        ids, (value, time) = x[..., 0], (jax.lax.bitcast_convert_type(x[..., i], jnp.float32) for i in (1, 2))
        asked = jnp.linspace(-1.2, 0.0, _TIMES)
        known, wanted = self._embedded(time), self._embedded(asked)
        scores = self.sharpness[...][None, :, None, None] * jnp.einsum("bnhk,rhk->bhrn", known, wanted) / _TIME_WIDTH
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        there = jax.nn.one_hot(ids, self.codes) * (ids != 0)[..., None]
        there = jnp.concatenate([there, there * jnp.where(jnp.isnan(value), 0.0, value)[..., None]], axis=-1)
        sums = jnp.einsum("bhrn,bnc->brch", weights, there)
        density, weighted = jnp.split(sums, 2, axis=2)
        means = weighted / (density + 1e-3)
        found = jnp.concatenate([means, jnp.log1p(density)], axis=2).reshape(*sums.shape[:2], -1)
        return self.norm(on_rows(self.joined, found) + self.place[...][None])

    def _embedded(self, time):
        angle = time[..., None, None] * self.frequency[...][(None,) * time.ndim] + self.phase[...][(None,) * time.ndim]
        return jnp.sin(angle)

    def features(self, x, keys):
        points = self.events(x, keys)
        scores = jnp.einsum("brd,thd->bthr", points, self.question[...])
        weights = jax.nn.softmax(scores, axis=-1)
        values = on_rows(self.value, points).reshape(*points.shape[:2], HEADS, -1)
        mixed = jnp.einsum("bthr,brhk->bthk", weights, values)
        return mixed.reshape(*mixed.shape[:2], -1)


def _mtand(spec, modality, rngs):
    options = {"tokens": spec.tokens, "width": spec.width, "dropout": spec.encoder_dropout, "rngs": rngs}
    return MtandEncoder(modality.vocabulary, **options)


def measure(name: str, stays: int, seed: int, epochs: float) -> dict[str, object]:
    """Trains on one world with one encoder, `mtand` or `layers=N`, and returns its figures."""
    kept, start = registry.ENCODERS["events"], time.perf_counter()
    config = preset.get_config("method=soft_moe")
    config.data.update(stays=stays, seed=seed, cache="none")
    config.seed, config.train.epochs = seed, epochs
    if name == "mtand":
        registry.ENCODERS["events"] = registry.Family(_mtand, True)
    else:
        config.model.event_layers = int(name.removeprefix("layers="))
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        report = train_and_evaluate(config, run, False)
        predictions = pl.read_parquet(run / "predictions.parquet")
    registry.ENCODERS["events"] = kept
    rows = predictions["sample_id"].str.slice(1).cast(pl.Int64).to_numpy()
    truth = events_twin.draw(stays, np.random.default_rng(seed))
    labels, found, best = predictions["label"].to_numpy(), predictions["p_1"].to_numpy(), truth.risk[rows]
    have = truth.present[rows, 0]

    def auroc(scores: np.ndarray) -> float:
        return round(metrics.auroc(labels[have], np.stack([1 - scores, scores], axis=1)[have])[0], 4)

    figures = {"auroc": auroc(found), "auroc_of_the_rule": auroc(best), "parameters": report["parameters"]}
    return {"encoder": name, "stays": stays, "seed": seed} | figures | {"seconds": round(time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", default="layers=0,layers=1,layers=2,mtand")
    parser.add_argument("--stays", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    for seed in map(int, options.seeds.split(",")):
        for name in options.encoders.split(","):
            line = json.dumps(measure(name, options.stays, seed, options.epochs))
            print(line, flush=True)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
