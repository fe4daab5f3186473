"""MLflow's database next to the run folders, which all runs there share."""

import contextlib
import hashlib
import logging
import re
import sqlite3
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from remind_jax.config import leaves
from remind_jax.runtime import files
from remind_jax.training.trackers.tracker import Record, Run, numbers

_NAME = "mlflow"
_MOST = {"metrics": 1_000, "params": 100}  # that MLflow takes in one call
_LONGEST = 250  # name of a metric


class MLflow:
    """A run of MLflow in `mlflow.db` of the folder above the run's, named as the run; its experiment is the data set.

    Nothing is stored as an artifact. See `Tracker`.
    """

    needs = (_NAME, "sqlalchemy", "alembic")

    def __init__(self, run: Run):
        self.environment = {"MLFLOW_DISABLE_TELEMETRY": "true"}
        self._run, self._client, self._id = run, None, ""
        self._file = run.folder.absolute().parent / "mlflow.db"

    def restart(self, records: Iterable[Record]) -> None:
        if self._client is None:
            self._client = self._open()
            self._id = self._known() or self._new()
        self._client.update_run(self._id, status="RUNNING")
        self._forget()
        self._write("metrics", [metric for record in records for metric in self._metrics(record)])

    def add(self, record: Record) -> None:
        self._write("metrics", self._metrics(record))
        if "stage" in record:
            self._client.set_tag(self._id, "stage", record["stage"])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _open(self) -> Any:
        files.refuse_links(self._file)
        # The lock is held while tables are made: of several processes MLflow lets each make them, and all fail.
        with files.lock(self._file.with_name(".mlflow.lock")), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # SQLAlchemy's, of how MLflow uses it
            from mlflow import MlflowClient

            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells how it makes its tables
            # A client of its own: whatever else this process does with MLflow keeps its server and its active run.
            return MlflowClient(tracking_uri=f"sqlite:///{self._file}?timeout=60")  # seconds to wait for other runs

    def _known(self) -> str | None:
        """Returns the id that the run has had, unless its folder has come here without the database."""
        from mlflow.exceptions import MlflowException

        found = self._run.known_as(_NAME)
        with contextlib.suppress(MlflowException):
            return found and self._client.get_run(found).info.run_id
        return None

    def _new(self) -> str:
        from mlflow.entities import Param

        made = self._client.create_run(self._experiment(), run_name=self._run.folder.absolute().name)
        self._id = made.info.run_id
        self._write("params", [Param(path, str(value)) for path, value in leaves(self._run.config)])
        self._run.keep_id(_NAME, self._id)
        return self._id

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name, artifacts = self._run.project, str(self._file.with_name("mlartifacts"))
        try:
            return self._client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:  # it exists; asked first, two runs that begin at once would both make it
            return self._client.get_experiment_by_name(name).experiment_id

    def _forget(self) -> None:
        """Deletes the metrics of the run, which MLflow has no call for."""
        with contextlib.closing(sqlite3.connect(self._file, timeout=60)) as database, database:
            for table in ("metrics", "latest_metrics"):
                database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (self._id,))

    def _metrics(self, record: Record) -> list[Any]:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        return [Metric(_allowed(name), float(value), now, record["step"]) for name, value in numbers(record)]

    def _write(self, kind: str, entities: Sequence[Any]) -> None:
        for start in range(0, len(entities), _MOST[kind]):
            self._client.log_batch(self._id, **{kind: entities[start : start + _MOST[kind]]})


def _allowed(name: str) -> str:
    """Writes a name as MLflow allows it: the combination a+b as a:b, the end of a long name as a digest."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return re.sub(r"[^/\w.\- :]", ":", name)
