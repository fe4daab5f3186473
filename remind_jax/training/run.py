"""One run from its config to its report."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from remind_jax import tasks
from remind_jax.config import validate
from remind_jax.config.rules import STACKS
from remind_jax.data import dataset as datasets
from remind_jax.data import memory, pipeline, samplers
from remind_jax.data.findings import Finding
from remind_jax.data.groups import group_name
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import InputSpec
from remind_jax.errors import UserError
from remind_jax.evaluation import binary, conformal, finished, page
from remind_jax.evaluation import report as reports
from remind_jax.inference import gate, model_files, model_folder
from remind_jax.inference.forward import Logits
from remind_jax.inference.predictor import Predictor
from remind_jax.models import spare_rows
from remind_jax.models.encoders import registry
from remind_jax.models.model import Params
from remind_jax.models.network import Network, check_fusion, initial_params
from remind_jax.runtime import devices, processes, progress
from remind_jax.runtime.signals import Signals
from remind_jax.tasks.classes import choose_prior_power
from remind_jax.training import frozen_features, run_folder, stack
from remind_jax.training.kept_rows import KeptRows
from remind_jax.training.loop import Position, Trainer
from remind_jax.training.objective import ROOMY, make_objective
from remind_jax.training.recorder import Cursor
from remind_jax.training.row_adamw import makes_combinations
from remind_jax.training.run_folder import InMemory, RunFolder
from remind_jax.training.stages import Stage, plan_stages
from remind_jax.training.transforms import make_transforms

RANDOM = "W109"


class Fit(NamedTuple):
    """A trained model, and the data set it was trained on."""

    model: Predictor
    data: datasets.Dataset | None


def train_and_evaluate(
    config: Any, workdir: pathlib.Path, verbose: bool = True, on_changed_data: str = "refuse"
) -> dict[str, Any]:
    """Trains a method on the data set of a config and reports on its held-out patients.

    A run that was stopped goes on from its newest checkpoint; a finished one is shown again. Returns the report, as in
    report.json; empty on all processes of a job but the first, which alone writes. Where the data have changed since,
    a run is refused, or begins anew with `on_changed_data="restart"`.

    Raises UserError: a setting, the data or the folder cannot be used. Stopped: SIGTERM or SIGUSR1 asked for it;
    training is saved at the step where it was.
    """
    with _opened(config, workdir) as folder, Signals() as signals:
        verbose = verbose and folder.writes
        found = _run(config, folder, verbose, signals, on_changed=on_changed_data)
        report = (folder.report() or {}) if found is None else found.model.report
        if verbose:
            folder.show(report, again=found is None)
        return dict(report)


def fit(
    config: Any,
    manifest: Manifest,
    workdir: pathlib.Path | None = None,
    verbose: bool = True,
    on_changed_data: str = "refuse",
    breakable: bool = True,
) -> Fit:
    """Trains a method on rows in memory; returns the model, with its report, and the data it was trained on.

    No signal handler is installed. Without a workdir nothing is written. A KeyboardInterrupt after the first evaluation
    ends training that is `breakable` with the best weights so far; a folder then stays unfinished, and the same call
    goes on. For a folder that is finished the model is opened, and the data are None. Changed data are as for
    `train_and_evaluate`.

    Raises UserError: a setting, the data or the folder cannot be used.
    """
    with _opened(config, workdir) as folder:
        found = _run(config, folder, verbose, Signals(), manifest, breakable, on_changed_data)
        return found or Fit(model_folder.open_model(workdir), None)


@contextlib.contextmanager
def _opened(config: Any, workdir: pathlib.Path | None) -> Iterator[RunFolder]:
    """Checks a config and opens the folder of its run; the first process of a job has it, others an empty one."""
    validate(config)
    check_fusion(config.fusion.kind)
    programs = devices.kept_programs(_programs_folder(config.compilation_cache, workdir))
    own: list[RunFolder] = []
    if workdir is None and config.train.track:
        raise UserError(f"train.track={config.train.track} writes below the folder of a run: give workdir=DIR")

    with contextlib.ExitStack() as stack:

        def open_it() -> None:
            settings = config.to_dict()
            found = InMemory(settings) if workdir is None else run_folder.opened(workdir, settings, config.train.track)
            own.append(found if workdir is None else stack.enter_context(found))

        processes.run_on_first(open_it)
        folder = own[0] if own else RunFolder(workdir, config.to_dict(), writes=False)
        stack.enter_context(programs)
        yield folder


def _programs_folder(setting: str, workdir: pathlib.Path | None) -> pathlib.Path | None:
    """Returns the folder that keeps the programs of a run; None keeps none, as for a run that is to write nothing."""
    if setting:
        return None if setting == "off" else pathlib.Path(setting)
    return devices.users_programs() if workdir is not None else None


def _run(
    config: Any,
    folder: RunFolder,
    verbose: bool,
    signals: Signals,
    manifest: Manifest | datasets.FittedData | None = None,
    breakable: bool = False,
    on_changed: str = "refuse",
) -> Fit | None:
    """Trains from the data to the report, None for a finished run; see `fit` for training that is `breakable`."""
    if config.method in STACKS and jax.process_count() > 1:
        raise UserError(f"method={config.method} trains in one process: start one, or name method=remind_plus")
    stamp = memory.stamp(*memory.places(config.data)) if folder.writes else ""
    if processes.run_on_first(lambda: folder.shows(stamp)):
        return None
    devices.choose_devices(config.devices, config.train.batch_size)  # refuses before the data are prepared
    with progress.make(0, "preparing", verbose) as bar:
        bar.say(f"Preparing data ({config.data.source})")
        is_fitted = isinstance(manifest, datasets.FittedData)
        fitted = manifest if is_fitted else datasets.fit(config, manifest)
        if processes.run_on_first(lambda: folder.admit(fitted, stamp, on_changed, bar.say)):
            return None
        data = datasets.prepare(fitted, config.data, bar)
        for line in cohort_lines(data.manifest):
            bar.say(line)
        found = [*random_encoders(config, data.inputs), *_searched(config), *_of_texts(config, data)]
        for finding in found:
            bar.say(finding.message)
    data = dataclasses.replace(data, findings=[*data.findings, *found])
    config = datasets.with_text_encoder(config, data.manifest.table.height)
    if config.method in STACKS:
        folder.remember(data, stack.STAGE, stamp)
        return _stacked(config, data, folder, verbose, signals, breakable)
    trainer = make_trainer(config, data, folder, signals)
    with progress.make(trainer.steps, "training", verbose) as bar:
        bar.say(
            f"Training {config.method} on {data.manifest.title}: {trainer.num_train} samples, "
            f"{len(data.groups)} combinations, {trainer.steps} steps"
        )
        folder.remember(fitted, trainer.stages[0].name, stamp)
        at, whole = _trained(trainer, bar, breakable)
    with progress.make(0, "evaluating", verbose) as bar:
        return Fit(_reported(trainer, data, at, bar, writes=whole), data)


def _stacked(
    config: Any, data: datasets.Dataset, folder: RunFolder, verbose: bool, signals: Signals, breakable: bool
) -> Fit:
    """Trains the members of a stack, each as a run of its own below the folder, and weighs them.

    The network of a single fold tells its progress and can be broken off. Raises UserError: a candidate cannot be used.
    """
    single = config.data.folds == 1

    def train(own: Any, fitted: datasets.FittedData, path: pathlib.Path | None) -> Predictor:
        with _opened(own, path) as opened:
            found = _run(own, opened, verbose and single, signals, fitted, breakable and single)
            return model_folder.open_model(path) if found is None else found.model

    members = None if folder.path is None else folder.path / stack.MEMBERS
    with progress.make(0, "stacking", verbose) as bar:
        found = stack.build(config, data, members, train, bar)
        bar.say(found.told)
    tuning = Logits(found.logits, found.groups, found.labels, 0.0) if len(found.labels) else None
    with progress.make(0, "evaluating", verbose) as bar:
        whole = members is None or all(map(finished.is_there, filter(pathlib.Path.is_dir, members.iterdir())))
        return Fit(_finished(found.model, data, folder, bar, tuning, writes=whole, stack=found.facts), data)


def _trained(trainer: Trainer, bar: progress.Silent, breakable: bool) -> tuple[Position, bool]:
    """Trains; returns the end, and whether training came to it."""
    try:
        return trainer.train(bar), True
    except KeyboardInterrupt:
        if not breakable or trainer.at is None or not trainer.at.cursor.chosen:
            raise
        bar.say(f"stopped by you: the model has the best weights so far, of step {trainer.at.cursor.chosen['step']}")
        return trainer.at, False


def make_trainer(config: Any, data: datasets.Dataset, folder: RunFolder, signals: Signals | None = None) -> Trainer:
    """Puts together what a config says of a run. Raises UserError: it does not fit the data or the devices."""
    tasks.check(data.manifest.schema.task, config)
    _check_tuning(config, data)
    num_train = len(data.stores["train"])
    stages = plan_stages(config, num_train, data.inputs)
    model = Predictor.of_data(config, data, {}, stages[-1].eval_gate)
    transforms = make_transforms(config, data.groups.masks)
    kept = KeptRows(config, model.network, data.stores["train"])
    # What a step knows of all combinations leaves no room for others.
    full = transforms.by_rows or makes_combinations(config) or config.objective.kind not in ROOMY
    return Trainer(
        config=config,
        model=model,
        objective=make_objective(config, data.label_counts, task=model.task, masks=data.groups.masks),
        transforms=transforms,
        sampler=_sampler(config, data),
        stages=stages,
        stores=functools.partial(frozen_features.stores_of, config, model.single, data),
        num_train=num_train,
        initial=lambda: initial_params(config, model.network, data.inputs),
        folder=folder,
        devices=_devices(config),
        signals=signals or Signals(),
        entering=functools.partial(_measured, config, model.network, data.stores["tuning"], kept),
        judging=kept.rows,
        spare=0 if full or config.expert_devices > 1 else spare_rows.count(model.single.shapes, len(data.groups)),
    )


def _measured(
    config: Any,
    network: Network,
    tuning: pipeline.Store,
    kept: KeptRows,
    stage: Stage,
    params: Params,
    bar: progress.Silent,
) -> Params:
    """The first weights of a stage with what is measured before stage 2: centres of train rows, thresholds of gates."""
    if stage.name != "specialize":
        return params
    params = kept.centres(params)
    if not gate.is_measured(config):
        return params
    params = {**params, **devices.broadcast(gate.measure(config, network, params, tuning))}
    bar.say(gate.told(config, params))
    return params


def _check_tuning(config: Any, data: datasets.Dataset) -> None:
    if len(data.stores["tuning"]) < 2 and gate.is_measured(config):
        raise UserError("there are no two tuning rows to measure fusion.gate_threshold=auto on: set a number")
    if len(data.stores["tuning"]):
        return
    if config.train.select != "last":
        raise UserError("there are no tuning rows to choose weights by: set train.select=last")
    if config.eval.adjust_prior != "none":
        raise UserError("there are no tuning rows to adjust the class prior by: set eval.adjust_prior=none")


def _devices(config: Any) -> list[jax.Device]:
    """Chooses the devices of a run, which its batch and its experts divide among."""
    size, experts = config.train.batch_size, config.expert_devices
    found = devices.choose_devices(config.devices, size)
    if jax.process_count() > 1 and experts > 1:
        raise UserError(f"expert_devices={experts} are devices of one process, here are several")
    if len(found) % experts:
        raise UserError(f"expert_devices={experts} does not divide {len(found)} devices: set devices")
    # Under pmap a device sees its share of a batch only, which must hold whole pairs of two groups.
    if config.sampler == "group_pairs" and config.parallel == "pmap" and (size // len(found)) % 2:
        raise UserError(
            f"train.batch_size={size} gives each of {len(found)} devices half a pair (sampler=group_pairs): "
            f"make it a multiple of {2 * len(found)}"
        )
    return found


def _sampler(config: Any, data: datasets.Dataset) -> samplers.Sampler:
    """Makes the sampler of the train rows."""
    presence = data.manifest.presence[data.rows("train")]
    known = samplers.Rows(data.groups.index(presence), presence.sum(axis=1), presence.shape[1])
    return samplers.SAMPLERS[config.sampler](config, known)


def random_encoders(config: Any, inputs: Mapping[str, InputSpec]) -> list[Finding]:
    """Finds encoders that begin with random weights at the paper's size, unlike those of the paper."""
    lacking: dict[str, list[str]] = {}
    for name, spec in inputs.items():
        if registry.ENCODERS[spec.encoder].published is not None and not config.pretrained[spec.encoder]:
            lacking.setdefault(spec.encoder, []).append(name)
    if config.size != "paper" or not lacking:
        return []
    each = "; ".join(f"{', '.join(names)} (set pretrained.{family})" for family, names in lacking.items())
    text = f"size=paper begins encoders with random weights where the paper begins with published ones: {each}"
    return [Finding(RANDOM, text, False)]


