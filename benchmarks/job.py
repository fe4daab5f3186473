"""One whole job in processes of its own: a run on 1,700 patients by this package, and the same in PyTorch.

    python -m benchmarks.job [--rounds=3] [--variants=cold,again,torch] [--out=FILE.jsonl]

The data are made up: a note of at least 96 tokens, a list of codes and three tables, each missing in some patients in
combinations that have a long tail, and a label that all of them tell something of. `cold` is `python -m remind_jax.main
--config=configs/manifest.py:method=remind` with every other default for somebody who has never run it, `again` the same
once more, with the programs and the prepared rows that `cold` has left, `torch` the job as benchmarks/torch_job.py has
it. Variants take turns, each timed from the start of its process to its end: wall time, and processor time of all
threads and processes. `torch` ends its stages at the steps where the run of the package before it ended them, so that
all take as many steps.

Before anything is timed, encoded rows, predictions, gradients and steps of both stages in PyTorch are compared with
those of the package; what differs by more than a thousandth of the largest number ends the benchmark. Options:
--cores=N (1; 0 pins nothing) cores that all processes are pinned to, --patients=N (1700) and --epochs=N (20) for a
smoke test. With more cores than one, PyTorch's threads wait for each other by spinning: on a busy machine that took
four times its processor time.
"""

import argparse
import csv
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "manifest.py"
VARIANTS = ("cold", "again", "torch")
STAGES = ("joint", "specialize")
TOLERANCE = 1e-3  # of the largest number
_EPOCHS = 20.0
SPLITS, SHARES = ("train", "tuning", "held_out"), (0.7, 0.1, 0.2)
# Rows: hospitals, by their share of the patients; columns: how many of their patients have note, codes and each table.
_HOSPITALS = (0.5, 0.3, 0.15, 0.05)
_PRESENCE = (
    (0.9, 0.95, 0.97, 0.85, 0.3),
    (0.6, 0.9, 0.95, 0.3, 0.1),
    (0.1, 0.6, 0.9, 0.9, 0.7),
    (0.4, 0.4, 0.5, 0.5, 0.5),
)
TABLES = {
    "vitals": (tuple(f"vital{i}" for i in range(5)), ("sex",)),
    "labs": (tuple(f"lab{i}" for i in range(12)), ()),
    "history": (tuple(f"history{i}" for i in range(4)), ("smoker", "ward")),
}
_WORDS, _CODES, _TELLING = 2_500, 300, 60  # different ones, and how many of them tell of the label


def write_data(folder: pathlib.Path, patients: int, seed: int = 0) -> None:
    """Writes a folder of data of the package, schema.yaml and manifest.csv; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=patients)
    label = rng.random(patients) < 1 / (1 + np.exp(1.0 - 2.0 * risk))
    hospital = rng.choice(len(_HOSPITALS), patients, p=_HOSPITALS)
    present = rng.random((patients, 2 + len(TABLES))) < np.array(_PRESENCE)[hospital]
    present[~present.any(axis=1), 1] = True
    columns = {"patient": np.array([f"p{i:05d}" for i in range(patients)]), "died": label.astype(int)}
    columns["split"] = rng.permutation(np.repeat(SPLITS, _sizes(patients)))
    words, codes = _words(rng), [f"{'ABCDEFGHIJ'[i % 10]}{i // 10:02d}.{i % 7}" for i in range(_CODES)]
    columns["note"] = _lists(rng, words, risk, (100, 180))
    columns["icd"] = _lists(rng, codes, risk, (2, 30))
    for i, (names, categories) in enumerate(TABLES.values(), start=2):
        for name in names:
            values = np.char.mod("%.3f", rng.normal(size=patients) + rng.normal(0, 0.3) * risk)
            columns[name] = np.where(present[:, i] & (rng.random(patients) < 0.85), values, "")
        for name in categories:
            columns[name] = np.where(present[:, i], rng.choice([f"{name}_{k}" for k in "abcd"], patients), "")
    for i, name in enumerate(("note", "icd")):
        columns[name] = np.where(present[:, i], columns[name], "")
    folder.mkdir(parents=True)
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    modalities = {"note": {"kind": "text", "column": "note"}, "icd": {"kind": "codes", "column": "icd"}} | {
        table: {"kind": "tabular", "columns": list(names), "categorical": list(categories)}
        for table, (names, categories) in TABLES.items()
    }
    ids = {"sample_id": "patient", "patient_id": "patient", "split": "split"}
    schema = {"version": 1, "name": "made_up", **ids, "label": {"column": "died", "classes": ["0", "1"]}}
    (folder / "schema.yaml").write_text(json.dumps(schema | {"modalities": modalities}), encoding="utf-8")


def _sizes(patients: int) -> list[int]:
    tuning, held_out = (round(share * patients) for share in SHARES[1:])
    return [patients - tuning - held_out, tuning, held_out]


def _words(rng: np.random.Generator) -> list[str]:
    """Makes different words of two to four syllables."""
    syllables = [first + second for first in "bcdfglmnprstv" for second in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < _WORDS:
        found["".join(rng.choice(syllables, rng.integers(2, 5)))] = None
    return list(found)


def _lists(rng: np.random.Generator, pool: list[str], risk: np.ndarray, lengths: tuple[int, int]) -> np.ndarray:
    """Draws a list of words for each patient, few of them often, some of them more often the higher the risk."""
    share = 1.0 / np.arange(3, len(pool) + 3)
    telling = rng.choice(len(pool) // 4, _TELLING, replace=False)
    lists = []
    for each in risk:
        own = share.copy()
        own[telling] *= np.exp(0.5 * each * np.where(np.arange(_TELLING) % 2, 1, -1))
        lists.append(" ".join(rng.choice(pool, rng.integers(*lengths, endpoint=True), p=own / own.sum())))
    return np.array(lists, object)


class _Errors:
    """The largest differences so far, by what is compared."""

    def __init__(self):
        self.found: dict[str, float] = {}

    def add(self, what: str, ours: Any, theirs: Any, where: Any = True) -> None:
        """Compares two arrays where `where` holds; raises RuntimeError as `check_parity`."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        largest = max(float(np.abs(ours).max(initial=0.0)), 1e-12)
        error = float((np.abs(ours - theirs) * where).max(initial=0.0)) / largest
        if not error <= TOLERANCE:
            raise RuntimeError(f"torch and JAX differ in {what} by {error:.1e} of the largest number")
        key = what.partition(":")[0]
        self.found[key] = max(self.found.get(key, 0.0), error)


