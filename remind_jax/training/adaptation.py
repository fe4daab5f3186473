"""Adapts a finished run to modality combinations that it never saw (REMIND section 5, Q4 and figure 5)."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import polars as pl

from remind_jax import tasks
from remind_jax.data import check, pipeline, splits
from remind_jax.data import dataset as datasets
from remind_jax.data.groups import Groups, count_combinations
from remind_jax.data.manifest import Manifest
from remind_jax.data.reading import read_manifest
from remind_jax.data.samplers import Sampler, shuffled
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.evaluation import report as reports
from remind_jax.inference import model_files, model_folder, new_rows
from remind_jax.inference.forward import Predicted
from remind_jax.inference.model_files import ADAPTED
from remind_jax.inference.predictor import Predictor
from remind_jax.models.model import Params
from remind_jax.runtime import claims, files, progress, records
from remind_jax.runtime.devices import choose_devices, host_copy
from remind_jax.training.loop import Position, Trainer
from remind_jax.training.objective import make_objective
from remind_jax.training.recorder import Cursor
from remind_jax.training.run_folder import RunFolder, refuse_changed
from remind_jax.training.stages import Stage
from remind_jax.training.transforms import make_transforms
from remind_jax.training.unfreezing import CUT, Choice, cut, extend, joined, rank_experts, trained_rows

LEAST_TUNING = 30  # tuning rows below which a choice of weights would be one by chance
EVALUATIONS = 20


def open_single(path: pathlib.Path) -> Predictor:
    """Opens the model of a run and refuses ensembles (UserError)."""
    config = model_folder.read_config(path)
    model_folder.refuse_several(path, config)
    return model_folder.open_model(path)


def read_folder(run: Predictor, folder: pathlib.Path) -> tuple[Manifest, np.ndarray, list[check.Finding]]:
    """Reads a manifest folder that fits a run; returns it, the split of its rows, int8 [n], and warnings of its checks.

    Raises UserError: it cannot be used, or its modalities, kinds or classes are not those of the run.
    """
    config = run.config
    options = {key: config.data[key] for key in ("image_size", "frames", "bad_files", "window")}
    manifest = read_manifest(folder, **options)
    new_rows.check_classes(manifest, run.schema, folder)
    manifest = new_rows.in_order(manifest, run.preprocessor, folder)
    try:
        split = splits.make_splits(manifest, config.seed, config.data.fractions, config.data.split)
    except UserError:
        check.refuse(check.find_problems(manifest))  # which usually say more
        raise
    findings = check.find_problems(manifest, split)
    check.refuse(findings)
    return manifest, split, findings


def own_data(run: Predictor) -> tuple[Manifest, np.ndarray, list[check.Finding]]:
    """Reads the data of a run, with the combinations that it left out in their place; returns what `read_folder` does.

    Raises UserError: the run has left nothing out, or its data are others by now.
    """
    if not (run.config.data.leave_out or run.config.data.leave_rarest):
        raise UserError("no data: give a manifest folder as --data=DIR, or adapt a run made with data.leave_out")
    fitted = datasets.fit(run.config)
    refuse_changed(run.path, run, fitted)
    return fitted.manifest, fitted.whole_split, list(fitted.findings)


def prepare(
    run: Predictor, manifest: Manifest, whole_split: np.ndarray, rows: str, findings: Sequence[check.Finding] = ()
) -> datasets.Dataset:
    """Prepares the rows of an adaptation: those that train and choose (`rows`, one of `ROWS`), and all held-out ones.

    The run's groups are extended by the combinations of the train rows that it does not know, the most frequent first,
    as tail; `whole_split` int8 [n] has positions in `splits.SPLITS`. Raises UserError: the run knows all of them.
    """
    known, presence = run.groups, manifest.presence
    train = presence[whole_split == splits.TRAIN]
    masks, counts, _ = count_combinations(train[known.index(train) == len(known)])
    if not len(masks):
        raise UserError("the train rows of these data have no combination that the run does not know")
    groups = Groups(
        known.modalities,
        np.concatenate([known.masks, masks]),
        np.concatenate([known.train_counts, counts]),
        np.concatenate([known.tail, np.ones(len(masks), bool)]),
    )
    index = groups.index(presence)
    trains = (index < len(groups)) & (rows == "all" or index >= len(known))
    split = np.where(trains | (whole_split == splits.HELD_OUT), whole_split, splits.UNUSED).astype(np.int8)
    fitted = datasets.FittedData(manifest, split, whole_split, groups, run.preprocessor, findings)
    return datasets.prepare(fitted, run.config.data)


class Adapter:
    """A run and the rows of `prepare` to adapt it to, and its model with rows for the new combinations.

    Several choices can be made one after the other, each from the run's weights.
    """

    def __init__(self, run: Predictor, data: datasets.Dataset):
        self.run, self.data = run, data
        self.new = np.arange(len(run.groups), len(data.groups))
        patients = np.concatenate([run.train_patients, data.train_patients[len(run.groups) :]])
        self.model = run.with_groups(data.groups, patients, extend(run.params, len(self.new)))
        self._before: Predicted | None = None

    def predict(self, params: Params, split: str = "held_out") -> Predicted:
        """Predicts as the report of the run does, its adjustment of the prior included."""
        return dataclasses.replace(self.model, params=params).predict_store(self.data.stores[split])

    @property
    def before(self) -> Predicted:
        """Held-out predictions of the run as it is."""
        if self._before is None:
            self._before = self.predict(self.model.params)
        return self._before

    def experts(self, share: float) -> dict[str, np.ndarray]:
        """Chooses a share of the experts of each block, int ascending; a smaller share takes some of a larger one's."""
        if not share:
            return {}
        fusion = self.run.config.fusion
        size = self.run.config.eval.batch_size
        ranked = rank_experts(self.model.network, self.model.params, self.data.stores["train"], size)
        if ranked is None:  # a draw instead
            draw = np.random.default_rng(self.run.config.seed)
            ranked = np.stack([draw.permutation(fusion.experts) for _ in range(fusion.blocks)])
        count = max(1, round(share * fusion.experts))
        return {f"block_{i}": np.sort(row[:count]) for i, row in enumerate(ranked)}

    def config(self, choice: Choice) -> ml_collections.ConfigDict:
        """Returns the run's settings, changed to those of the adaptation."""
        config, n = ml_collections.ConfigDict(self.run.config.to_dict()), len(self.data.stores["train"])
        config.parallel, config.devices, config.sampler = "jit", 1, "shuffled"
        config.objective.update(kind="erm", mixup_weight=0.0, distill_weight=0.0)
        config.objective.update(fewer_weight=0.0, mofe_weight=0.0, meta_weight=0.0)
        config.train.batch_size = min(config.train.batch_size, n)
        config.train.select = "loss" if len(self.data.stores["tuning"]) >= LEAST_TUNING else "last"
        config.train.evaluate_every = choice.steps / EVALUATIONS * config.train.batch_size / n
        config.train.update(patience=choice.patience, hide_samples=0.0)
        config.optim.update(lr=choice.lr or config.optim.lr, schedule="cosine", warmup=0.0)
        config.eval.adjust_prior = "none"  # the run's is kept
        return config

    def fit(
        self, choice: Choice, trained: Mapping[str, np.ndarray | None], folder: RunFolder, bar: progress.Silent
    ) -> tuple[Params, int]:
        """Trains some rows; returns all parameters, and the step at which they were chosen."""
        if not trained:
            return self.model.params, 0
        run, config, data = self.run, self.config(choice), self.data
        names = {path if rows is None else CUT + path for path, rows in trained.items()}
        gates = (config.fusion.train_gate if config.fusion.group_routers else "never", run.gate)
        stage = Stage("adapt", 0, choice.steps, lambda path: path not in names, *gates, robust=False)
        start = cut(self.model.params, trained)
        trainer = Trainer(
            config=config,
            model=_of_cut(self.model, trained),
            objective=make_objective(config, data.label_counts, run.label_counts, run.task),
            transforms=make_transforms(config, data.groups.masks),
            sampler=Sampler(shuffled(config.seed, len(data.stores["train"]))),
            stages=[stage],
            stores=lambda *_: contextlib.nullcontext(data.stores),
            num_train=len(data.stores["train"]),
            initial=lambda: start,
            folder=folder,
            devices=choose_devices(config.devices, config.train.batch_size),
        )
        at = Position(Cursor(), trainer.begin(stage, start), start)
        if config.train.select == "loss":
            found = trainer.predict(start, data.stores["tuning"], run.gate)
            loss = run.task.tuning(found.labels, found.probabilities)["loss"]
            at.cursor.best, at.cursor.chosen = -loss, {"stage": stage.name, "step": 0, "loss": loss}
            folder.log({"step": 0, "stage": stage.name, "eval/loss": loss})
        trainer.run_stage(stage, at, None, bar)
        return host_copy(joined(at.best, trained)), at.cursor.chosen["step"]


