"""Coverage-guided fuzzing with atheris (extra `fuzz`) of what reads bytes from outside.

python -m tests.reliability.fuzz TARGET -max_total_time=SECONDS [CORPUS]
"""

import contextlib
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from tests.reliability import Tally, row
from tests.tiny_runs import ROOT

TARGETS = ("manifest", "schema", "decoder", "checkpoint", "predictions")
_INSTRUMENTED = (
    "remind_jax.data",
    "remind_jax.training.checkpoint",
    "remind_jax.compare",
    "yaml",
    "pydicom.filereader",
    "PIL.PngImagePlugin",
)


def _target(name: str, folder: pathlib.Path) -> tuple[Callable[[bytes], object], list[bytes]]:
    """What takes bytes and may raise UserError alone, and sound inputs to start from; made once, in `folder`."""
    from remind_jax import compare
    from remind_jax.data import reading
    from remind_jax.data.kinds import embedding, images
    from remind_jax.training import checkpoint
    from tests.data.image_files import ramp, write_dicom, write_picture
    from tests.data.manifest_files import write_manifest

    data = write_manifest(folder / "data", n=12)
    if name == "manifest":
        file, sound = data / "manifest.csv", (data / "manifest.csv").read_bytes()
        return lambda content: (file.write_bytes(content), reading.load_manifest(data)), [sound]
    if name == "schema":
        file, sound = data / "schema.yaml", (data / "schema.yaml").read_bytes()
        return lambda content: (file.write_bytes(content), reading.read_schema(file, 8, 2)), [sound]
    if name == "decoder":
        pictures = [
            write_picture(folder / "x.png", ramp(6, 8, channels=3)),
            write_picture(folder / "x.jpeg", ramp(6, 8, channels=3)),
        ]
        pictures.append(write_dicom(folder / "x.dcm", ramp().astype(np.uint16)))
        np.save(folder / "x.npy", ramp(channels=3))
        file = folder / "input"

        def decode(content: bytes) -> None:
            file.write_bytes(content)
            for read in (
                lambda: images.read(file, (4, 4, 3)),
                lambda: images.read(file, (2, 4, 4, 1)),
                lambda: embedding.read_array(file),
            ):
                with contextlib.suppress(ValueError, OSError):  # which the readers promise
                    read()

        return decode, [path.read_bytes() for path in [*pictures, folder / "x.npy"]]
    if name == "checkpoint":
        step = folder / "checkpoints" / "1"
        (step / "record").mkdir(parents=True)
        (step / "record" / "metadata").write_bytes(b'{"step": 1}')
        for mark in checkpoint._MARKS:
            (step / mark).write_bytes(b"")
        sums = checkpoint._sums(step).encode()

        def compared(content: bytes) -> None:
            (step / checkpoint.SUMS).write_bytes(content)
            fault = checkpoint._compare(step)
            if bool(fault) != (content != sums) or not fault.isprintable():
                raise AssertionError(f"{fault!r} of {content!r}")

        return compared, [sums]
    import polars as pl

    runs, cells = [folder / "first", folder / "second"], {"sample_id": "a", "patient_id": "b", "label": 0, "group": "x"}
    for seed, run in enumerate(runs):
        run.mkdir()
        (run / "config.json").write_text(f'{{"method": "remind", "seed": {seed}}}', encoding="utf-8")
        (run / "report.json").write_text('{"data": "x"}', encoding="utf-8")
        pl.DataFrame(cells | {"p_0": 0.5, "p_1": 0.5}).write_parquet(run / "predictions.parquet")
    file = runs[0] / "predictions.parquet"
    sound = file.read_bytes()
    return lambda content: (file.write_bytes(content), compare.read_runs(runs)), [sound]


def main(arguments: list[str]) -> None:
    """Fuzzes one target until atheris' own limits."""
    import atheris

    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        from remind_jax import compare  # noqa: F401
        from remind_jax.data import reading  # noqa: F401
        from remind_jax.errors import UserError
    name, *rest = arguments
    with tempfile.TemporaryDirectory() as root:
        call, sound = _target(name, pathlib.Path(root))
        corpus = pathlib.Path(root) / "corpus"
        corpus.mkdir()
        for i, content in enumerate(sound):
            (corpus / f"sound{i}").write_bytes(content)

        def one(content: bytes) -> None:
            try:
                call(content)
            except UserError as error:
                if not str(error) or "\n" in str(error):
                    raise AssertionError(f"not one line: {error}") from error

        atheris.Setup([sys.argv[0], *rest, str(corpus)], one)
        atheris.Fuzz()


@row(
    name="fuzz",
    title="coverage-guided fuzzing: manifest, schema, image and volume decoder, checkpoint manifest, predictions",
    target="0 crashes, 0 inputs over 5 s, 5 targets of 600 s",
    unit="seconds a target",
    reduced=5,
    full=600,
    broken="schema.yaml is read with errors of YAML let through",
)
def fuzz(count: int, broken: bool) -> Tally:
    """Each target in a process of its own; without atheris none is tried."""
    tally = Tally()
    if importlib.util.find_spec("atheris") is None:
        tally.notes.append('not tried: atheris is not installed (pip install -e ".[fuzz]")')
        return tally
    for name in ("schema",) if broken else TARGETS:
        with tempfile.TemporaryDirectory() as root:
            code = "import sys; from tests.reliability import fuzz; "
            if broken:
                code += "from remind_jax.data import reading; reading.UserError = ValueError; "
            command = [sys.executable, "-c", f"{code}fuzz.main(sys.argv[1:])", name]
            options = [
                f"-max_total_time={count}",
                "-timeout=5",
                "-rss_limit_mb=3000",
                "-max_len=4096",
                f"-artifact_prefix={root}/",
                "-print_final_stats=1",
            ]
            done = subprocess.run(
                [*command, *options],
                cwd=ROOT,
                capture_output=True,
                timeout=count * 3 + 120,
                errors="replace",
                text=True,
            )
        runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        tally.figures[f"{name}: inputs"] = int(runs[1]) if runs else 0
        tally.figures[f"{name}: edges"] = int(coverage[-1]) if coverage else 0
        crash = re.findall(r"(?:=== Uncaught Python exception: ===\n.*|ALARM: .*|ERROR: .*)", done.stderr)
        tally.check(done.returncode == 0 and bool(runs), f"{name}: {' '.join(crash)[:300] or done.stderr[-300:]}")
    return tally


if __name__ == "__main__":
    main(sys.argv[1:])
