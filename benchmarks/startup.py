"""Processes to time from start to end: imports, a run on NHANES up to the end of its first step, and 21 predictions."""

import atexit
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]

IMPORT = "import remind_jax.models.network, remind_jax.ops.soft_moe"
# In a process of its own because it needs the data stack, which this module may not import.
FIRST_STEP = """
import pathlib, tempfile, time
from remind_jax import cli
from remind_jax.data import dataset, pipeline
from remind_jax.training import run, run_folder

config = cli.parse_config(["--config=configs/nhanes.py:method=remind"])[0]
with tempfile.TemporaryDirectory() as folder:
    opened = run_folder.RunFolder(pathlib.Path(folder), config.to_dict())
    data = dataset.load_dataset(config)
    trainer = run.make_trainer(config, data, opened)
    stage = trainer.stages[0]
    start = trainer.begin(stage, trainer.initial())
    (batch,) = pipeline.train_batches(data.stores["train"], trainer.sampler.order, config.train.batch_size, 0, 1)
    program = trainer.program(stage)
    placed, began = program.place(start), time.perf_counter()
    program.read(program.step(placed, batch)[1])
    print(1e3 * (time.perf_counter() - began))
    opened.close()
"""

# The first process trains for a few steps; the others only predict.
PREDICT = """
import contextlib, io, os, pathlib
from remind_jax import predict

folder = pathlib.Path(os.environ["BENCHMARK_FOLDER"])
with contextlib.redirect_stdout(io.StringIO()):
    if not (folder / "rows.csv").exists():
        from remind_jax import cli
        from remind_jax.data import dataset
        from remind_jax.training import run

        short = ["--config.train.epochs=0.2", "--config.train.joint_epochs=0.1", "--config.eval.bootstrap=20"]
        config = cli.parse_config(["--config=configs/nhanes.py:method=remind", *short])[0]
        run.train_and_evaluate(config, folder / "run", verbose=False)
        data = dataset.load_dataset(config)
        data.manifest.table[data.rows("held_out")[:21]].write_csv(folder / "rows.csv")
    predict.main([
        f"--workdir={folder / 'run'}",
        f"--data={folder / 'rows.csv'}",
        f"--out={folder / 'out.csv'}",
        "--programs=forget",
    ])
"""


def started(code: str, keeps: bool = False) -> tuple[Callable[[], str], float | None]:
    """Starts a Python process, once to prepare and once to measure.

    Args:
      code: to run; what it prints last are milliseconds of its first step.
      keeps: whether the process finds what an earlier one has compiled.

    Returns:
      A function that runs it again, and the milliseconds; None where it prints nothing.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="started-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    places = {"PYTHONPATH": str(ROOT), "BENCHMARK_FOLDER": str(folder)}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **places}
    if keeps:
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        environment |= compiled | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def call() -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a process that was to be timed ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    call()  # prepares the data, and compiles what is kept
    printed = call().split()
    return call, float(printed[-1]) if printed else None
