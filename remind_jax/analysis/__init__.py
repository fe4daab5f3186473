"""The analyses of the paper on finished runs, and how they open a run."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from remind_jax import settings
from remind_jax.data import dataset as datasets
from remind_jax.data import splits
from remind_jax.errors import UserError, did_you_mean
from remind_jax.models.model import Network, Params, ensemble_of, make_network
from remind_jax.runtime import progress
from remind_jax.training import optimizer as states
from remind_jax.training import row_adamw
from remind_jax.training.checkpoint import Checkpoints
from remind_jax.training.loop import initial_params
from remind_jax.training.objective import make_dro, objective_counts
from remind_jax.training.stages import Stage, plan_stages

ADAPTED = "adapted"
"""The key by which the config of a folder that `adapt` wrote is known."""


def read_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a finished run, from its config.json; no Python that lies in the folder is run.

    Raises:
      UserError: the folder holds no finished run, or its config is not one of this version.
    """
    file = path / "config.json"
    if not file.is_file():
        beside = [str(config.parent) for config in sorted(path.parent.glob("*/config.json"))]
        hint = f"{did_you_mean(str(path), beside)}; runs there: {', '.join(beside[:10])}" if beside else ""
        raise UserError(f"{path} holds no run: config.json is missing{hint}")
    # Opening checkpoints clears away what a run in progress is writing.
    if not (path / "report.json").is_file():
        raise UserError(f"the run in {path} is not finished: give its command again to go on")
    try:
        config = ml_collections.ConfigDict(json.loads(file.read_text(encoding="utf-8")))
        settings.validate(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (KeyError, AttributeError) as error:
        key = str(error).strip("\"'")
        raise UserError(f"{file} is of another version, without the key {key}: train the run again") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not a config of this version: {error}") from error
    return config


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      path: its folder.
      config: its settings.
      data: its data set, prepared again.
      network: its network.
      stages: its plan.
    """

    path: pathlib.Path
    config: ml_collections.ConfigDict
    data: datasets.Dataset
    network: Network
    stages: list[Stage]

    @property
    def eval_gate(self) -> str:
        """Whether group routers act in evaluation."""
        return self.stages[-1].eval_gate

    def weights(self) -> Iterator[tuple[int, Params]]:
        """Steps and parameters for evaluation: the initial ones, then those of each checkpoint that was kept.

        Raises:
          UserError: the data are not those that the run was trained on.
        """
        initial = initial_params(self.config, self.network, self.data.inputs)
        yield 0, initial
        with contextlib.closing(Checkpoints(self.path / "checkpoints", keep=0, read_only=True)) as checkpoints:
            for step in checkpoints.steps():
                yield step, self._restore(checkpoints, step, initial)["state"].weights()

    def chosen(self) -> Params:
        """The parameters that the run's report was made with.

        Raises:
          UserError: the data are not those that the run was trained on.
        """
        initial = initial_params(self.config, self.network, self.data.inputs)
        with contextlib.closing(Checkpoints(self.path / "checkpoints", keep=0, read_only=True)) as checkpoints:
            return self._restore(checkpoints, checkpoints.steps()[-1], initial)["best"]

    def _restore(self, checkpoints: Checkpoints, step: int, params: Params) -> dict[str, Any]:
        record = checkpoints.record(step)
        if record["preprocessor"] != json.loads(json.dumps(self.data.preprocessor.to_dict())):
            raise UserError(f"the data have changed since the run in {self.path} was trained: other contents")
        return checkpoints.arrays(step, self._like(self.stages[record["cursor"]["stage"]], params))

    def _like(self, stage: Stage, params: Params) -> dict[str, Any]:
        """Structure and shapes of a checkpoint of a stage."""
        return checkpoint_shapes(self.config, stage, params, self.data.label_counts)


def checkpoint_shapes(config: Any, stage: Stage, params: Params, label_counts: np.ndarray) -> dict[str, Any]:
    """Structure and shapes of a checkpoint of a run's stage.

    Args:
      config: of the run.
      stage: in which it was saved.
      params: of the network, or their shapes.
      label_counts: train rows by group and class, [g, c].
    """
    optim, dro = config.optim, make_dro(config, objective_counts(config, label_counts))
    by_rows = row_adamw.only_of_batch(config, len(label_counts))
    optimizer = states.make_optimizer(
        optax.constant_schedule(0.0),
        weight_decay=optim.weight_decay,
        clip=optim.clip,
        dro=dro,
        by_rows=by_rows,
        first_moment=optim.first_moment,
    )

    def start(params: Params) -> states.TrainState:
        ema = optim.ema > 0
        return states.start(params, stage.is_frozen, optimizer, stage.start, ema, config.ensemble, by_rows)

    state = jax.eval_shape(start, params)
    return {"state": state, "best": params}


def output_folder(path: pathlib.Path) -> pathlib.Path:
    """The folder under a run that analyses write to, made where it is missing.

    Raises:
      UserError: it cannot be made.
    """
    folder = path / "analysis"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    return folder


def open_run(path: pathlib.Path) -> Run:
    """Reads a finished run's config and prepares its data and network anew.

    Raises:
      UserError: the folder holds no finished run, or its data cannot be used or are others by now.
    """
    config = read_config(path)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path} holds no checkpoints")
    if ADAPTED in config:
        raise UserError(f"{path} holds an adapted run: analyses take the run that it was made from")
    with progress.make(0, "preparing") as bar:
        data = datasets.load_dataset(config, bar.count)
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    if report["split_digest"] != splits.split_digest(data.dealt):
        raise UserError(f"the data have changed since the run in {path} was trained: other rows or splits")
    single = make_network(settings.model_spec(config), data.inputs, len(data.groups), len(data.classes))
    network = ensemble_of(single, config.ensemble)
    return Run(path, config, data, network, plan_stages(config, len(data.stores["train"]), data.inputs))
