"""The loop over stages and steps: trains, evaluates, records, saves, resumes, and keeps the best weights."""

import contextlib
import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from remind_jax.data import pipeline
from remind_jax.data.samplers import Sampler
from remind_jax.errors import NotFiniteError, UserError
from remind_jax.inference import present
from remind_jax.inference.forward import Predicted
from remind_jax.inference.predictor import Predictor
from remind_jax.models import spare_rows
from remind_jax.models.encoders.registry import has_trunk
from remind_jax.models.model import Params
from remind_jax.ops import flops
from remind_jax.runtime import devices, processes, profiling, progress
from remind_jax.runtime.devices import host_copy
from remind_jax.runtime.signals import Signals, Stopped
from remind_jax.training import joined
from remind_jax.training import optimizer as states
from remind_jax.training.checkpoint import Checkpoints
from remind_jax.training.flat import BY_PATH, Flat, flat_of
from remind_jax.training.objective import Objective
from remind_jax.training.recorder import Cursor, Recorder
from remind_jax.training.run_folder import RunFolder
from remind_jax.training.stages import Stage
from remind_jax.training.step import make_step, step_options
from remind_jax.training.transforms import Transforms

Entering = Callable[[Stage, Params, progress.Silent], Params]
Stores = Callable[[Stage, Params, progress.Silent], contextlib.AbstractContextManager[Mapping[str, pipeline.Store]]]


@dataclasses.dataclass
class Position:
    """Where training stands: the cursor, the state after the last evaluation, and the best weights so far."""

    cursor: Cursor
    state: states.TrainState
    best: Params