def _searched(config: Any) -> list[Finding]:
    """Tells that keys were chosen by a search."""
    told = f"keys were chosen among {config.chosen_among} trials by rows that are not held out"
    return [Finding("I001", told, False)] if config.chosen_among else []


def _of_texts(config: Any, data: datasets.Dataset) -> list[Finding]:
    """Tells which encoder of texts `auto` has chosen."""
    count = data.manifest.table.height
    names = [name for name, each in data.inputs.items() if each.encoder in ("text", "codes")]
    if config.model.text_encoder != "auto" or not names:
        return []
    found = datasets.with_text_encoder(config, count).model.text_encoder
    why = f"with {count:,} samples" + (" and published weights" if config.pretrained.text else "")
    told = f"model.text_encoder=auto is {found} {why}, of {', '.join(names)}: set it to t5 or bag to choose yourself"
    return [Finding("I001", told, False)]


def cohort_lines(manifest: Manifest) -> Iterator[str]:
    """Yields a line for each combination of a data set of the paper, with its share next to that in the paper."""
    rows = datasets.cohort(manifest) if manifest.published else []
    width = max((len(row["group"]) for row in rows), default=0)
    for row in rows:
        share = f"{100 * row['fraction']:5.1f} %  (paper {100 * row['published']:.1f} %)"
        yield f"  {row['group']:<{width}} {row['n']:>8,}  {share}"


