"""A run on a folder of data as a PyTorch user would write it: eager, on CPU, the job of the package's defaults.

    python -m benchmarks.torch_job DATA WORKDIR [--stops=JOINT,LAST] [--epochs=20]

The method is REMIND as configs/manifest.py sets it: T5-like encoders of notes and codes from random weights, linear
ones of tables, soft experts behind residual routers and an uncertainty gate, group DRO, two stages with averaged
weights, an evaluation an epoch, a checkpoint at each, and at the end figures with intervals of the held-out rows. What
a sample lacks is not encoded, and stage 2 reads features of the frozen encoders that were computed once. The
tokenizer and the figures are the package's own functions, which are numpy, scikit-learn and `tokenizers`; JAX
is not imported. `--stops` ends the stages after so many steps, whatever the tuning loss says.
"""

import argparse
import collections
import copy
import dataclasses
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
import yaml
from torch import nn
from torch.nn import functional

from benchmarks.torch_remind import PAD, Network, TextEncoder

EOS, UNK, FIRST = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults of configs/manifest.py under the names of its keys, without those that are off."""

    seed: int = 0
    max_tokens: int = 96
    vocabulary: int = 4_000
    tail_below: float = 0.15
    width: int = 64
    tokens: int = 4
    encoder_dropout: float = 0.4
    heads: int = 8
    experts: int = 8
    hidden: int = 128
    gate_threshold: float = 0.8
    dropout: float = 0.4
    gamma: float = 0.02
    every: int = 10
    epochs: float = 20.0
    joint_epochs: float = 5.0
    batch_size: int = 64
    patience: int = 5
    log_every: int = 10
    keep: int = 2
    lr: float = 2e-3
    weight_decay: float = 0.3
    warmup: float = 0.05
    clip: float = 1.0
    ema: float = 0.98
    bootstrap: int = 1_000


# ---- Data


class Data(NamedTuple):
    """All rows of a data set, encoded.

    Attributes:
      inputs: of each modality, [n, ...], zeros where it is missing.
      present: [n, m].
      group: combination, [n]; the number of combinations for one that no train row has.
      label, split, patient: [n].
      masks: combinations of the train rows, [g, m], most frequent first.
      vocabulary: token ids of each modality, 0 for numbers.
    """

    inputs: dict[str, torch.Tensor]
    present: torch.Tensor
    group: torch.Tensor
    label: torch.Tensor
    split: np.ndarray
    patient: np.ndarray
    masks: np.ndarray
    vocabulary: dict[str, int]

    def rows(self, split: str) -> torch.Tensor:
        """Returns the rows of a split."""
        return torch.from_numpy(np.flatnonzero(self.split == split))

    @property
    def counts(self) -> torch.Tensor:
        """Counts train rows of each combination, [g]."""
        return torch.bincount(self.group[self.rows("train")], minlength=len(self.masks))


def read(folder: pathlib.Path, settings: Settings) -> Data:
    """Reads manifest.csv by schema.yaml and encodes it, fitted on the train rows; the column of splits is named."""
    schema = yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))
    table = pl.read_csv(folder / "manifest.csv", infer_schema_length=None)
    split = table[schema["split"]].to_numpy()
    inputs, present, vocabulary = {}, [], {}
    for name, entry in schema["modalities"].items():
        columns = [entry["column"]] if "column" in entry else [*entry["columns"], *entry["categorical"]]
        here = table.select(pl.any_horizontal(pl.col(columns).is_not_null())).to_series().to_numpy()
        fit = split[here] == "train"
        cells, vocabulary[name] = table.filter(here).select(columns), 0
        if entry["kind"] == "tabular":
            values = _encode_table(cells, entry["columns"], entry["categorical"], fit)
        else:
            encode_lists = _encode_notes if entry["kind"] == "text" else _encode_codes
            values, vocabulary[name] = encode_lists(cells.to_series().to_list(), fit, settings)
        whole = np.zeros((len(table), values.shape[1]), values.dtype)
        whole[here] = values
        inputs[name] = torch.from_numpy(whole)
        present.append(here)
    present = np.stack(present, axis=1)
    # Combinations of equally many rows stand in the order of their bits, the first modality being the lowest.
    seen, counts = np.unique(present[split == "train"][:, ::-1], axis=0, return_counts=True)
    masks = seen[np.argsort(-counts, kind="stable"), ::-1]
    equal = (present[:, None] == masks[None]).all(axis=2)
    group = torch.from_numpy(np.where(equal.any(axis=1), equal.argmax(axis=1), len(masks)))
    classes = {name: i for i, name in enumerate(schema["label"]["classes"])}
    label = torch.tensor([classes[str(value)] for value in table[schema["label"]["column"]].to_list()])
    patient = table[schema["patient_id"]].to_numpy()
    return Data(inputs, torch.from_numpy(present), group, label, split, patient, masks, vocabulary)


def _encode_notes(texts: Sequence[str], fit: np.ndarray, settings: Settings) -> tuple[np.ndarray, int]:
    """Returns token ids [n, t] and the number of different ones; each text is another patient's."""
    from remind_jax.data.kinds.text import train_unigram

    tokenizer = train_unigram([text for text, own in zip(texts, fit, strict=True) if own], settings.vocabulary)
    tokenizer.enable_truncation(settings.max_tokens)
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    length = max(len(own) for own, in_train in zip(ids, fit, strict=True) if in_train)
    return _padded(ids, length), tokenizer.get_vocab_size()


