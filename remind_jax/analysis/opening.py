"""Opens finished runs for analyses: the trained model, the data prepared again, and the weights of checkpoints."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import ml_collections

from remind_jax.data import dataset as datasets
from remind_jax.errors import UserError
from remind_jax.inference import model_files, model_folder
from remind_jax.inference.predictor import Predictor
from remind_jax.models.model import Params
from remind_jax.models.network import initial_params
from remind_jax.runtime import files, progress
from remind_jax.tasks.task import Task
from remind_jax.training.checkpoint import Checkpoints
from remind_jax.training.run_folder import refuse_changed
from remind_jax.training.stages import Stage, plan_stages


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, its trained model, its data set, prepared again, and its stages of training."""

    path: pathlib.Path
    model: Predictor
    data: datasets.Dataset
    stages: list[Stage]

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The run's config."""
        return self.model.config

    @property
    def task(self) -> Task:
        """What the run predicts."""
        return self.model.task

    @property
    def titles(self) -> dict[str, str]:
        """What figures call each modality, in declared order."""
        return {each.name: each.title or each.name for each in self.data.manifest.schema.modalities}

    def trajectory(self) -> Iterator[tuple[int, Params]]:
        """Yields steps and parameters for evaluation: the initial ones, then those of each checkpoint that was kept.

        Raises UserError: no checkpoints are left, or one is damaged.
        """
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            raise UserError(f"{self.path} holds no checkpoints, whose weights this analysis looks at")
        yield 0, initial_params(self.config, self.model.network, self.data.inputs)
        with contextlib.closing(Checkpoints(folder, keep=0, read_only=True)) as checkpoints:
            for step in checkpoints.steps():
                state = checkpoints.arrays(step)["state"]
                yield step, {path: x for part in ("frozen", "params", "ema") for path, x in (state[part] or {}).items()}


def output_folder(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder under a run that analyses write to, made where it is missing; if it cannot be, a UserError."""
    folder = path / "analysis"
    files.refuse_links(folder)
    with files.writing(folder):
        files.make_folder(folder, private=True)
    return folder


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuses runs of different modalities (UserError)."""
    if len({run.data.groups.modalities for run in runs}) > 1:
        raise UserError("the runs are of different modalities: their combinations cannot stand side by side")


def same_task(runs: Sequence[Run]) -> Task:
    """Returns what runs predict, that of the first. Raises UserError: they are of different tasks."""
    if len(asked := list(dict.fromkeys(run.task.name for run in runs))) > 1:
        raise UserError(f"the runs are of different tasks: {', '.join(asked)}")
    return runs[0].task


def open_run(path: pathlib.Path) -> Run:
    """Opens a finished run and prepares its data anew.

    Raises UserError: the folder holds no finished run, or its data cannot be used or are others by now.
    """
    model = model_folder.open_model(path)
    config = model.config
    if model_files.ADAPTED in config:
        raise UserError(f"{path} holds an adapted run: analyses take the run that it was made from")
    with progress.make(0, "preparing") as bar:
        fitted = datasets.fit(config)
        refuse_changed(path, model, fitted)
        data = datasets.prepare(fitted, config.data, bar)
    return Run(path, model, data, plan_stages(config, len(data.stores["train"]), data.inputs))


def open_runs(
    paths: Sequence[pathlib.Path], check: Callable[[pathlib.Path, ml_collections.ConfigDict], None] | None = None
) -> Iterator[Run]:
    """Opens runs in turn, with progress.

    All configs are read, and checked, before anything slow starts, so that a mistake costs nothing; `check` raises a
    UserError for a path and config that the analysis cannot use.
    """
    for path in paths:
        config = model_folder.read_config(path)
        if check:
            check(path, config)
    with progress.make(len(paths), "runs") as bar:
        for number, path in enumerate(paths):
            bar.advance(number, path.name)
            yield open_run(path)
