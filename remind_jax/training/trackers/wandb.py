"""Files of Weights & Biases in the run folder, which nothing here sends anywhere: the user may, by `wandb sync`."""

import sys
import uuid
from collections.abc import Iterable

from remind_jax.runtime import files
from remind_jax.training.trackers.tracker import Record, Run, numbers

_NAME = "wandb"
# Beyond settings and figures it would write down the machine, its user, the packages and the repository.
_SETTINGS = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "silent": True,
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandB:
    """An offline run under RUN/wandb, named as the run; its project is the data set, its group the folder above.

    See `Tracker`.
    """

    needs = (_NAME,)

    def __init__(self, run: Run):
        self._about, self._run, self._folder = run, None, run.folder.absolute() / _NAME
        self.environment = {"WANDB_ERROR_REPORTING": "false"}
        self.environment |= {f"WANDB_{kind}_DIR": str(self._folder) for kind in ("CACHE", "CONFIG", "DATA")}

    def restart(self, records: Iterable[Record]) -> None:
        import wandb

        if self._run is not None:
            self._run.finish()
        files.refuse_links(self._folder)
        about, hooks, former = self._about, (sys.exit, sys.excepthook), [*self._folder.glob("offline-run-*")]
        if (name := about.known_as(_NAME)) is None:
            name = uuid.uuid4().hex[:8]
            about.keep_id(_NAME, name)
        self._run = wandb.init(
            mode="offline",
            dir=self._folder.parent,
            id=name,
            name=self._folder.parent.name,
            group=self._folder.parent.parent.name,
            project=about.project,
            config=dict(about.config),
            reinit="create_new",  # next to a run that this process may have of its own
            settings=wandb.Settings(**_SETTINGS, x_sync_dir_suffix=uuid.uuid4().hex[:4]),  # no two in one folder
        )
        sys.exit, sys.excepthook = hooks  # wandb puts its own in their place, to know how a process ended
        for folder in former:  # which the service, in another process, has written to the end by now
            files.remove(folder)
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        stage = {"stage": record["stage"]} if "stage" in record else {}
        self._run.log(stage | dict(numbers(record)), step=record["step"])

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
