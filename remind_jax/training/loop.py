"""Training and evaluation of one method on one data set, in two stages: all weights jointly, then routers by group."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from remind_jax import settings
from remind_jax.data import dataset as datasets
from remind_jax.data import pipeline, samplers
from remind_jax.data.schema import InputSpec
from remind_jax.errors import NotFiniteError, UserError
from remind_jax.inference.predictor import Predicted, Predictor, tuning_metrics
from remind_jax.models.model import Network, Params, ensemble_of, load_pretrained
from remind_jax.runtime import devices, processes, profiling, progress
from remind_jax.runtime.devices import host_copy
from remind_jax.runtime.signals import Signals, Stopped
from remind_jax.training import frozen_features
from remind_jax.training import optimizer as states
from remind_jax.training.checkpoint import Checkpoints
from remind_jax.training.objective import Objective, make_objective
from remind_jax.training.recorder import Cursor, Recorder
from remind_jax.training.run_folder import RunFolder
from remind_jax.training.stages import Stage, plan_stages
from remind_jax.training.step import make_step, step_options
from remind_jax.training.transforms import make_transforms

# Weights are drawn once: at this level XLA compiles in half the time, and the numbers are the same.
_QUICK = {"xla_backend_optimization_level": 1}


def initial_params(config: Any, network: Network, inputs: Mapping[str, InputSpec]) -> Params:
    """The weights that a run starts from, on the host: random ones, and published ones where `config.pretrained` says.

    Raises:
      UserError: a published file cannot be used.
    """
    init = jax.jit(network.init, compiler_options=_QUICK)
    params = host_copy(init(jax.random.key(config.seed)))
    sources = {"text": config.pretrained.text, "image": config.pretrained.image, "volume": config.pretrained.volume}
    one = params if config.ensemble == 1 else {path: x[0] for path, x in params.items()}
    published = load_pretrained(settings.model_spec(config), inputs, sources, one)
    return params | {path: np.broadcast_to(x, np.shape(params[path])) for path, x in published.items()}


# ---- The loop -------------------------------------------------------------------------------------------------------


class Trainer:
    """One run: its data, network and folder, and the loop over stages and steps."""

    def __init__(
        self,
        config: Any,
        data: datasets.Dataset,
        folder: RunFolder,
        network: Network | None = None,
        stages: Sequence[Stage] = (),
        signals: Signals | None = None,
        objective: Objective | None = None,
    ):
        """Plans a run.

        Args:
          config: its settings.
          data: its data set.
          folder: where records go.
          network: instead of the one that the config describes; a single one.
          stages: instead of those that the config describes.
          signals: that ask it to stop.
          objective: instead of the one that the config describes.

        Raises:
          UserError: the settings do not fit the data.
        """
        self.config, self.data, self.folder = config, data, folder
        self.signals = signals or Signals()
        if not len(data.stores["tuning"]) and config.train.select != "last":
            raise UserError("there are no tuning rows to choose weights by: set train.select=last")
        if not len(data.stores["tuning"]) and config.eval.adjust_prior != "none":
            raise UserError("there are no tuning rows to adjust the class prior by: set eval.adjust_prior=none")
        self.groups = data.groups
        self.train_store = data.stores["train"]
        self.stages = list(stages) or plan_stages(config, len(self.train_store), data.inputs)
        self.model = Predictor.of_data(config, data, {}, self.stages[-1].eval_gate)
        self.single = network or self.model.single
        self.network = ensemble_of(self.single, config.ensemble)
        self.steps = self.stages[-1].stop
        self.devices = devices.choose_devices(config.devices, config.train.batch_size)
        self.agreement = devices.Agreement(self.devices)
        if jax.process_count() > 1 and config.expert_devices > 1:
            raise UserError(f"expert_devices={config.expert_devices} are devices of one process, here are several")
        if len(self.devices) % config.expert_devices:
            raise UserError(
                f"expert_devices={config.expert_devices} does not divide {len(self.devices)} devices: set devices"
            )
        if config.sampler == "group_pairs" and config.parallel == "pmap":
            _check_pairs(config.train.batch_size, len(self.devices))
        self.fair_batch: samplers.FairBatch | None = None
        self.order = self._order()
        self.objective = objective or make_objective(config, data.label_counts)
        self.transforms = make_transforms(config, self.groups.masks)

    def predict(self, params: Params, store: pipeline.Store, gate: str) -> Predicted:
        """Predicts a store by given weights."""
        return dataclasses.replace(self.model, params=params, gate=gate).predict_store(store)

    def _order(self) -> samplers.Order:
        """The order of training samples; with FairBatch under the shares at the start."""
        config, rows = self.config, self.data.rows("train")
        presence = self.data.manifest.presence[rows]
        groups = self.groups.index(presence)
        if config.sampler == "shuffled":
            return samplers.shuffled(config.seed, len(rows))
        if config.sampler == "most_modalities_first":
            return samplers.most_modalities_first(config.seed, presence.sum(axis=1), config.sampler_epochs)
        if config.sampler == "group_pairs":
            return samplers.group_pairs(config.seed, groups, config.sampler_pairs)
        if config.sampler == "fair_batch":
            self.fair_batch = samplers.FairBatch(
                config.seed, groups, config.train.batch_size, alpha=config.sampler_alpha, mode=config.sampler_move
            )
            return self.fair_batch.order()
        if config.objective.cells == "combination_class":
            groups = groups.astype(np.int64) * len(self.data.classes) + self.data.manifest.labels[rows]
        return samplers.group_balanced(config.seed, groups)

    def _optimizer(self, stage: Stage) -> optax.GradientTransformationExtraArgs:
        optim, per_epoch = self.config.optim, len(self.train_store) / self.config.train.batch_size
        schedule = states.learning_rate(
            optim.schedule,
            optim.lr,
            steps=self.steps,
            warmup=optim.warmup,
            decay_steps=max(1, round(optim.step_epochs * per_epoch)),
            decay_rate=optim.step_rate,
        )
        # The optimizer starts anew in each stage, the clock of the learning rate does not.
        return states.make_optimizer(
            lambda count: schedule(count + stage.start),
            weight_decay=optim.weight_decay,
            clip=optim.clip,
            dro=self.objective.dro,
            by_rows=self.transforms.by_rows,
            first_moment=optim.first_moment,
            decay=optim.decay,
        )

    def begin(self, stage: Stage, params: Params, carried_dro: Any = None) -> states.TrainState:
        """The state at the beginning of a stage; `carried_dro` is the state of λ of the stage before."""
        ema, ensemble = self.config.optim.ema > 0, self.config.ensemble
        optimizer = self._optimizer(stage)
        options = {"ensemble": ensemble, "by_rows": self.transforms.by_rows, "seed": self.config.seed}
        state = states.start(params, stage.is_frozen, optimizer, stage.start, ema, **options)
        if carried_dro is None:
            return state
        return state._replace(opt_state=states.with_dro(state.opt_state, carried_dro))

    def train(self, bar: progress.Silent) -> Params:
        """Runs all stages, from the newest checkpoint that is whole if there is one, and returns the chosen weights.

        The first process of a job has the checkpoints, and gives the others what it reads of them.
        """
        folder, keep, own = self.folder.path / "checkpoints", self.config.train.keep, []
        with contextlib.ExitStack() as opened:

            def open_them() -> None:
                own.append(opened.enter_context(contextlib.closing(Checkpoints(folder, keep, say=bar.say))))

            processes.run_on_first(open_them)
            return self._train(own[0] if own else None, bar)

    def _train(self, checkpoints: Checkpoints | None, bar: progress.Silent) -> Params:
        """Training that is not finite goes back once: what a machine got wrong does not come back, the rest does."""
        try:
            return self._run_stages(checkpoints, bar)
        except NotFiniteError as error:
            newest = checkpoints.newest_whole() if checkpoints is not None else None
            bar.say(f"{error}. Going back, once, to {'the start' if newest is None else f'step {newest}'}")
        self.order = self._order()
        return self._run_stages(checkpoints, bar)

    def _newest(self, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """What all processes must know of the checkpoint that a run goes on from, besides its arrays."""
        step = checkpoints.newest_whole()
        if step is None:
            return None
        record = checkpoints.record(step)
        return {"step": step, "cursor": record["cursor"], "sampler": record.get("sampler")}

    def _run_stages(self, checkpoints: Checkpoints | None, bar: progress.Silent) -> Params:
        newest = processes.run_on_first(lambda: self._newest(checkpoints))
        # From the first process: of another kind of processor, others might round the last bit another way.
        params = devices.broadcast(initial_params(self.config, self.network, self.data.inputs))
        cursor, best, state = Cursor(), params, None
        if newest is not None:
            cursor = Cursor(**newest["cursor"])
            if self.fair_batch is not None:
                self.fair_batch.restore(newest["sampler"])
                self.order = self.fair_batch.order()
            like = {"state": self.begin(self.stages[cursor.stage], params), "best": params}
            if checkpoints is not None:
                restored = checkpoints.arrays(newest["step"], like)
            else:
                restored = jax.tree.map(lambda x: np.zeros(np.shape(x), x.dtype), like)
            restored = devices.broadcast(restored)
            state, best = restored["state"], restored["best"]
        self.folder.rewind(newest["step"] if newest else 0)
        for index in range(cursor.stage, len(self.stages)):
            stage = self.stages[index]
            if state is None:
                state = self.begin(stage, params)
            elif index > cursor.stage:
                keeps = self.config.train.keep_better_stage
                state = self.begin(stage, best if keeps else state.weights(), state.opt_state["dro"])
                cursor = Cursor(stage=index, best=cursor.best if keeps else None)
            with self.signals.deferred(self.agreement.settle):
                state, best = self.run_stage(stage, state, cursor, best, checkpoints, bar)
        return best

    def program(self, stage: Stage) -> devices.Program:
        """The train step of a stage on the devices of the run."""
        config, optimizer = self.config, self._optimizer(stage)
        options = step_options(config, self.steps)
        step = make_step(self.single, self.objective, self.transforms, optimizer, stage, options)
        return devices.make_program(step, config.parallel, self.devices, config.programs, config.expert_devices)

    def run_stage(
        self,
        stage: Stage,
        state: states.TrainState,
        cursor: Cursor,
        best: Params,
        checkpoints: Checkpoints | None,
        bar: progress.Silent,
    ) -> tuple[states.TrainState, Params]:
        """Takes the steps of a stage from a state on.

        Args:
          stage: to run.
          state: to start from.
          cursor: moved at every evaluation.
          best: the best weights so far.
          checkpoints: saved to at every evaluation, and when a signal asks to stop; None saves nothing, and only stops
            if it is because another process has them.
          bar: to show.

        Returns:
          The state at the last evaluation, and the best weights.

        Raises:
          Stopped: a signal asked for it; the state is saved.
          NotFiniteError: `train.max_rejected` steps in a row were not finite.
        """
        config, step = self.config, state.steps_done
        if cursor.ended or step >= stage.stop:
            return state, best
        program = self.program(stage)
        evaluate_every = max(1, round(config.train.evaluate_every * len(self.train_store) / config.train.batch_size))
        names = self.groups.names, self._cell_names()
        limits = config.train.log_every, config.train.max_rejected
        recorder = Recorder(self.folder, stage.name, *names, *limits, cursor, bar.say)
        placed, pending = program.place(state), None
        kept = frozen_features.stores_of(config, stage, self.single, state.weights(), self.data, bar)
        tracer = profiling.Tracer(config.profile, self.folder.path / "profile")
        with kept as stores, tracer, contextlib.closing(self._batches(stores["train"], step, stage.stop)) as batches:
            for batch in batches:
                placed, metrics = tracer.run(step, program.step, placed, batch)
                if pending is not None:
                    self._take(recorder, step, program.read(pending))  # of the step before, while this one runs
                step, pending = step + 1, metrics
                bar.advance(step, recorder.text)
                evaluates = (step - stage.start) % evaluate_every == 0 or step == stage.stop
                moves = self.fair_batch is not None and step % self.fair_batch.epoch_steps == 0
                asked = self.agreement.ask(self.signals.asked)
                stops = asked and (checkpoints is not None or not processes.is_first())
                if evaluates or moves or stops:
                    self._take(recorder, step, program.read(pending), close=evaluates)
                    pending = None
                if moves:
                    self.fair_batch.end_epoch()
                    self.order = self.fair_batch.order()
                if not evaluates and not stops:
                    continue
                state = host_copy(program.fetch(placed))
                if evaluates:
                    best = self._evaluate(stage, stores["tuning"], state, cursor, best, bar)
                if checkpoints is not None:
                    checkpoints.save(step, {"state": state, "best": best}, self._record(cursor))
                if stops:
                    bar.say(f"asked to stop: saving step {step}")
                    raise Stopped(asked, agreed=True)
                if cursor.ended:
                    break
        return state, best

    def _batches(self, store: pipeline.Store, step: int, stop: int) -> Iterator[pipeline.Batch]:
        """Training batches, read ahead as far as the order is known."""
        while step < stop:
            epoch = self.fair_batch.epoch_steps if self.fair_batch is not None else stop
            end = min(stop, (step // epoch + 1) * epoch)
            threads, size = self.config.train.threads, self.config.train.batch_size
            own = devices.own_rows(size)
            batches = pipeline.train_batches(store, self.order, size, step, end, threads=threads, rows=own)
            with contextlib.closing(batches):
                yield from batches
            step = end

    def _take(self, recorder: "Recorder", step: int, metrics: Mapping[str, np.ndarray], close: bool = False) -> None:
        """Passes on the metrics of a step."""
        if self.fair_batch is not None:
            if not metrics["train/rejected"]:
                self.fair_batch.observe(metrics["group_loss_sum"], metrics["group_count"])
            metrics = {**metrics, "shares": self.fair_batch.shares}
        recorder.add(step, metrics, close)

    def _cell_names(self) -> tuple[str, ...]:
        """What the weights λ belong to: combinations, or combinations by class."""
        if self.config.objective.cells == "combination":
            return self.groups.names
        return tuple(f"{group}/{label}" for group in self.groups.names for label in self.data.classes)

    def _record(self, cursor: Cursor) -> dict[str, Any]:
        record = {"cursor": dataclasses.asdict(cursor)}
        return record | ({"sampler": self.fair_batch.record()} if self.fair_batch is not None else {})

    def _evaluate(
        self,
        stage: Stage,
        store: pipeline.Store,
        state: states.TrainState,
        cursor: Cursor,
        best: Params,
        bar: progress.Silent,
    ) -> Params:
        """Measures the weights on the tuning rows, moves the cursor, and returns the best weights so far."""
        step, weights, select = state.steps_done, state.weights(), self.config.train.select
        if not len(store):
            return weights
        predicted = self.predict(weights, store, stage.eval_gate)
        values = tuning_metrics(predicted)
        record = {f"eval/{name}": value for name, value in values.items()}
        self.folder.log({"step": step, "stage": stage.name, **record, "gate/eval_open_rate": predicted.open_rate})
        bar.note(step, stage.name, values)
        if select == "last":
            return weights
        value = values[select]
        if value is None:
            raise UserError(f"{select} cannot be computed on the tuning rows: choose another train.select")
        gain = -value if select == "loss" else value
        if cursor.best is None or gain > cursor.best:
            cursor.best, cursor.waited = gain, 0
            return weights
        cursor.waited += 1
        patience, may_end = self.config.train.patience, stage is self.stages[-1] or self.config.train.keep_better_stage
        cursor.ended = bool(patience) and may_end and cursor.waited >= patience
        return best


def _check_pairs(batch_size: int, devices: int) -> None:
    """Under pmap a device sees its share of a batch only, which must hold whole pairs of two groups."""
    if (batch_size // devices) % 2:
        raise UserError(
            f"train.batch_size={batch_size} gives each of {devices} devices half a pair (sampler=group_pairs): "
            f"make it a multiple of {2 * devices}"
        )