def _reported(trainer: Trainer, data: datasets.Dataset, at: Position, bar: progress.Silent, writes: bool) -> Predictor:
    """Makes the trained model with its report on the held-out rows, which are asked for once.

    Where none are held out the report is that of the tuning rows. Model, predictions and report are written by the
    process that has the folder, if `writes`; on others the report is empty.
    """
    config, folder = trainer.config, trainer.folder
    chosen = _chosen(at.cursor, config.train.select)
    model, store = dataclasses.replace(trainer.model, params=at.best, chosen=chosen), data.stores["tuning"]
    tuning = model.logits_of(store) if len(store) else None
    gates = functools.partial(_gate_summary, trainer, at)
    return _finished(model, data, folder, bar, tuning, writes=writes, gates=gates)


def _finished(
    model: Predictor,
    data: datasets.Dataset,
    folder: RunFolder,
    bar: progress.Silent,
    tuning: Logits | None,
    writes: bool = True,
    gates: Callable[[float], dict[str, Any]] = lambda open_rate: {},
    **more: Any,
) -> Predictor:
    """Adds to a trained model what tuning rows decide and its report, see `_reported`.

    `tuning` is what the network says of tuning rows, None where there are none; `gates` tells a report of open gates;
    `more` are further entries of it.
    """
    if not model.members:
        bar.say(page.weights_text(model.chosen))
    model, facts = _adjusted(model, tuning)
    model = _decided(model, data, tuning)
    predicted = model.predict_store(data.stores["held_out"]) if len(data.stores["held_out"]) else None
    split = "tuning" if predicted is None else "held_out"
    if predicted is None and tuning is None:
        return model
    predicted = model.predicted(tuning) if predicted is None else predicted
    if not folder.writes:
        return model
    facts |= {"weights": dict(model.chosen)} | gates(predicted.open_rate) | more
    options = {"parameters": model.parameters, "count": bar.count, "split": split, "judge": model.task.judge}
    if split == "tuning":
        options["rows"] = _tuning_rows(model.config, data)
    report, table = reports.report_of(model.config.to_dict(), data, predicted.probabilities, **options, **facts)
    report |= model.judged(table, decided=split == "tuning")
    model = dataclasses.replace(model, report=reports.Report(report, folder.history()), path=folder.path)
    if folder.path is not None and writes:
        model_files.write(model, folder.path / model_folder.FOLDER)
        folder.finish(report, table)
    return model


