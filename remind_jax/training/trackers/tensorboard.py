"""TensorBoard event files in the run folder, written without TensorFlow."""

import time
from collections.abc import Iterable

from remind_jax.runtime import files
from remind_jax.training.trackers.tracker import Record, Run, numbers


class TensorBoard:
    """Scalars under RUN/tensorboard, on the disk as soon as they are written; see `Tracker`."""

    needs = ("tensorboardX",)

    def __init__(self, run: Run):
        self.environment, self._folder, self._writer = {}, run.folder / "tensorboard", None

    def restart(self, records: Iterable[Record]) -> None:
        # Below SummaryWriter, which writes from a thread, so that a flush there says nothing of what is on disk.
        from tensorboardX.event_file_writer import EventsWriter

        self.close(finished=False)
        files.remove(self._folder)
        self._folder.mkdir(parents=True)
        self._writer = EventsWriter(str(self._folder / "events"))
        for record in records:
            self._write(record)
        self._writer.flush()

    def add(self, record: Record) -> None:
        self._write(record)
        self._writer.flush()

    def _write(self, record: Record) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(record)]
        self._writer.write_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))

    def close(self, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