def _of_cut(model: Predictor, trained: Mapping[str, np.ndarray | None]) -> Predictor:
    """Returns the model as one of parameters from `cut`, which predicts without adjustment of the prior."""

    def apply(params: Params, *rest: Any, **options: Any) -> Any:
        return model.network.apply(joined(params, trained), *rest, **options)

    def forward(params: Params, batch: pipeline.Batch, gate: str) -> tuple[jax.Array, ...]:
        return model.forward(joined(params, trained), batch, gate)

    single = model.network._replace(apply=apply)
    return dataclasses.replace(model, single=single, forward=jax.jit(forward, static_argnums=2), prior_power=0.0)


def adapt(adapter: Adapter, choice: Choice, out: pathlib.Path, bar: progress.Silent) -> dict[str, Any]:
    """Adapts, and writes a folder, which appears when everything in it is written.

    Returns the report: the keys of `evaluation.report.build_report`, where the train rows of a new combination are
    those of the adaptation, and `adapted`, see `_facts`. Raises UserError: the folder exists or cannot be written, the
    run has no such part, or training fails.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out=DIR, or delete it")
    run = adapter.run
    if "router" in choice.parts and run.config.fusion.router_rank:
        raise UserError(
            f"--unfreeze=router: fusion.router_rank={run.config.fusion.router_rank} has composed the routers of new "
            "combinations from those of modalities, which others share: name head, shared_router, experts or all"
        )
    experts = adapter.experts(choice.experts)
    trained = trained_rows(adapter.model.params, choice, adapter.new, experts, run.config.fusion.group_routers)
    config = run.config.to_dict() | {ADAPTED: {"run": str(run.path), **choice._asdict()}}
    unfinished = files.whole_folder(out, private=True)
    with (
        _owned(out),
        files.writing(out),
        unfinished as temporary,
        contextlib.closing(RunFolder(temporary, config)) as folder,
    ):
        folder.remember(adapter.data, "adapt")
        params, step = adapter.fit(choice, trained, folder, bar)
        found = {"trained": trained, "experts": experts, "step": step}
        report = _report(adapter, choice, params, found, bar)
        adapted = dataclasses.replace(adapter.model, config=ml_collections.ConfigDict(config), params=params)
        model_files.write(adapted, temporary / model_folder.FOLDER)
        with files.whole_file(temporary / "predictions.parquet", private=True) as file:
            report.pop("table").write_parquet(file)
        reports.write_json(temporary / "report.json", report)
    return report


@contextlib.contextmanager
def _owned(out: pathlib.Path) -> Iterator[None]:
    """Holds a folder that is not there yet; leaves nothing next to it."""
    beside = out.with_name(f".{out.name}.owner")
    with claims.owned(out, beside / "adapt"):
        try:
            yield
        finally:
            files.remove(beside)  # while it is held: a refused process removes nothing


def _report(
    adapter: Adapter, choice: Choice, params: Params, found: Mapping[str, Any], bar: progress.Silent
) -> dict[str, Any]:
    """Builds the report, and under `table` the predictions."""
    run, data = adapter.run, adapter.data
    after = adapter.predict(params)
    table, before = (
        datasets.predictions_table(data.manifest, data.groups, predicted.probabilities, data.rows("held_out"))
        for predicted in (after, adapter.before)
    )
    facts = _facts(adapter, choice, params, found, before, table)
    if run.config.fusion.group_routers:
        facts |= {"gate_open_rate": after.open_rate}
    extra: dict[str, Any] = {ADAPTED: facts}
    if run.schema.has_classes:
        extra["majority_accuracy"] = float(np.mean(after.labels == run.class_fractions.argmax()))
    if "prior_adjustment" in run.report:
        extra["prior_adjustment"] = run.report["prior_adjustment"]
    report, table = reports.report_of(
        run.config.to_dict(),
        data,
        after.probabilities,
        parameters=adapter.model.parameters,
        count=bar.count,
        judge=run.task.judge,
        card=None,  # which would describe the data of training
        **extra,
    )
    return report | {"table": table}


def _facts(
    adapter: Adapter,
    choice: Choice,
    params: Params,
    found: Mapping[str, Any],
    before: pl.DataFrame,
    after: pl.DataFrame,
) -> dict[str, Any]:
    """Tells what was done, and figures (`n`, M) of held-out rows of new and of known combinations, before and after."""
    run, data = adapter.run, adapter.data
    index = data.groups.index(data.manifest.presence[data.rows("held_out")])
    samples = {"new": (index >= len(run.groups)) & (index < len(data.groups)), "known": index < len(run.groups)}
    seed, resamples, tuning = run.config.seed, run.config.eval.bootstrap, len(data.stores["tuning"])
    figures = {
        when: {
            name: reports.pooled_metrics(table, rows, seed, resamples, run.task.judge) for name, rows in samples.items()
        }
        for when, table in (("before", before), ("after", after))
    }
    trained = found["trained"].items()
    by_loss = tuning >= LEAST_TUNING
    return {
        "run": str(run.path),
        **choice._asdict(),
        "unfreeze": choice.unfreeze,
        "learning_rate": choice.lr or run.config.optim.lr,
        "new": [data.groups.names[g] for g in adapter.new],
        "trained_parameters": sum(math.prod(np.shape(params[p] if r is None else params[p][r])) for p, r in trained),
        "experts_chosen": {block: rows.tolist() for block, rows in found["experts"].items()},
        "n_train": len(data.stores["train"]),
        "n_tuning": tuning,
        "chosen_by": "nothing was trained" if not trained else "tuning loss" if by_loss else "last step",
        "chosen_step": found["step"],
        **figures,
    }


FACTS = {
    ADAPTED: {
        **dict.fromkeys(("steps", "trained_parameters", "chosen_step"), records.COUNT),
        "lr": float,
        "after": {key: {"n": records.COUNT, **finished.FIGURES} for key in ("new", "known")},
    }
}
"""The shape of what a report says of an adaptation, as far as it is read again."""


def summary(report: Mapping[str, Any]) -> list[str]:
    """Tells in lines what an adaptation did."""
    facts, task = report[ADAPTED], tasks.of_report(report)
    share = 100 * facts["trained_parameters"] / report["parameters"]
    by = {
        "tuning loss": f"lowest loss of {facts['n_tuning']} tuning rows, at step {facts['chosen_step']}",
        "last step": f"those of the last step: {facts['n_tuning']} tuning rows are too few to choose by",
    }
    lines = [
        f"New combinations: {', '.join(facts['new'])}",
        f"Unfrozen: {facts['unfreeze']}, {facts['trained_parameters']:,} of {report['parameters']:,} parameters "
        f"({share:.2g} %), {facts['n_train']} train rows",
        f"Weights: {by.get(facts['chosen_by'], facts['chosen_by'])}",
    ]
    leading = list(task.compared.items())[:3]
    lines += ["", f"{'held-out rows':<22}{'n':>7}" + "".join(f"{title:>18}" for _, title in leading)]
    for name, title in (("new", "new combinations"), ("known", "known combinations")):
        before, after = facts["before"][name], facts["after"][name]
        cells = [f"{task.shown(before[key])} -> {task.shown(after[key])}" for key, _ in leading]
        lines.append(f"{title:<22}{after['n']:>7}" + "".join(f"{cell:>18}" for cell in cells))
    return lines