def _encode_codes(cells: Sequence[str], fit: np.ndarray, settings: Settings) -> tuple[np.ndarray, int]:
    """Returns ids of codes [n, t], the most frequent of the fitted rows first, and the number of different ones."""
    lists = [cell.split() for cell in cells]
    fitted = [own for own, in_train in zip(lists, fit, strict=True) if in_train]
    counts = collections.Counter(itertools.chain(*fitted))
    ranked = sorted(counts, key=lambda code: (-counts[code], code))[: settings.vocabulary - FIRST]
    position = {code: i for i, code in enumerate(ranked, start=FIRST)}
    length = min(settings.max_tokens, max(map(len, fitted)) + 1)
    ids = [[*(position.get(code, UNK) for code in own[: length - 1]), EOS] for own in lists]
    return _padded(ids, length), FIRST + len(ranked)


def _padded(ids: Sequence[Sequence[int]], length: int) -> np.ndarray:
    found = np.full((len(ids), length), PAD, np.int64)
    for row, own in zip(found, ids, strict=True):
        row[: min(len(own), length)] = own[:length]
    return found


def _encode_table(cells: pl.DataFrame, columns: list[str], categorical: list[str], fit: np.ndarray) -> np.ndarray:
    """Encodes standardised numbers, is-missing flags, one-hot categories and their flags, as far as train has them."""
    numeric = cells.select(pl.col(columns).cast(pl.Float32)).to_numpy().astype(np.float64)
    holes, train = np.isnan(numeric), numeric[fit]
    filled = np.where(holes, np.nanmedian(train, axis=0), numeric)
    parts = [(filled - np.nanmean(train, axis=0)) / np.nanstd(train, axis=0), holes[:, holes[fit].any(axis=0)]]
    flags = []
    for name in categorical:
        values = cells[name].to_numpy()
        missing = cells[name].is_null().to_numpy()
        known = sorted(set(values[fit & ~missing].tolist()))
        parts.append(values[:, None] == np.array(known, object)[None])
        if missing[fit].any():
            flags.append(missing[:, None])
    return np.concatenate([part.astype(np.float32) for part in (*parts, *flags)], axis=1)


# ---- Training