def check_parity(folder: pathlib.Path) -> dict[str, float]:
    """Compares the job in PyTorch with the package on a folder of data, without dropout and with random weights.

    Returns:
      The largest difference of each thing that is compared, as a share of its largest number.

    Raises:
      RuntimeError: names what differs by more than `TOLERANCE`.
    """
    from benchmarks import torch_job
    from configs import manifest
    from remind_jax.config import set_values
    from remind_jax.data import dataset
    from remind_jax.ops import routing
    from remind_jax.training import run as runs
    from remind_jax.training import run_folder

    config, silent = manifest.get_config("method=remind"), {"model.encoder_dropout": 0.0, "fusion.dropout": 0.0}
    silent["model.text_encoder"] = "t5"
    quick = {"optim.warmup": 0.0, "dro.every": 1}  # so that the first step moves weights and λ
    set_values(config, silent | quick | {"data.cache": "none", "data.root": str(folder)})
    data = dataset.load_dataset(config)
    trainer = runs.make_trainer(config, data, run_folder.InMemory(config.to_dict()))
    settings = torch_job.Settings(encoder_dropout=0.0, dropout=0.0, warmup=0.0, every=1)
    job, errors = torch_job.Run(torch_job.read(folder, settings), settings), _Errors()
    for split, store in data.stores.items():
        ours, rows = store.take(np.arange(len(store))), job.rows[split]
        theirs = {name: getattr(job.data, name) for name in ("present", "group", "label")} | job.data.inputs
        for name, column in theirs.items():
            errors.add(f"rows: {name}", ours[name], column[rows])
    # What is zero at first must count too, and the gate must be open for some and shut for others.
    rng = np.random.default_rng(0)
    params = {path: x + 0.05 * rng.normal(size=np.shape(x)).astype(x.dtype) for path, x in trainer.initial().items()}
    scale = routing.scale_that_closes(settings.gate_threshold, settings.experts, settings.width)
    params["block_0/router_scale"] = np.float32(scale)
    for stage in trainer.stages:
        _check_stage(errors, stage, trainer, data, job, params)
    return errors.found


def _check_stage(errors: _Errors, stage: Any, trainer: Any, data: Any, job: Any, params: Mapping[str, Any]) -> None:
    """Compares what both predict, and where a step of the stage takes both from the same weights."""
    import optax

    from benchmarks import torch_job
    from benchmarks.torch_remind import weights_of

    late, tuning = stage.name == "specialize", data.stores["tuning"]
    job.network.load_state_dict(weights_of(params))
    job.dro = torch_job.GroupWeights(job.data.counts, job.settings)
    ours = trainer.predict(params, tuning, stage.eval_gate)
    theirs = torch_job.predict(job.network, job.data, job.rows["tuning"], {}, gated=late)
    errors.add(f"logits: {stage.name}", *(np.log(p[:, 1] / p[:, 0]) for p in (ours.probabilities, theirs)))
    places = trainer.sampler.order(stage.start, job.settings.batch_size)
    program, batch = trainer.program(stage), data.stores["train"].take(places)
    batch["weight"] = np.ones(len(places), np.float32)
    placed, metrics = program.step(program.place(trainer.begin(stage, params)), batch)
    state, metrics = program.fetch(placed), program.read(metrics)
    optimizer = job.begin(late)
    figures = job.step(optimizer, torch_job.take(job.data, job.rows["train"][places], {}), stage.start, gated=late)
    for name, value in figures.items():
        errors.add(f"figures: {stage.name}, {name}", metrics[name], value)
    errors.add(f"λ: {stage.name}", metrics["lambda"], job.dro.log_weights.exp())
    moments = weights_of({**params, **optax.tree.get(state.opt_state, "mu")})
    after, own = weights_of({**state.frozen, **state.params}), dict(job.network.named_parameters())
    before = weights_of(params)
    for name, parameter in own.items():
        gradient = optimizer.state[parameter]["exp_avg"] if parameter in optimizer.state else None
        if gradient is None:
            errors.add(f"step: {stage.name}, {name}", after[name], before[name])
            continue
        errors.add(f"gradient: {stage.name}, {name}", moments[name], gradient)
        # Adam's first step makes whole steps of gradients that are noise about zero.
        sure = np.abs(gradient.numpy()) > TOLERANCE * float(gradient.abs().max())
        moved = [x.detach().numpy() - before[name].numpy() for x in (after[name], parameter)]
        errors.add(f"step: {stage.name}, {name}", *moved, sure)


