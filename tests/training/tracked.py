"""Reads back what trackers have written: figures by name, step and value, in the order of steps."""

import json
import pathlib
import sqlite3
import struct
import time
import warnings
from collections.abc import Iterator
from typing import Any

from tensorboardX import record_writer
from tensorboardX.proto import event_pb2
from wandb.proto import wandb_internal_pb2

Scalar = tuple[str, int, float]


def tensorboard(run: pathlib.Path) -> list[Scalar]:
    """What event files hold, by their format: length, its checksum, an event, its checksum."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            body = data[at + 12 : at + 12 + length]
            (checksum,) = struct.unpack_from("<I", data, at + 12 + length)
            assert checksum == record_writer.masked_crc32c(body)
            event = event_pb2.Event.FromString(body)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += length + 16
    return found


def mlflow_runs(runs: pathlib.Path) -> dict[str, Any]:
    """The runs in the database of a folder, by name, as MLflow's client tells them."""
    client = mlflow_client(runs)
    experiments = {found.experiment_id: found.name for found in client.search_experiments()}
    runs_by_name = {run.info.run_name: run for run in client.search_runs(list(experiments))}
    for run in runs_by_name.values():
        run.experiment = experiments[run.info.experiment_id]
    return runs_by_name


def mlflow(run: pathlib.Path) -> list[Scalar]:
    """The metrics of a run of MLflow, with all their history."""
    client, (one,) = (
        mlflow_client(run.parent),
        [one for name, one in mlflow_runs(run.parent).items() if name == run.name],
    )
    known = {name: client.get_metric_history(one.info.run_id, name) for name in one.data.metrics}
    with sqlite3.connect(run.parent / "mlflow.db") as database:
        (count,) = database.execute("SELECT count(*) FROM metrics WHERE run_uuid = ?", (one.info.run_id,)).fetchone()
    assert count == sum(map(len, known.values()))
    found = [(name, metric.step, metric.value) for name, history in known.items() for metric in history]
    return sorted(found, key=lambda scalar: scalar[1])


def mlflow_client(runs: pathlib.Path) -> Any:
    """A client of the database of a folder, which is made if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db")


def wandb_records(run: pathlib.Path) -> list[Any]:
    """The records of the one offline run of a folder, once the service has written its end."""
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(1_000):
        records = [wandb_internal_pb2.Record.FromString(body) for body in _log(file.read_bytes())]
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.01)
    raise AssertionError(f"{file} has no end")


def wandb(run: pathlib.Path) -> list[Scalar]:
    """The history of an offline run."""
    found = []
    for record in wandb_records(run):
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        found += [
            (name, items["_step"], value)
            for name, value in items.items()
            if not name.startswith("_") and not isinstance(value, str)
        ]
    return found


def _log(data: bytes) -> Iterator[bytes]:
    """The contents of a file as LevelDB writes its log: in blocks of 32 KiB, whole (1) or cut (2, 3, 4)."""
    assert data[:4] == b":W&B"
    at, body = 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if left < 7 or not kind:
            at += left
            continue
        body += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield body
            body = b""


READERS = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