class GroupWeights:
    """λ of the combinations, which moves every so many steps by their losses since."""

    def __init__(self, counts: torch.Tensor, settings: Settings):
        weights = counts.float().sqrt()
        self.log_weights = (weights / weights.sum()).log()
        self.loss_sum, self.count, self.last = (torch.zeros(len(counts)) for _ in range(3))
        self.seen, self.step, self.settings = torch.zeros(len(counts), dtype=torch.bool), 0, settings

    def loss(self, each: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Returns Σ_g λ_g (mean loss of g) of losses [b] and counts them."""
        zeros = torch.zeros(len(self.count))
        sums, count = zeros.index_add(0, group, each), zeros.index_add(0, group, torch.ones_like(each))
        self._found = sums.detach(), count
        return (sums * torch.where(count > 0, self.log_weights.exp() / count.clamp(min=1), 0.0)).sum()

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs."""
        return {name: x for name, x in vars(self).items() if name != "settings"}

    def move(self) -> None:
        """Takes what `loss` found into account."""
        sums, count = self._found
        self.loss_sum, self.count, self.step = self.loss_sum + sums, self.count + count, self.step + 1
        if self.step % self.settings.every:
            return
        known = self.seen | (self.count > 0)
        losses = torch.where(self.count > 0, self.loss_sum / self.count.clamp(min=1), self.last)
        losses = torch.where(known, losses, losses[known].mean())
        self.log_weights = torch.log_softmax(self.log_weights + self.settings.gamma * losses, dim=0)
        self.last, self.seen = losses, known
        self.loss_sum, self.count = torch.zeros_like(sums), torch.zeros_like(sums)


def make_optimizer(network: Network, settings: Settings) -> torch.optim.AdamW:
    """Makes fused AdamW of what is trained; biases and scales are not decayed."""
    decayed, others = [], []
    for name, parameter in network.named_parameters():
        is_bias = parameter.ndim < 2 or name.endswith(("b_in", "b_out", "position_bias.weight"))
        if parameter.requires_grad:
            (others if is_bias else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def learning_rate(settings: Settings, steps: int, at: int) -> float:
    """Returns a linear warm-up and half a cosine."""
    warmup = int(settings.warmup * steps)
    if at < warmup:
        return settings.lr * at / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (at - warmup) / (steps - warmup))))


