"""A stack as one network: the weighted mean of the predictions of networks and plain models, each of several folds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from remind_jax.data.preprocess import Preprocessor
from remind_jax.errors import UserError
from remind_jax.inference import plain
from remind_jax.models.model import Batch, Output, Params
from remind_jax.models.network import Network, ensemble_of, make_network
from remind_jax.models.spec import model_spec
from remind_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Member:
    """One member of a stack, whose arrays have paths below its name: NAME/PATH, of a plain model NAME/FOLD/PATH.

    Attributes:
      name: a key of METHODS or of `plain.FORMS`.
      weight: of its predictions, which are means over its folds.
      gate: of a network, see `Predictor`.
      config: of a network, the ensemble of those of all folds; None of a plain model.
    """

    name: str
    weight: float
    gate: str = "never"
    config: ml_collections.ConfigDict | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the member for JSON."""
        return {**vars(self), "config": self.config and self.config.to_dict()}


def below(params: Mapping[str, Any], name: str) -> Params:
    """Returns the arrays below a name, by the rest of their paths."""
    return {path.removeprefix(f"{name}/"): x for path, x in params.items() if path.startswith(f"{name}/")}


def untuned(task: Task) -> Task:
    """Returns the task whose predictions are those of single networks, without what recalibrates the whole."""
    uncalibrated = {"temperature": 1.0, "curves": ()}
    return dataclasses.replace(task, **{key: x for key, x in uncalibrated.items() if key in vars(task)})


def network_of(
    members: Sequence[Member], params: Mapping[str, Any], preprocessor: Preprocessor, groups: int, task: Task
) -> Network:
    """Makes the network of a stack; its parameters are those of all members, and its features the networks' mean.

    `params`, which tell the shapes of plain models' arrays, are by path; `groups` is the number of combinations.
    """
    task, networks = untuned(task), {}
    for member in members:
        if member.config is not None:
            known = preprocessor.inputs, groups, task.outputs, task.mean_logits
            networks[member.name] = ensemble_of(make_network(model_spec(member.config), *known), member.config.ensemble)

    def apply(params: Params, batch: Batch, **options: Any) -> Output:
        del options
        rows, total, features = batch["present"].shape[0], 0.0, 0.0
        seen = plain.seen(preprocessor, batch) if len(networks) < len(members) else None
        for member in members:
            own = below(params, member.name)
            if member.name in networks:
                output = networks[member.name].apply(own, batch, gate=member.gate)
                found = task.predictions(output.logits.astype(jnp.float32))
                features += member.weight * output.features.astype(jnp.float32)
            else:
                folds = sorted({path.split("/")[0] for path in own})
                found = sum(plain.predict(member.name, below(own, k), seen, task) for k in folds) / len(folds)
            total += member.weight * found
        features = features if networks else jnp.zeros((rows, 0))
        return Output(task.logits(total), features, observed=batch["present"], open_rate=jnp.zeros(rows))

    shapes = {f"{name}/{path}": x for name, each in networks.items() for path, x in each.shapes.items()}
    shapes |= {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for path, x in params.items()
        if path.split("/")[0] in {member.name for member in members} - set(networks)
    }
    return Network(init=lambda seed: {}, apply=apply, encode=_refuse, fuse=_refuse, shapes=shapes)


def _refuse(*arguments: Any, **options: Any) -> Any:
    raise UserError("a stack has the tokens of several networks: take one of them, whose runs are below members/")
