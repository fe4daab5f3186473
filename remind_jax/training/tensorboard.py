"""TensorBoard event files next to metrics.jsonl, written without TensorFlow."""

import pathlib
import shutil
import time
from collections.abc import Iterable, Mapping
from typing import Any

from remind_jax.errors import needs


class EventFiles:
    """The records of metrics.jsonl as scalars for TensorBoard.

    They are a copy: whoever goes on with a run writes the records that it keeps anew, so that no step is there twice.
    """

    def __init__(self, folder: pathlib.Path):
        """Writes nothing yet; the first record empties the folder. Raises UserError: tensorboardX is not installed."""
        try:
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError as error:
            raise needs("tensorboardX", "track") from error
        # Below SummaryWriter, which writes from a thread, so that a flush there says nothing of what is on disk.
        self._open, self._event, self._summary = event_file_writer.EventsWriter, event_pb2.Event, summary_pb2.Summary
        self._folder, self._writer = folder, None

    def restart(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Begins anew with the records that stay."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._writer = self._open(str(self._folder / "events"))
        for record in records:
            self._add(record)
        self._writer.flush()

    def add(self, record: Mapping[str, Any]) -> None:
        """Writes the numbers of a record at its step."""
        if self._writer is None:
            self.restart([])
        self._add(record)
        self._writer.flush()

    def _add(self, record: Mapping[str, Any]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        ]
        event = self._event(wall_time=time.time(), step=record["step"], summary=self._summary(value=values))
        self._writer.write_event(event)

    def close(self) -> None:
        """Closes the file that is open, if there is one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