def _order(rows: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        yield rows[torch.randperm(len(rows), generator=generator)]


def _batches(rows: torch.Tensor, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields rows of batches, which may lie across the border of two epochs."""
    waiting = rows[:0]
    for epoch in _order(rows, generator):
        waiting = torch.cat([waiting, epoch])
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]


def take(data: Data, rows: torch.Tensor, features: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Makes a batch of some rows."""
    inputs = {name: x[rows] for name, x in data.inputs.items() if name not in features}
    kept = {name: x[rows] for name, x in features.items()}
    columns = {"present": data.present[rows], "group": data.group[rows], "label": data.label[rows]}
    return {"inputs": inputs, "features": kept, **columns}


@torch.no_grad()
def predict(
    network: Network, data: Data, rows: torch.Tensor, features: Mapping[str, torch.Tensor], *, gated: bool
) -> np.ndarray:
    """Returns the probabilities of some rows, [n, c]."""
    network.eval()
    parts = [network(take(data, part, features), gated=gated)[0] for part in rows.split(256)]
    return torch.softmax(torch.cat(parts), dim=1).numpy()


@torch.no_grad()
def encode(network: Network, data: Data, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the features of frozen encoders, zeros where a modality is missing, for all rows but filled for some."""
    network.eval()
    found = {}
    for i, (name, encoder) in enumerate(network.encoders.items()):
        if isinstance(encoder, TextEncoder):
            here = rows[data.present[rows, i]]
            parts = [encoder.features(data.inputs[name][part]) for part in here.split(network.settings.batch_size)]
            shape = len(data.label), encoder.tokens, encoder.embedding.embedding_dim
            found[name] = torch.zeros(shape, dtype=torch.bfloat16).index_copy(0, here, torch.cat(parts).bfloat16())
    return found


class Run:
    """A run: trains both stages and writes metrics.jsonl, checkpoints, predictions and a report to a folder."""

    def __init__(self, data: Data, settings: Settings):
        torch.manual_seed(settings.seed)
        self.data, self.settings = data, settings
        inputs = {name: (x.shape[1], data.vocabulary[name]) for name, x in data.inputs.items()}
        self.network = Network(inputs, len(data.masks), 2, settings)
        self.dro = GroupWeights(data.counts, settings)
        self.rows = {split: data.rows(split) for split in ("train", "tuning", "held_out")}
        per_epoch = len(self.rows["train"]) / settings.batch_size
        self.steps, self.joint = round(settings.epochs * per_epoch), round(settings.joint_epochs * per_epoch)
        self.every = max(1, round(per_epoch))
        self.best: dict[str, Any] = {"loss": math.inf}

    def train(self, workdir: pathlib.Path, stops: Sequence[int] = ()) -> None:
        """Runs both stages; the second goes on from the best weights of the first.

        `stops` are the steps before which they end; without them the second ends where it gains no more.
        """
        self.workdir, self.patience = workdir, 0 if stops else self.settings.patience
        workdir.mkdir(parents=True)
        generator = torch.Generator().manual_seed(self.settings.seed)
        batches = _batches(self.rows["train"], self.settings.batch_size, generator)
        joint, last = stops or (self.joint, self.steps)
        with (workdir / "metrics.jsonl").open("w", encoding="utf-8") as self.log:
            self._stage("joint", 0, joint, batches)
            self.network.load_state_dict(self.best["weights"])
            self._stage("specialize", self.joint, last, batches)

    def begin(self, late: bool) -> torch.optim.AdamW:
        """Freezes what a stage does not train, routers of combinations or trunks; returns a fresh optimizer."""
        self.network.requires_grad_(True)
        self.network.group_router.requires_grad_(late)
        for encoder in self.network.encoders.values():
            if late and isinstance(encoder, TextEncoder):
                encoder.requires_grad_(False)
                encoder.adapter.requires_grad_(True)
        return make_optimizer(self.network, self.settings)

    def step(
        self, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any], at: int, *, gated: bool
    ) -> dict[str, float]:
        """Takes one step, none where the gradient is not finite; returns its figures."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.steps, at)
        optimizer.zero_grad(set_to_none=True)
        logits, is_open = self.network(batch, gated=gated)
        each = functional.cross_entropy(logits, batch["label"], reduction="none")
        self.dro.loss(each, batch["group"]).backward()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.settings.clip).item()
        if math.isfinite(norm):
            optimizer.step()
            self.dro.move()
        return {"train/loss": each.mean().item(), "train/gradient_norm": norm, "gate/open_rate": is_open.item()}

    def _stage(self, name: str, start: int, stop: int, batches: Iterator[torch.Tensor]) -> None:
        late, network, settings = name == "specialize", self.network, self.settings
        optimizer, averaged = self.begin(late), copy.deepcopy(network)
        fitted = torch.cat([self.rows["train"], self.rows["tuning"]])
        features = encode(network, self.data, fitted) if late else {}
        pairs = zip(averaged.parameters(), network.parameters(), strict=True)
        means, own = zip(*((mean, own) for mean, own in pairs if own.requires_grad), strict=True)
        decay, waited, sums = min(settings.ema, 1 - min(1.0, 10 / self.steps)), 0, collections.Counter()
        for at in range(start, stop):
            network.train()
            batch, done = take(self.data, next(batches), features), at + 1
            sums.update(self.step(optimizer, batch, at, gated=late), steps=1)
            with torch.no_grad():
                torch._foreach_lerp_(means, own, 1 - decay)
            evaluates = (done - start) % self.every == 0 or done == stop
            if done % settings.log_every == 0 or evaluates:
                figures = {key: total / sums["steps"] for key, total in sums.items() if key != "steps"}
                figures |= {f"dro/lambda/{i}": x for i, x in enumerate(self.dro.log_weights.exp().tolist())}
                self._write({"step": done, "stage": name, **figures})
                sums.clear()
            if evaluates:
                waited = 0 if self._evaluate(name, done, averaged, features, late) else waited + 1
                self._save(done, averaged, optimizer)
                if self.patience and waited >= self.patience:
                    return

    def _evaluate(self, stage: str, done: int, averaged: Network, features: Mapping[str, Any], late: bool) -> bool:
        """Judges the averaged weights by the tuning rows; returns whether they are the best so far."""
        from remind_jax.evaluation import metrics

        rows = self.rows["tuning"]
        p, label = predict(averaged, self.data, rows, features, gated=late), self.data.label[rows].numpy()
        loss = float(-np.log(np.maximum(p[np.arange(len(p)), label], 1e-12)).mean())
        figures = {"loss": loss} | metrics.compute(label, p)[0]
        self._write({"step": done, "stage": stage} | {f"eval/{name}": value for name, value in figures.items()})
        if loss >= self.best["loss"]:
            return False
        weights = {name: x.clone() for name, x in averaged.state_dict().items()}
        self.best = {"loss": loss, "step": done, "weights": weights}
        return True

    def _write(self, record: Mapping[str, Any]) -> None:
        self.log.write(json.dumps(record) + "\n")
        self.log.flush()

    def _save(self, done: int, averaged: Network, optimizer: torch.optim.Optimizer) -> None:
        folder = self.workdir / "checkpoints"
        folder.mkdir(exist_ok=True)
        state = {"network": self.network.state_dict(), "averaged": averaged.state_dict(), "best": self.best}
        state |= {"optimizer": optimizer.state_dict(), "dro": self.dro.state()}
        torch.save(state, folder / "unfinished")
        (folder / "unfinished").rename(folder / f"{done:06d}.pt")
        for old in sorted(folder.glob("*.pt"))[: -self.settings.keep]:
            old.unlink()

    def report(self) -> dict[str, Any]:
        """Writes weights, and predictions and figures of the held-out rows: all, by combination, head and tail."""
        rows, data = self.rows["held_out"], self.data
        self.network.load_state_dict(self.best["weights"])
        torch.save(self.best["weights"], self.workdir / "model.pt")
        p = predict(self.network, data, rows, {}, gated=True)
        label, group, patients = data.label[rows].numpy(), data.group[rows].numpy(), data.patient[rows.numpy()]
        columns = {"patient_id": patients, "label": label, "group": group}
        columns |= {f"p_{k}": column for k, column in enumerate(p.T)}
        pl.DataFrame(columns).write_csv(self.workdir / "predictions.csv")
        counts = data.counts.numpy()
        is_tail = np.append(counts / counts.sum() < self.settings.tail_below, True)[group]
        parts = {"overall": np.ones(len(p), bool), "head": ~is_tail, "tail": is_tail}
        parts |= {str(g): group == g for g in range(len(counts) + 1)}
        found = {name: self._figures(label[own], p[own], patients[own]) for name, own in parts.items()}
        found["parameters"] = sum(x.numel() for x in self.network.parameters())
        (self.workdir / "report.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        return found

    def _figures(self, label: np.ndarray, p: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
        from remind_jax.evaluation import intervals, metrics

        resampled = {"seed": self.settings.seed, "resamples": self.settings.bootstrap}
        bounds = intervals.intervals(label, p, patients, **resampled)[0]
        return {"n": len(label)} | metrics.compute(label, p)[0] | bounds


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--stops", default=(), type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--epochs", type=float, default=Settings.epochs)
    given = parser.parse_args(arguments)
    settings = Settings(epochs=given.epochs, joint_epochs=given.epochs / 4)
    job = Run(read(given.data, settings), settings)
    job.train(given.workdir, given.stops)
    print(json.dumps(job.report()["overall"]))


if __name__ == "__main__":
    main(sys.argv[1:])