def measure(options: argparse.Namespace, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Runs the variants in turn; returns a record of each, in the form of `benchmarks.run`."""
    data = folder / "data"
    write_data(data, options.patients)
    errors = check_parity(data)
    print(json.dumps({"parity": errors}), file=sys.stderr, flush=True)
    busy, told = os.getloadavg()[0], {}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    for i in range(options.rounds):
        # `again` comes after `cold`; which of the two libraries is first changes.
        for name in sorted(options.variants, key=lambda name: (name == "torch") ^ (i % 2)):
            place = folder / f"{name}{i}"
            call = functools.partial(_process, _command(name, data, place, told, options), _home(folder, name, i))
            samples[name].append(run.timed(call))
            told[name] = _told(place)
            print(json.dumps({"variant": name} | samples[name][-1] | told[name]), file=sys.stderr, flush=True)
    shared = run.environment(options.cores) | {
        "load_before": round(busy, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }
    records = []
    for name, found in samples.items():
        references = {"torch": samples["torch"]} if samples.get("torch") else {}
        records.append(
            {
                "case": "job",
                "size": f"{options.patients} patients",
                "measure": "whole run",
                "variant": name,
                "rounds": options.rounds,
                "calls": 1,
                "apart": False,
                **run.summary(found),
                "mfu": None,
                "ratios": {r: run.ratio(found, other) for r, other in references.items()},
                "cpu_ratios": {r: run.ratio(found, other, "cpu_ms") for r, other in references.items()},
                "library": "torch" if name == "torch" else "jax",
                "analytic_flops": 0,
                **told[name],
                "samples": found,
                "parity": errors,
                "command": " ".join(["python -m benchmarks.job", *options.given]),
                "device_peak_bytes": None,
                **shared,
            }
        )
    return records


def _home(folder: pathlib.Path, variant: str, i: int) -> pathlib.Path:
    """Returns a home folder that `again` shares with the `cold` run of its round."""
    home = folder / f"home{i}" / ("torch" if variant == "torch" else "jax")
    home.mkdir(parents=True, exist_ok=True)
    return home


def _command(
    variant: str, data: pathlib.Path, place: pathlib.Path, told: Mapping[str, Any], options: argparse.Namespace
) -> list[str]:
    if variant == "torch":
        steps = next((told[name]["steps"] for name in ("cold", "again") if name in told), None)
        stops = [f"--stops={steps[0]},{steps[1]}"] if steps else []
        return ["-m", "benchmarks.torch_job", str(data), str(place), f"--epochs={options.epochs}", *stops]
    epochs = {"epochs": options.epochs, "joint_epochs": options.epochs / 4}
    given = [f"--config.train.{key}={value}" for key, value in epochs.items()] if options.epochs != _EPOCHS else []
    command = [
        "-m",
        "remind_jax.main",
        f"--config={CONFIG}:method=remind",
        f"--config.data.root={data}",
        f"--workdir={place}",
    ]
    command.append("--config.model.text_encoder=t5")  # which the job in PyTorch has
    return [*command, *given]


def _process(arguments: Sequence[str], home: pathlib.Path) -> None:
    places = {"PYTHONPATH": str(ROOT), "HOME": str(home), "JAX_PLATFORMS": "cpu"}
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("JAX_COMP", "XDG_"))} | places
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a process that was to be timed ended with {done.returncode}: {done.stderr[-2000:]}")


def _told(place: pathlib.Path) -> dict[str, Any]:
    """Returns what a run says of itself: the steps at which its stages ended, and figures of the held-out rows."""
    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [max(record["step"] for record in records if record["stage"] == stage) for stage in STAGES]
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    evaluations = sum("eval/loss" in record for record in records)
    found = {"steps": steps, "evaluations": evaluations, "auroc": report["overall"]["auroc"]}
    return found | {"parameters": report["parameters"]}


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS), type=lambda text: text.split(","))
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--patients", type=int, default=1_700)
    parser.add_argument("--epochs", type=float, default=_EPOCHS)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args(arguments, argparse.Namespace(given=list(arguments)))
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        parser.error(f"variant {unknown[0]!r} is unknown; known: {', '.join(VARIANTS)}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    run.pin(options.cores)
    with tempfile.TemporaryDirectory() as folder:
        run.write(measure(options, pathlib.Path(folder)), options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