def _tuning_rows(config: Any, data: datasets.Dataset) -> np.ndarray:
    """Returns the manifest rows that decide: tuning rows, of a stack all rows of its folds, int64."""
    return data.rows(stack.judged(config) if config.method in STACKS else "tuning")


def _chosen(cursor: Cursor, select: str) -> dict[str, Any]:
    """Tells which weights a run reports, and whether an earlier stage had better ones, see `page.weights_text`."""

    def facts(chosen: Mapping[str, Any]) -> dict[str, Any]:
        return {"stage": chosen["stage"], "step": chosen["step"], "value": chosen.get(select)}

    def gain(one: Mapping[str, Any]) -> float:
        return one["value"] if tasks.SELECT[select] else -one["value"]

    found, earlier = facts(cursor.chosen), [facts(chosen) for chosen in cursor.passed if chosen]
    known = [one for one in earlier if None not in (one["value"], found["value"])]
    best = max(known, key=gain, default=found)
    passed_over = best if known and gain(best) > gain(found) else None
    return found | {"selected_by": select, "earlier": earlier, "passed_over": passed_over}


def _adjusted(model: Predictor, tuning: Logits | None) -> tuple[Predictor, dict[str, Any]]:
    """Sets what the tuning rows choose, thresholds or the power of the class prior.

    Returns the model and what the report says.
    """
    if tuning is None:
        return model, {}
    figure, facts, how = model.config.eval.adjust_prior, {}, model.config.eval.recalibrate
    if figure != "none":
        predicted = model.predicted(tuning)
        power = choose_prior_power(predicted.labels, predicted.probabilities, model.class_fractions, figure)
        model = dataclasses.replace(model, prior_power=power)
        facts = {"prior_adjustment": {"figure": figure, "power": power}}
    if how != "none":
        predicted = model.predicted(tuning)
        task = model.task.recalibrated(how, predicted.labels, predicted.probabilities)
        model, facts = dataclasses.replace(model, task=task), facts | {"chosen_on_tuning": task.told}
    if model.task.tunes:
        predicted = model.predicted(tuning)
        task = model.task.tuned(predicted.labels, predicted.probabilities)
        model, facts = dataclasses.replace(model, task=task), facts | {"chosen_on_tuning": task.told}
    return model, facts


