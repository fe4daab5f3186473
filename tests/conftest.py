"""What every test runs under: four CPU devices, no silent promotion of ranks or dtypes."""

import ctypes
import gc
import os
import pathlib
import re
import signal
import sys
import time
from importlib import metadata

# What is imported stays: the collector of garbage, left alone, takes a fifth of the time until the first test.
gc.set_threshold(100_000, 50, 50)

# JAX reads these when it starts. With too few threads in XLA's pool, steps on several fake devices that are not waited
# for can block one another for good; NPROC sets the size of that pool.
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
# Plain models are small here too: threads would wait for one another longer than they compute.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Four devices, and programs that compile fast rather than run fast: here they run a few steps each.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
_FLAGS = ["--xla_force_host_platform_device_count=4", "--xla_cpu_parallel_codegen_split_count=1"]
if metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag, and end
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_GIVEN = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*_GIVEN, *(flag for flag in _FLAGS if flag not in _GIVEN)])

import hypothesis  # noqa: E402, after the environment is set
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from remind_jax.runtime import signals  # noqa: E402

MUCH_MEMORY = 2.5e9
ALL_SLOW = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.slow\b", re.MULTILINE)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same cases in every run, and none refused for being slow on a busy machine.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Files that are slow as a whole, and what they import, are not read where slow tests are left out."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return bool(ALL_SLOW.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skips what is left once the time is over that `.ci/run` gives, in seconds since 1970; others set no end."""
    if time.time() > float(os.environ.get("REMIND_TESTS_END", "inf")):
        pytest.skip("the time of this run is over")


def pytest_collection_finish() -> None:
    """What modules hold stays to the end: the collector of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def _little_memory():
    """After a file a process with much memory lets go of its programs, which are found again where they are kept."""
    yield
    memory = pathlib.Path("/proc/self/statm")  # of Linux: pages in all, pages in use
    if memory.exists() and int(memory.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > MUCH_MEMORY:
        jax.clear_caches()
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what is free, as runs ask it to
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _own_handlers():
    """A command that ends in this process leaves handlers behind that would end it or keep it silent."""
    before, unraisable = {number: signal.getsignal(number) for number in signals.CODES}, sys.unraisablehook
    yield
    sys.unraisablehook = unraisable
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _kept_programs(tmp_path_factory):
    """Whatever was compiled in this run of pytest, by any of its processes, is found again and not compiled twice.

    `JAX_COMPILATION_CACHE_DIR` names a folder that several runs share.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def quick_compilation():
    """Types are promoted as usual: optax's Adam raises a float to an integer power, which the strict mode refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def no_page(monkeypatch):
    """Runs draw no page: for tests that look at their numbers alone."""
    monkeypatch.setattr("remind_jax.evaluation.report.write_html", lambda *rest: None)


@pytest.fixture
def plain_cudnn(monkeypatch):
    """XLA's attention in the place of cuDNN's, which needs a GPU; gives the shapes of the queries of each call.

    Types are promoted as in a run, which the derivative of attention needs in bfloat16.
    """
    theirs, shapes = jax.nn.dot_product_attention, []

    def plain(query, *others, implementation, **options):
        assert implementation == "cudnn"
        shapes.append(query.shape)
        with jax.numpy_rank_promotion("allow"):
            return theirs(query, *others, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    with jax.numpy_dtype_promotion("standard"):
        yield shapes


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of public samples of real data: `REMIND_SHARED_DATA`, else `shared/data` beside the checkout."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("REMIND_SHARED_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set REMIND_SHARED_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def demo(shared_data: pathlib.Path) -> pathlib.Path:
    """The demo of MIMIC-IV: 100 real patients in PhysioNet's layout."""
    folder = shared_data / "mimic_iv_demo"
    if not folder.is_dir():
        pytest.skip(f"the demo of MIMIC-IV is not at {folder}")
    return folder
