"""What a run would cost: parameters, operations, memory; nothing is trained and no array is allocated."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax import tasks
from remind_jax.config import validate
from remind_jax.data import dataset as datasets
from remind_jax.data import splits
from remind_jax.data.outline import OUTLINES, Outline
from remind_jax.errors import UserError
from remind_jax.inference.present import PresentRows, abstract_batch
from remind_jax.methods import METHODS, PLAIN, in_stack
from remind_jax.models.model import is_statistic
from remind_jax.models.network import ensemble_of, make_network
from remind_jax.models.spec import model_spec
from remind_jax.ops import flops
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.task import Task
from remind_jax.training import stack
from remind_jax.training.run import make_trainer
from remind_jax.training.run_folder import InMemory
from remind_jax.training.stages import Stage, plan_stages

GIB = 2**30


# Which part of a fusion block a parameter belongs to, by the start of its name.
_PARTS = {
    "expert": "experts",
    "group_router": "group routers",
    "router": "router",
    "query_key_value": "attention",
    "output": "attention",
}


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Memory and work of one stage of training.

    Attributes:
      name: of the stage.
      trained: number of trained parameters.
      state_bytes: weights, gradient, optimizer moments and averaged weights of one device.
      activation_bytes: what the forward pass of a device's share of a batch keeps, before XLA saves on it.
      step_flops: of one train step over the whole batch.
      steps: of the stage, unless it ends early.
    """

    name: str
    trained: int
    state_bytes: int
    activation_bytes: int
    step_flops: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Costs of a run.

    Attributes:
      parameters: number of parameters by part, 0 where there are none.
      sample_flops: operations of a forward pass of one sample by part, likewise.
      present_flops: the same in the mean over samples, of which an encoder that may runs on those that have its
        modality; capacities of batches lie above it.
      stages: of training.
      tokens: n, tokens of all modalities in the fusion.
      row_bytes: size of one sample as the model reads it.
      samples: number of samples of the data set.
    """

    parameters: Counter[str]
    sample_flops: Counter[str]
    present_flops: Counter[str]
    stages: tuple[StageCost, ...]
    tokens: int
    row_bytes: int
    samples: int

    @property
    def train_flops(self) -> int:
        """Operations of all train steps."""
        return sum(stage.steps * stage.step_flops for stage in self.stages)


class StackPlan(NamedTuple):
    """Costs of a stack: plans of a fold's networks by method, names of its plain models, and the plan of one `remind`.

    The steps are those over all samples, of which a fold trains on less.
    """

    networks: Mapping[str, Plan]
    plain: Sequence[str]
    one: Plan


def plan_stack(config: Any) -> StackPlan:
    """Works out what the candidates of a stack cost. Raises UserError as `make_plan` does, or for a candidate."""
    validate(config)
    names = stack.candidates(config, _outline(config)[1].name)
    networks = {name: make_plan(in_stack(config, name, -1)) for name in names if name in METHODS}
    plain = [name for name in names if name in PLAIN]
    return StackPlan(networks, plain, networks.get("remind") or make_plan(in_stack(config, "remind", -1)))


def make_plan(config: Any) -> Plan:
    """Works out what a config costs, from shapes alone; `devices` 0 counts as one device.

    Raises UserError: a value of the config cannot be used, its method has no network, or data that are not the paper's
    cannot be read.
    """
    validate(config)
    if config.method in PLAIN:
        raise UserError(f"method={config.method} has no network: there is nothing to plan")
    outline, task, labels = _outline(config)
    config = datasets.with_text_encoder(config, outline.samples)
    single = make_network(model_spec(config), outline.inputs, outline.groups, task.outputs, task.mean_logits)
    network = ensemble_of(single, config.ensemble)
    params = network.shapes
    stages = plan_stages(config, outline.samples, outline.inputs)

    def forward(params, batch):
        return network.apply(params, batch, gate=stages[-1].eval_gate)

    counted = flops.count(forward, params, abstract_batch(outline.inputs, 1))
    spared = PresentRows(config.encode, single, outline.inputs).operations[0] > 0
    rates = {f"encoders/{name}": outline.present[i] for i, name in enumerate(outline.inputs) if spared[i]}
    present = Counter({part: round(rates.get(part, 1.0) * work) for part, work in counted.items()})
    parameters: Counter[str] = Counter()
    for path, shape in params.items():
        if not is_statistic(path):
            parameters[_part(path)] += math.prod(shape.shape)
    tokens = jax.eval_shape(network.encode, params, abstract_batch(outline.inputs, 1)).shape[-2]
    loss = task.loss, labels
    costs = tuple(_stage_cost(config, stage, network, outline, params, loss) for stage in stages)
    row = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in outline.inputs.values())
    return Plan(parameters, counted, present, costs, tokens, row, outline.samples)


def step_flops(config: Any) -> float | None:
    """Counts the operations of a training step of the last stage for each sample, all that its loss asks for included.

    The data are read and prepared for it, and weights are drawn, but no step is run. None for a plain model.
    """
    if config.method in PLAIN:
        return None
    data = datasets.load_dataset(config)
    config = datasets.with_text_encoder(config, data.manifest.table.height)
    trainer = make_trainer(config, data, InMemory(config.to_dict()))
    return trainer.step_flops(data.stores["train"]) / config.train.batch_size


def _outline(config: Any) -> tuple[Outline, Task, np.ndarray]:
    """Returns the data set of a config, its task, and an array of labels of the kind that its batches have."""
    outline = OUTLINES.get(config.data.source)
    if outline is not None and not config.data.root:
        found = outline(config.data)
        names, shares = tuple(map(str, range(found.classes))), np.full(found.classes, 1.0 / found.classes)
        return found, Classes.of_shares(names, config, shares), np.zeros(1, np.int32)
    fitted = datasets.fit(config)
    manifest, inputs = fitted.manifest, fitted.preprocessor.inputs
    tasks.check(manifest.schema.task, config)
    task = tasks.fit(manifest.schema, config, manifest.labels[fitted.split == splits.TRAIN])
    sizes = len(fitted.groups), len(manifest.schema.classes), manifest.table.height
    return Outline(inputs, *sizes, manifest.presence.mean(axis=0)), task, manifest.labels_of_batches


def _part(path: str) -> str:
    section, _, rest = path.partition("/")
    if section == "encoders":
        return f"encoders/{rest.split('/')[0]}"
    if not section.startswith("block_"):
        return section
    part = next((part for start, part in _PARTS.items() if rest.startswith(start)), "norms" if "norm" in rest else "")
    return f"{section}/{part}".removesuffix("/")


def _stage_cost(
    config: Any,
    stage: Stage,
    network: Any,
    outline: Outline,
    params: Mapping[str, Any],
    loss: tuple[Callable[..., jax.Array], np.ndarray],
) -> StageCost:
    """Works out a stage; `loss` is that of single samples, and an array of labels that tells what theirs are."""
    size, (loss_of, labels) = config.train.batch_size // max(config.devices, 1), loss
    label = jax.ShapeDtypeStruct((size, *labels.shape[1:]), labels.dtype)
    batch = abstract_batch(outline.inputs, size) | {"label": label}
    trained = {path: x for path, x in params.items() if not stage.is_frozen(path)}
    frozen = {path: x for path, x in params.items() if path not in trained}

    def mean_loss(trained, frozen, batch):
        output = network.apply({**trained, **frozen}, batch, gate=stage.train_gate, statistics=stage.statistics)
        return jnp.mean(loss_of(output.logits, batch["label"]))

    counts = [sum(math.prod(x.shape) for x in part.values()) for part in (trained, frozen)]
    copies = 4 + (config.optim.ema > 0)  # weights, gradient, two moments, average
    return StageCost(
        name=stage.name,
        trained=counts[0],
        state_bytes=4 * (copies * counts[0] + counts[1]),
        activation_bytes=_kept_bytes(mean_loss, trained, frozen, batch),
        step_flops=flops.count(jax.grad(mean_loss), trained, frozen, batch).total() * max(config.devices, 1),
        steps=stage.stop - stage.start,
    )


def _kept_bytes(loss: Any, trained: Any, *rest: Any) -> int:
    """Counts the bytes that the backward pass needs of the forward pass, its inputs left out."""
    trace = jax.make_jaxpr(lambda trained, *rest: jax.vjp(lambda p: loss(p, *rest), trained)[1])(trained, *rest).jaxpr
    inputs = {id(variable) for variable in (*trace.invars, *trace.constvars)}
    # The same array may be kept under several names; a literal, which has a value already, costs nothing.
    kept = {id(x): x.aval for x in trace.outvars if not hasattr(x, "val") and id(x) not in inputs}
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in kept.values())
