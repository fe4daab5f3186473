"""Tiny runs whose numbers are stored: how each is trained, and what is kept of it.

A run takes ten steps with the command line's own entry. It is described by keys of the config, all that matter to its
numbers by name, and what is kept of it comes from the files of its folder: losses, norms of gradients, λ and shares of
a batch from metrics.jsonl, probabilities from predictions.parquet, the last weights from model/.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import polars as pl
from safetensors import numpy as safetensors

from remind_jax import cli
from remind_jax.models.encoders import t5
from remind_jax.training import run as training

Weights = Mapping[str, np.ndarray]

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NUMBERS, WEIGHTS = HERE / "numbers.json", HERE / "weights.safetensors"

# Ten steps of 16 samples over two epochs of five; every step recorded, an evaluation after each epoch.
_SMALL = {
    "devices": 1,
    "seed": 0,
    "model.width": 8,
    "model.encoder_hidden": 0,
    "model.encoder_dropout": 0.1,
    "fusion.heads": 2,
    "fusion.experts": 4,
    "fusion.hidden": 8,
    "fusion.top_k": 2,
    "fusion.share_experts": True,
    "fusion.dropout": 0.1,
    "fusion.train_gate": "gated",
    "optim.lr": 0.02,
    "optim.weight_decay": 0.1,
    "optim.clip": 1.0,
    "optim.ema": 0.5,
    "train.batch_size": 16,
    "train.epochs": 2.0,
    "train.log_every": 1,
    "train.evaluate_every": 1.0,
    "train.select": "last",
    "train.keep_better_stage": False,
    "train.patience": 0,
    "eval.bootstrap": 20,
}
_PHENOMENON = _SMALL | {"data.train": 80, "data.tuning": 30, "data.held_out_per_group": 6}
# Text, codes and numbers of a made-up hospital, split by patient.
_HOSPITAL = _SMALL | {
    "data.root": HERE / "hospital",
    "data.max_tokens": 12,
    "data.vocabulary": 64,
    "data.numbers": "piecewise",
    "data.bins": 4,
    "model.text_encoder": "t5",
    "model.tokens": 2,
    "train.batch_size": 8,
}
# A twentieth of the smallest text encoder, so that its weights can be stored.
_TEXT_ENCODER = {"layers": 2, "width": 16, "heads": 2, "head_width": 8, "hidden": 24}
_ROBUST = {"dro.every": 2, "dro.gamma": 0.5}
_TWO_STAGES = _ROBUST | {"train.joint_epochs": 1.0}
# Heavy enough to be seen in the losses.
_PENALTIES = {"objective.balance_weight": 0.5, "objective.entropy_weight": 0.5, "objective.specialize_weight": 0.5}
# Thresholds at which the gate is open for some of the samples.
_REMIND = _PHENOMENON | _TWO_STAGES | {"fusion.gate_threshold": 0.92}
_REMIND_HOSPITAL = _HOSPITAL | _TWO_STAGES | {"fusion.gate_threshold": 0.975}
_NO_DROPOUT = {"model.encoder_dropout": 0.0, "fusion.dropout": 0.0}
# A bias of the keys adds the same to all scores of a query: its gradient is rounding, which Adam scales to whole steps.
_NOISE = "query_key_value/bias"


class Run(NamedTuple):
    """One run.

    Attributes:
      config: name of the file in configs/.
      method: a method of the paper.
      keys: of the config, by dotted name.
      start: name of the run whose stored initial weights are this one's too; empty for weights of its own.
    """

    config: str
    method: str
    keys: Mapping[str, Any]
    start: str = ""


RUNS = {
    "soft_moe": Run("phenomenon", "soft_moe", _PHENOMENON),
    "fair_mixup": Run("phenomenon", "fair_mixup", _PHENOMENON, "soft_moe"),
    "reweigh": Run("phenomenon", "reweigh", _PHENOMENON, "soft_moe"),
    "group_dro": Run("phenomenon", "group_dro", _PHENOMENON | {"dro.gamma": 0.3}, "soft_moe"),
    "fair_batch": Run(
        "phenomenon", "fair_batch", _PHENOMENON | {"sampler_alpha": 0.1, "sampler_floor": False}, "soft_moe"
    ),
    "logit_adjust": Run("phenomenon", "logit_adjust", _PHENOMENON, "soft_moe"),
    "fuse_moe": Run("phenomenon", "fuse_moe", _PHENOMENON | _PENALTIES),
    "flex_moe": Run("phenomenon", "flex_moe", _PHENOMENON | _PENALTIES | {"sampler_epochs": 1}),
    "remind": Run("phenomenon", "remind", _REMIND),
    "remind_plus": Run("phenomenon", "remind_plus", _PHENOMENON | _ROBUST),
    "hospital": Run("manifest", "remind", _REMIND_HOSPITAL),
    # No key of these draws anything in a step: what changes random draws alone leaves their numbers as they are.
    "remind without dropout": Run("phenomenon", "remind", _REMIND | _NO_DROPOUT, "remind"),
    "hospital without dropout": Run("manifest", "remind", _REMIND_HOSPITAL | _NO_DROPOUT, "hospital"),
}


class Numbers(NamedTuple):
    """What is kept of a run.

    Attributes:
      initial: weights that the run draws, by path.
      steps: every number of the training records but times, by its key, float64 [10].
      evaluations: every number of the evaluations, by its key, float64 [2].
      held_out: probabilities of the held-out rows in the order of their ids, float64 [n, c].
      norms: norm of each of the last weights, by path; without those that only rounding moves.
    """

    initial: Weights
    steps: Mapping[str, np.ndarray]
    evaluations: Mapping[str, np.ndarray]
    held_out: np.ndarray
    norms: Mapping[str, float]


def train(run: Run, folder: pathlib.Path, cache: pathlib.Path, start: Weights | None = None, **changes: Any) -> Numbers:
    """Trains a run.

    Args:
      run: to train.
      folder: of the run; a new one.
      cache: of prepared data.
      start: weights to start from instead of those that it draws.
      changes: of its keys, a double underscore for the dot.
    """
    keys = {**run.keys, "data.cache": cache} | {name.replace("__", "."): value for name, value in changes.items()}
    flags = [f"--config.{name}={value}" for name, value in keys.items()]
    config, _ = cli.parse_config([f"--config={ROOT / 'configs' / run.config}.py:method={run.method}", *flags])
    drawn: list[Weights] = []
    draw = training.initial_params

    def initial_params(*arguments: Any, **options: Any) -> Weights:
        drawn.append(draw(*arguments, **options))
        return drawn[-1] if start is None else start

    smaller = mock.patch.dict(t5.SIZES, small=_TEXT_ENCODER)
    with smaller, mock.patch.object(training, "initial_params", initial_params):
        training.train_and_evaluate(config, folder, verbose=False)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return Numbers(
        initial=drawn[0],
        steps=dict(_columns(record for record in records if "train/loss" in record)),
        evaluations=dict(_columns(record for record in records if "eval/loss" in record)),
        held_out=_probabilities(folder),
        norms=_norms(folder),
    )


def _columns(records: Iterator[dict[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    rows = list(records)
    for key in rows[0]:
        if key != "stage" and not key.startswith("time/"):
            yield key, np.array([row[key] for row in rows], np.float64)


def _probabilities(folder: pathlib.Path) -> np.ndarray:
    table = pl.read_parquet(folder / "predictions.parquet").sort("sample_id")
    return table.select(pl.col("^p_.*$")).to_numpy().astype(np.float64)


def _norms(folder: pathlib.Path) -> dict[str, float]:
    last = safetensors.load_file(folder / "model" / "model.safetensors")
    told = {path: x for path, x in last.items() if not path.endswith(_NOISE)}
    return {path: float(np.linalg.norm(np.asarray(x, np.float64))) for path, x in sorted(told.items())}


# ---- Files -----------------------------------------------------------------------------------------------------------


def read_weights(name: str) -> dict[str, np.ndarray]:
    """The stored initial weights of a run."""
    prefix = f"{RUNS[name].start or name}:"
    stored = safetensors.load_file(WEIGHTS)
    return {path.removeprefix(prefix): x for path, x in stored.items() if path.startswith(prefix)}


def read_numbers(name: str) -> Numbers:
    """The stored numbers of a run."""
    stored = json.loads(NUMBERS.read_text(encoding="utf-8"))[name]
    columns = {kind: {key: np.array(x) for key, x in stored[kind].items()} for kind in ("steps", "evaluations")}
    return Numbers(read_weights(name), **columns, held_out=np.array(stored["held_out"]), norms=stored["norms"])


def differences(found: Numbers, stored: Numbers) -> dict[str, float]:
    """The largest difference of each kind of number, relative where they are above one.

    Raises:
      AssertionError: one of them has other paths or keys; a record may have more keys than the stored one.
    """
    assert _shapes(found.initial) == _shapes(stored.initial)
    assert found.norms.keys() == stored.norms.keys()
    assert found.steps.keys() >= stored.steps.keys()
    assert found.evaluations.keys() >= stored.evaluations.keys()
    assert found.held_out.shape == stored.held_out.shape
    pairs = {
        "initial": [(found.initial[path], x) for path, x in stored.initial.items()],
        "loss": [(found.steps["train/loss"], stored.steps["train/loss"])],
        "gradient": [(found.steps["train/gradient_norm"], stored.steps["train/gradient_norm"])],
        "steps": [(found.steps[key], x) for key, x in stored.steps.items()],
        "evaluations": [(found.evaluations[key], x) for key, x in stored.evaluations.items()],
        "held_out": [(found.held_out, stored.held_out)],
        "norms": [(np.array(found.norms[path]), x) for path, x in stored.norms.items()],
    }
    return {kind: max(_far(one, other) for one, other in these) for kind, these in pairs.items()}


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {path: np.shape(x) for path, x in weights.items()}


def _far(found: np.ndarray, stored: np.ndarray) -> float:
    return float(np.max(np.abs(found - stored) / np.maximum(1.0, np.abs(stored))))