def _decided(model: Predictor, data: datasets.Dataset, tuning: Logits | None) -> Predictor:
    """Adds what tuning rows decide: sets of answers that hold the truth, and the threshold of an outcome."""
    if tuning is None:
        return model
    predicted, task, level = model.predicted(tuning), model.task, model.config.eval.coverage
    rows = _tuning_rows(model.config, data)
    names = [group_name(mask, data.groups.modalities) for mask in data.manifest.presence[rows]]
    misses = task.misses(predicted.labels, predicted.probabilities) if level else None
    sets = () if misses is None else conformal.fit_each(misses, names, level)
    threshold = binary.youden(predicted.labels, predicted.probabilities[:, 1]) if model.is_binary else None
    return dataclasses.replace(model, sets=sets, threshold=threshold)


def _gate_summary(trainer: Trainer, at: Position, open_rate: float) -> dict[str, Any]:
    """Tells how often group routers acted on the held-out rows, and whether the gate decided anything at all."""
    if not trainer.config.fusion.group_routers:
        return {}
    late = [record for record in trainer.folder.history() if record.get("stage") == "specialize"]
    rates = [open_rate, *(record["gate/eval_open_rate"] for record in late if "gate/eval_open_rate" in record)]
    return {"gate": gate.summary(trainer.config, at.best, trainer.stages[-1].eval_gate, rates)}
