"""Where the runs of a sweep are run: by processes of this machine, or by a cluster of Ray.

Both are given the same: a command line, and a config as JSON on standard input; a run's results are the files of its
folder.
"""

import json
import sys
from collections.abc import Iterator, Sequence

from remind_jax import cli, methods
from remind_jax.config import complete
from remind_jax.data import builder
from remind_jax.data import dataset as datasets
from remind_jax.runtime import cluster, jobs, progress
from remind_jax.studies.entries import Entry, Options

_RUN = "from remind_jax.studies import runner; runner.child()"
_PREPARE = "from remind_jax.studies import engines; engines.child()"


def events(entries: Sequence[Entry], options: Options, descriptor: int, bar: progress.Silent) -> Iterator[jobs.Event]:
    """Runs entries and yields when each begins and ends; processes of this machine hold the descriptor, too.

    A cluster prepares each data set and seed first, once and without GPUs, so that no run waits for another to do it.
    """
    runs = [_job(entry, options) for entry in entries]
    if options.ray is None:
        slots = jobs.divide(min(options.jobs, max(1, len(runs))), jobs.find_gpus(), jobs.find_cpus())
        yield from jobs.run_all(runs, slots, (descriptor,))
        return
    keys = [json.dumps([entry.config.data.to_dict(), entry.seed]) for entry in entries]
    first = {
        key: entry for key, entry in zip(keys, entries, strict=True) if entry.config.data.cache != datasets.UNPREPARED
    }
    number = {key: len(runs) + i for i, key in enumerate(first)}
    work = [
        cluster.Work(job, gpus_of(entry), number.get(key)) for job, entry, key in zip(runs, entries, keys, strict=True)
    ]
    work += [cluster.Work(_preparation(entry, i)) for i, entry in enumerate(first.values())]
    for event in cluster.run_all(work, options.ray):
        if event.job < len(runs):
            if event.error and not event.ended:
                bar.say(f"{entries[event.job].name}: {event.error}")
            yield event
        elif not event.ended:
            bar.say(event.error or "preparing data")


def _job(entry: Entry, options: Options) -> jobs.Job:
    """Makes a process of its own for a run, which reads its config from standard input."""
    config = json.dumps(entry.config.to_dict())
    return jobs.Job([sys.executable, "-c", _RUN, str(entry.folder), options.on_changed_data], entry.log, config)


def _preparation(entry: Entry, number: int) -> jobs.Job:
    """Makes a process that prepares the data of a run; what goes wrong there, the run will say."""
    log = entry.folder.with_name(f"preparing-{number}.log")
    return jobs.Job([sys.executable, "-c", _PREPARE], log, json.dumps(entry.config.to_dict()))


def gpus_of(entry: Entry) -> int:
    """Returns how many GPUs a run wants where there are any: its devices, one where it says nothing."""
    return 0 if entry.config.method in methods.PLAIN else entry.config.devices or 1


def child() -> None:
    """Does the work of a process that prepares data, see `_PREPARE`."""
    jobs.end_with_parent()
    cli.run(prepare_given, None)


def prepare_given(arguments: Sequence[str]) -> None:
    """Prepares the data of the config that is on standard input as JSON; there are no arguments.

    Raises UserError: the data, or their cache, cannot be used.
    """
    del arguments
    config = complete(json.loads(sys.stdin.read()))
    fitted = datasets.fit(config)
    builder.prepare(fitted.manifest, fitted.preprocessor, datasets.cache_folder(config.data.cache))