@dataclasses.dataclass
class Trainer:
    """Trains one network, or an ensemble, through its stages.

    Attributes:
      config: settings, of which the loop reads how long, how often and on what devices, and the optimizer's.
      model: takes the weights where they are judged; steps go through its single network.
      objective: what steps minimise.
      transforms: of the samples and weights of a step.
      sampler: chooses the samples of each step.
      stages: in their order.
      stores: (stage, its first weights, bar) -> context that gives the stores `train` and `tuning` of the stage.
      num_train: number of training samples.
      initial: () -> the weights that training starts from, on the host.
      folder: takes records, and checkpoints.
      devices: of all processes.
      signals: that ask training to stop.
      entering: (stage, its first weights, bar) -> these weights with what is measured before the stage.
      judging: weights -> these weights with what they keep of train rows, by which they are judged and used.
      spare: rows that tables of combinations have besides in a step, see `spare_rows`.
    """

    config: Any
    model: Predictor
    objective: Objective
    transforms: Transforms
    sampler: Sampler
    stages: Sequence[Stage]
    stores: Stores
    num_train: int
    initial: Callable[[], Params]
    folder: RunFolder
    devices: list[jax.Device]
    signals: Signals = dataclasses.field(default_factory=Signals)
    entering: Entering = lambda stage, params, bar: params
    judging: Callable[[Params], Params] = lambda params: params
    spare: int = 0

    def __post_init__(self) -> None:
        self.at: Position | None = None  # where training stands, or stood when it was broken off
        self._agreement = devices.Agreement(self.devices)
        self._unobserved = self.sampler.record()
        self._shared: devices.Program | None = None  # the step of both stages, once it is made

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return self.stages[-1].stop

    def predict(self, params: Params, store: pipeline.Store, gate: str) -> Predicted:
        """Predicts the rows of a store by some weights."""
        return dataclasses.replace(self.model, params=params, gate=gate).predict_store(store)

    def train(self, bar: progress.Silent) -> Position:
        """Runs all stages, from the newest whole checkpoint if there is one; returns the end, with the chosen weights.

        The first process of a job has the checkpoints, and gives the others what it reads of them. Training that is not
        finite goes back once: what a machine got wrong does not come back, the rest does.

        Raises:
          Stopped: a signal asked for it; the state is saved.
          NotFiniteError: `MAX_REJECTED` steps in a row were not finite, twice.
        """
        with self._checkpoints(bar.say) as checkpoints:
            try:
                return self._run_stages(checkpoints, bar)
            except NotFiniteError as error:
                newest = checkpoints.newest_whole() if checkpoints is not None else None
                bar.say(f"{error}. Going back, once, to {'the start' if newest is None else f'step {newest}'}")
            return self._run_stages(checkpoints, bar)

    def _run_stages(self, checkpoints: Checkpoints | None, bar: progress.Silent) -> Position:
        self.at = at = self._resume(checkpoints, bar)
        for index in range(at.cursor.stage, len(self.stages)):
            if index > at.cursor.stage:
                self._enter(index, at, bar)
            with self.signals.deferred(self._agreement.settle):
                self.run_stage(self.stages[index], at, checkpoints, bar)
        return at

    def _resume(self, checkpoints: Checkpoints | None, bar: progress.Silent) -> Position:
        """Returns, on all processes, the position of the newest whole checkpoint; without one that at the start."""
        newest = processes.run_on_first(lambda: _newest(checkpoints))
        # From the first process: of another kind of processor, others might round the last bit another way.
        params = devices.broadcast(self.initial())
        if newest is None:
            params = self.entering(self.stages[0], params, bar)
            at = Position(Cursor(), self.begin(self.stages[0], params), params)
        else:
            cursor = self._cursor(newest)
            like = {"state": self.begin(self.stages[cursor.stage], params), "best": params}
            if checkpoints is not None:
                restored = checkpoints.arrays(newest["step"], like)
            else:
                restored = jax.tree.map(lambda x: np.zeros(np.shape(x), x.dtype), like)
            at = Position(cursor, **devices.broadcast(restored))
        if newest is None:
            self.sampler.restore(self._unobserved)
        self.folder.rewind(newest["step"] if newest else 0)
        return at

    def _cursor(self, newest: Mapping[str, Any]) -> Cursor:
        """Takes up what a checkpoint holds beside arrays. Raises UserError: somebody has changed it."""
        try:
            self.sampler.restore(newest["sampler"])
            return Cursor.of(newest["cursor"], len(self.stages))
        except (ValueError, TypeError, KeyError, AttributeError):
            text = f"the record of step {newest['step']} is no record of this run: remove the checkpoint, or choose"
            raise UserError(f"{text} another workdir") from None

    def _enter(self, index: int, at: Position, bar: progress.Silent) -> None:
        """Moves a position from the end of a stage to the start of another."""
        keeps, cursor, stage = self.config.train.keep_better_stage, at.cursor, self.stages[index]
        at.best = self.entering(stage, at.best if keeps else at.state.weights(), bar)
        at.state = self.begin(stage, at.best, at.state.opt_state["dro"])
        at.cursor = cursor.next_stage(index, keeps)

    def begin(self, stage: Stage, params: Params, carried_dro: Any = None) -> states.TrainState:
        """Makes the state at the beginning of a stage; `carried_dro` is the state of λ of the stage before."""
        ema, ensemble = self.config.optim.ema > 0, self.config.ensemble
        options = {"ensemble": ensemble, "by_rows": self.transforms.by_rows, "seed": self.config.seed}
        options["flat"] = self._flat(stage)
        state = states.start(params, stage.is_frozen, self._optimizer(stage.start), stage.start, ema, **options)
        if carried_dro is None:
            return state
        return state._replace(opt_state=states.with_dro(state.opt_state, carried_dro))

    def run_stage(self, stage: Stage, at: Position, checkpoints: Checkpoints | None, bar: progress.Silent) -> None:
        """Takes the steps of a stage from a position, which moves at every evaluation.

        Checkpoints are saved to at every evaluation, and when a signal asks to stop; None saves nothing, and only stops
        if it is because another process has them. Raises as `train` does, NotFiniteError at the first time.
        """
        step = at.state.steps_done
        if at.cursor.ended or step >= stage.stop:
            return
        program, recorder = self.program(stage), self._recorder(stage, at.cursor, bar)
        placed, pending, first, nothing = program.place(at.state), None, step, contextlib.nullcontext()
        tracer = profiling.Tracer(self.config.profile, (self.folder.path or pathlib.Path()) / "profile")
        opened = self.stores(stage, at.state.weights(), bar)
        with opened as stores, tracer, contextlib.closing(self._batches(stores["train"], step, stage)) as batches:
            for batch in batches:
                compiling = bar.slow(f"Compiling the step of stage {stage.name}") if step == first else nothing
                with compiling:
                    placed, metrics = tracer.run(step, program.step, placed, batch)
                if pending is not None:
                    self._take(recorder, step, program.read(pending))  # of the step before, while this one runs
                step, pending = step + 1, metrics
                bar.advance(step, recorder.text)
                evaluates, stops = self._evaluates(stage, step), self._stops(checkpoints)
                moves = step == self.sampler.known_until(step - 1)
                if evaluates or stops or moves:
                    self._take(recorder, step, program.read(pending), close=evaluates)
                    pending = None
                if moves and len(stores["tuning"]):
                    self._judge(stage, step, stores["tuning"], lambda at=placed: host_copy(program.fetch(at)).weights())
                if not evaluates and not stops:
                    continue
                at.state = host_copy(program.fetch(placed))
                if evaluates:
                    self._evaluate(stage, stores["tuning"], at, bar)
                self._save(checkpoints, step, at)
                if stops:
                    bar.say(f"asked to stop: saving step {step}")
                    raise Stopped(stops, agreed=True)
                if at.cursor.ended:
                    bar.say(
                        f"Stage {stage.name} ends at step {step}: {at.cursor.waited} evaluations without a better one"
                    )
                    return

    def program(self, stage: Stage) -> devices.Program:
        """Compiles the train step of a stage for the devices of the run."""
        if not self._shares_step:
            flat = self._flat(stage, spare=self.spare)
            made = self._program(stage, flat, self._optimizer(stage.start))
            return self._with(made, flat.pack, flat.unpack)
        flat = self._flat(*self.stages, spare=self.spare)
        if self._shared is None:
            self._shared = self._program(self.stages[-1], flat, self._optimizer(0), self.stages[0])
        return self._with(
            self._shared,
            lambda state: flat.pack(joined.enter(state, self.stages, stage)),
            lambda state: joined.leave(flat.unpack(state), stage),
        )

    def _program(
        self, stage: Stage, flat: Flat, optimizer: optax.GradientTransformationExtraArgs, before: Stage | None = None
    ) -> devices.Program:
        config, options = self.config, step_options(self.config, self.steps, flat, before)
        objective = self.objective._replace(counts=np.pad(self.objective.counts, (0, self.spare)))
        step = make_step(self.model.single, objective, self.transforms, optimizer, stage, options)
        return devices.make_program(step, config.parallel, self.devices, config.programs, config.expert_devices)

    def step_flops(self, store: pipeline.Store) -> int:
        """Counts the operations of the first step of the last stage, on train rows; it is traced and not run."""
        stage, options = self.stages[-1], step_options(self.config, self.steps)
        optimizer = self._optimizer(stage.start)
        step = make_step(self.model.single, self.objective, self.transforms, optimizer, stage, options)
        with contextlib.closing(self._batches(store, stage.start, stage)) as batches:
            state, batch = self.begin(stage, self.initial()), next(batches)
        return flops.count(functools.partial(step.gradient, axis_name=None), state, batch).total()

    @property
    def _shares_step(self) -> bool:
        """Whether both stages have one step."""
        trunks = any(has_trunk(one.encoder) for one in self.model.preprocessor.inputs.values())
        plain = self.config.expert_devices == 1 and not self.transforms.by_rows
        return plain and joined.shares_step(self.stages, self.model.single.shapes, trunks and self.stages[-1].rests)

    def _flat(self, *stages: Stage, spare: int = 0) -> Flat:
        """Lays out the small parameters that stages train; those of experts of several devices lie by path."""
        if self.config.expert_devices > 1:
            return BY_PATH
        shapes = spare_rows.shapes_with(self.model.single.shapes, spare).items()
        trained = {path: x for path, x in shapes if not all(stage.is_frozen(path) for stage in stages)}
        return flat_of(trained, spare_rows.is_table if self.transforms.by_rows else lambda path: False)

    def _with(
        self, program: devices.Program, inside: Callable[[Any], Any], outside: Callable[[Any], Any]
    ) -> devices.Program:
        """Returns a program that is handed states by path, of all combinations and no more."""
        place, fetch, read, groups = program.place, program.fetch, program.read, len(self.objective.counts)

        def read_known(metrics: Any) -> dict[str, np.ndarray]:
            found = read(metrics)
            return found | {name: found[name][:groups] for name in ("lambda", "group_loss_sum", "group_count")}

        return program._replace(
            place=lambda state: place(inside(states.with_spare_rows(state, self.spare))),
            fetch=lambda placed: states.without_spare_rows(outside(fetch(placed)), self.spare),
            read=read_known,
        )

    def _optimizer(self, start: int) -> optax.GradientTransformationExtraArgs:
        """Makes the optimizer whose clock begins at a step of the run."""
        optim, per_epoch = self.config.optim, self.num_train / self.config.train.batch_size
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
            lambda count: schedule(count + start),
            weight_decay=optim.weight_decay,
            clip=optim.clip,
            dro=self.objective.dro,
            by_rows=self.transforms.by_rows,
            first_moment=optim.first_moment,
            decay=optim.decay,
        )

    def _batches(self, store: pipeline.Store, step: int, stage: Stage) -> Iterator[pipeline.Batch]:
        """Yields training batches of a stage, read ahead as far as their order is known."""
        size, threads = self.config.train.batch_size, self.config.train.threads
        own, choose = devices.own_rows(size), self._chooser(store, stage)
        while step < stage.stop:
            end = min(stage.stop, self.sampler.known_until(step))
            options = {"threads": threads, "rows": own, "choose": choose}
            batches = pipeline.train_batches(store, self.sampler.order, size, step, end, **options)
            facts = {name: x[own] for name, x in self.sampler.facts(size).items()}
            with contextlib.closing(batches):
                yield from ({**batch, **facts} for batch in batches)
            step = end

    def _chooser(self, store: pipeline.Store, stage: Stage) -> pipeline.Choose:
        """Chooses the inputs of a stage's batches by the order that its sampler gives before it has observed any."""
        size, parts = self.config.train.batch_size, self.config.train.accumulate
        # What samples predict unhidden is asked of the whole batch, which is not dealt out to parts.
        if parts > 1 and self.objective.distills:
            return pipeline.all_inputs
        forecast = copy.deepcopy(self.sampler)  # which a record may be restored into in place
        forecast.restore(self._unobserved)
        steps, blocks = range(stage.start, stage.stop), present.Blocks(len(self.devices), parts)
        return self.model.rows.of_training(store, forecast.order, steps, size, blocks, devices.own_rows(size))

    def _evaluates(self, stage: Stage, step: int) -> bool:
        """Tells whether weights are judged after so many steps."""
        every = max(1, round(self.config.train.evaluate_every * self.num_train / self.config.train.batch_size))
        return (step - stage.start) % every == 0 or step == stage.stop

    def _stops(self, checkpoints: Checkpoints | None) -> int:
        """Returns the signal that asks all processes to stop now, 0 for none."""
        asked = self._agreement.ask(self.signals.asked)
        return asked if checkpoints is not None or not processes.is_first() else 0

    def _recorder(self, stage: Stage, cursor: Cursor, bar: progress.Silent) -> Recorder:
        options = {"every": self.config.train.log_every, "say": bar.say}
        return Recorder(self.folder, stage.name, cursor, groups=self.model.groups.names, **options)

    def _take(self, recorder: Recorder, step: int, metrics: Mapping[str, np.ndarray], close: bool = False) -> None:
        """Records the metrics of a step, and lets the sampler see them."""
        by_group = self.sampler.figures()
        self.sampler.observe(step, metrics)
        recorder.add(step, metrics, by_group, close)

    def _judge(self, stage: Stage, step: int, store: pipeline.Store, weights: Callable[[], Params]) -> None:
        """Lets the sampler look at the model, by the figure of its task that leads, and records what it finds."""

        @functools.cache
        def model() -> Predictor:
            return dataclasses.replace(self.model, params=self.judging(weights()), gate=stage.eval_gate)

        def utility(present: np.ndarray) -> float:
            positions, parts = np.arange(len(store)), np.tile(present, (len(store), 1))
            found = model().predict_parts(store, positions, parts).astype(np.float32)
            task = self.model.task
            value = task.tuning(store.columns["label"], found)[next(iter(task.compared))] or 0.0
            return value if task.more else -value

        found = self.sampler.judge(step, lambda present: float(devices.broadcast(np.float64(utility(present)))))
        if found:
            names = self.model.groups.modalities
            each = {
                f"{key}/{name}": float(x)
                for key, values in found.items()
                for name, x in zip(names, values, strict=True)
            }
            self.folder.log({"step": step, "stage": stage.name, **each})

    def _evaluate(self, stage: Stage, store: pipeline.Store, at: Position, bar: progress.Silent) -> None:
        """Judges the weights of a position by the tuning rows."""
        step, cursor, train = at.state.steps_done, at.cursor, self.config.train
        weights = self.judging(at.state.weights())
        if not len(store):
            at.best, cursor.chosen = weights, {"stage": stage.name, "step": step}
            return
        predicted = self.predict(weights, store, stage.eval_gate)
        values = self.model.task.tuning(predicted.labels, predicted.probabilities)
        record = {f"eval/{name}": value for name, value in values.items()}
        self.folder.log({"step": step, "stage": stage.name, **record, "gate/eval_open_rate": predicted.open_rate})
        bar.note(step, stage.name, values)
        if cursor.improves(values, train.select):
            at.best, cursor.chosen = weights, {"stage": stage.name, "step": step, **values}
        may_end = stage is self.stages[-1] or train.keep_better_stage
        cursor.ended = bool(train.patience) and may_end and cursor.waited >= train.patience

    def _save(self, checkpoints: Checkpoints | None, step: int, at: Position) -> None:
        if checkpoints is not None:
            record = {"cursor": dataclasses.asdict(at.cursor), "sampler": self.sampler.record()}
            self.folder.sync()
            checkpoints.save(step, {"state": at.state, "best": at.best}, record)

    @contextlib.contextmanager
    def _checkpoints(self, say: Callable[[str], None]) -> Iterator[Checkpoints | None]:
        """Opens the checkpoints on the first process; yields None on the others, which fail where it does, and
        without a folder.
        """
        path, keep, own = self.folder.path, self.config.train.keep, []
        with contextlib.ExitStack() as opened:

            def open_them() -> None:
                if path is not None:
                    made = Checkpoints(path / "checkpoints", keep, say=say)
                    own.append(opened.enter_context(contextlib.closing(made)))

            processes.run_on_first(open_them)
            yield own[0] if own else None


def _newest(checkpoints: Checkpoints | None) -> dict[str, Any] | None:
    """Returns what all processes must know of the checkpoint that a run goes on from, arrays apart."""
    step = checkpoints.newest_whole() if checkpoints is not None else None
    if step is None:
        return None
    record = checkpoints.record(step)
    return {"step": step, **{key: record.get(key) for key in ("cursor", "sampler")}}
