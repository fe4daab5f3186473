"""Traces of steps: which, and where."""

import gzip
import json

import jax
import jax.numpy as jnp

from remind_jax.runtime import profiling


@jax.jit
def _double(x):
    return 2 * x


def _traced_steps(folder) -> list[int]:
    (file,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return sorted({int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})})


def test_the_steps_of_the_span_are_in_the_trace(tmp_path):
    x = jnp.ones(())
    with profiling.Tracer("2:4", tmp_path / "profile") as tracer:
        for step in range(6):
            x = tracer.run(step, _double, x)
            assert (tmp_path / "profile").exists() == (step >= 3)
    assert float(x) == 64
    assert _traced_steps(tmp_path / "profile") == [2, 3]


def test_a_trace_ends_where_the_run_does(tmp_path):
    with profiling.Tracer("0:9", tmp_path / "profile") as tracer:
        tracer.run(1, _double, jnp.ones(()))  # a run that was resumed after the first step
    assert _traced_steps(tmp_path / "profile") == [1]


def test_without_a_span_nothing_is_written(tmp_path):
    with profiling.Tracer("", tmp_path / "profile") as tracer:
        assert tracer.run(0, _double, 1) == 2
    assert not (tmp_path / "profile").exists()
