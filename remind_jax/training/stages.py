"""The plan of a run in stages."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from remind_jax.models.encoders.registry import has_trunk
from remind_jax.models.model import is_group_router, is_joint, is_statistic
from remind_jax.models.spec import ModalityInput


class Stage(NamedTuple):
    """A stretch of training.

    Attributes:
      name: `joint` or `specialize`.
      start, stop: first step, and the step before which it ends.
      is_frozen: whether the parameter of a path is left as it is.
      train_gate, eval_gate: whether group routers act.
      robust: whether group weights act and move.
      statistics: whether batch norms use and update the statistics of the batch.
      means: whether the running means of modalities move (model.imputation=mean).
      apart: whether the predictors of single modalities learn, each by itself, and nothing else.
      rests: whether the trunks of encoders are frozen and work without dropout, so that their features can be kept.
    """

    name: str
    start: int
    stop: int
    is_frozen: Callable[[str], bool]
    train_gate: str
    eval_gate: str
    robust: bool
    statistics: bool = False
    rests: bool = False
    apart: bool = False
    means: bool = False

    def network_options(self, axis_name: str | None) -> dict[str, Any]:
        """Returns what a train step tells the network, the gate apart; `axis_name` is that of the devices."""
        given = {"statistics": self.statistics, "means": self.means, "resting": self.rests}
        given = {name: True for name, is_on in given.items() if is_on}
        return given | ({"axis_name": axis_name} if self.statistics or self.means else {})


def plan_stages(config: Any, num_train: int, inputs: Mapping[str, ModalityInput]) -> list[Stage]:
    """Plans the stages of a run; methods without group routers have one, unless `train.baselines_two_stage` holds."""
    train, fusion = config.train, config.fusion
    per_epoch = num_train / train.batch_size
    stop = max(1, round(train.epochs * per_epoch))
    routed = fusion.group_routers
    joint = min(round(train.joint_epochs * per_epoch), stop) if routed or train.baselines_two_stage else stop

    def is_encoder(path: str) -> bool:
        section, _, rest = path.partition("/")
        if section != "encoders" or train.freeze == "nothing":
            return False
        # The maps into the fusion width stay trainable, of which a patch encoder is one as a whole (peers' point 45).
        projection = not has_trunk(inputs[rest.split("/")[0]].encoder) or "/adapter/" in path
        return train.freeze == "encoders+projections" or not projection

    late = config.dro.stages == "specialize" and joint < stop
    apart = config.objective.pretrain and joint < stop
    means = config.model.imputation == "mean"
    trains_norms = config.train.batch_norm == "batch"
    stages = [
        Stage(
            name="joint",
            start=0,
            stop=joint,
            is_frozen=lambda path: is_statistic(path) or is_group_router(path) or (apart and is_joint(path)),
            train_gate="never",
            eval_gate="never",
            robust=not late,
            statistics=trains_norms,
            apart=apart,
            means=means,
        ),
        Stage(
            name="specialize",
            start=joint,
            stop=stop,
            is_frozen=lambda path: is_statistic(path) or is_encoder(path),
            train_gate=fusion.train_gate if routed else "never",
            eval_gate=fusion.eval_gate if routed else "never",
            robust=True,
            statistics=trains_norms and train.freeze == "nothing",
            rests=train.freeze != "nothing",
            means=means,
        ),
    ]
    return [stage for stage in stages if stage.stop > stage.start]
