"""What every test runs under: four CPU devices, no silent promotion of ranks or dtypes."""

import os
import pathlib
import signal
import sys

# JAX reads these when it starts. With too few threads in XLA's pool, steps on several fake devices that are not waited
# for can block one another for good; NPROC sets the size of that pool.
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
# Four devices, and programs that compile fast rather than run fast: here they run a few steps each.
_FLAGS = (
    "--xla_force_host_platform_device_count=4",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
_GIVEN = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*_GIVEN, *(flag for flag in _FLAGS if flag not in _GIVEN)])

import hypothesis  # noqa: E402, after the environment is set
import jax  # noqa: E402
import pytest  # noqa: E402

from remind_jax.runtime import signals  # noqa: E402
from tests import tiny_runs  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same cases in every run, and none refused for being slow on a busy machine.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def _own_handlers():
    """A command that ends in this process leaves handlers behind that would end it or keep it silent."""
    before, unraisable = {number: signal.getsignal(number) for number in signals.CODES}, sys.unraisablehook
    yield
    sys.unraisablehook = unraisable
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def quick_compilation(tmp_path_factory):
    """As `tiny_runs.quick_programs`, with a folder that all tests of this session share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with tiny_runs.quick_programs(shared / "compiled"):
        yield


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
