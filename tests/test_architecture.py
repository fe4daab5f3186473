"""The arrows between the parts, read off the source: who may import what, and what nobody uses.

Every rule is a function of a path and the dotted names that its source uses; `VIOLATIONS` shows that each can fail.
"""

import ast
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("remind_jax", "configs", "benchmarks", "tests", "launch")

# What a GPU image needs for the parts that compute.
BARE = {"jax", "jaxlib", "flax", "optax", "numpy", "einops"}
# folder: (third-party packages it may import, parts of this project it may import)
MAY_IMPORT = {
    "remind_jax/ops/": (BARE - {"flax"}, {"ops", "errors"}),
    "remind_jax/objectives/": (BARE, {"ops", "objectives", "errors"}),
    "remind_jax/models/": (BARE | {"safetensors", "huggingface_hub"}, {"ops", "models", "errors", "runtime"}),
    "remind_jax/config/": ({"ml_collections"}, {"config", "errors"}),
    "remind_jax/methods.py": (set(), {"config", "errors"}),
    "configs/": (set(), {"config", "methods"}),
    "benchmarks/input_path.py": ({"numpy"}, {"data"}),  # the one case about the data stack
    "benchmarks/presence.py": (BARE, {"data", "inference", "models", "ops", "config", "runtime", "training"}),
    "benchmarks/event_encoders.py": (BARE | {"configs", "polars"}, {"data", "evaluation", "models", "ops", "training"}),
    # A whole run, by the package and by a user of PyTorch.
    "benchmarks/job.py": ({"configs", "numpy", "optax"}, {"config", "data", "ops", "training"}),
    "benchmarks/torch_job.py": ({"numpy", "polars", "torch", "yaml"}, {"data", "evaluation"}),
    "benchmarks/": (
        BARE | {"torch", "tests"},
        {"ops", "models", "objectives", "config", "errors", "runtime", "training"},
    ),
}
# What each wing of the package may import of the others: floors, from the ground up. The top level may use all.
EVERYWHERE = {"errors", "config"}
WINGS = {
    "config": set(),
    "ops": set(),
    "objectives": {"ops"},
    "runtime": set(),
    "models": {"ops", "runtime"},
    "data": {"runtime"},
    "evaluation": {"runtime", "data"},
    "tasks": {"ops", "data", "evaluation"},
    "inference": {"ops", "objectives", "models", "runtime", "data", "evaluation", "tasks"},
}
WINGS["inference"].add("methods")
WINGS["training"] = {*WINGS, "methods"}
WINGS["studies"] = {*WINGS, "methods", "cli"}
WINGS["analysis"] = {*WINGS, "methods", "cli"}
MOST_LINES, MOST_OF_A_COMMAND, MOST_OF_ALL, MOST_AT_THE_TOP = 450, 80, 45_110, 18
NO_COMMANDS = {"__init__", "api", "cli", "errors", "estimators", "methods"}  # modules at the top level that are none

# Imported where they are used, because each takes a good part of a second or more.
HEAVY = {
    "optuna",
    "tensorflow_datasets",
    "grain",
    "array_record",
    "sklearn",
    "matplotlib",
    "transformers",
    "orbax",
    "ray",
}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# What writes to a path, by the last part of its name, and by the whole of it.
WRITERS = {"write_text", "write_bytes", "write_parquet", "write_csv", "write_json", "sink_parquet", "sink_csv", "touch"}
WRITERS |= {"savefig", "tofile", "to_csv", "to_parquet", "save_file", "symlink_to", "hardlink_to"}
NUMPY = {f"np.{name}" for name in ("save", "savez", "savez_compressed", "savetxt", "memmap")}
COPIES = {f"shutil.{name}" for name in ("copy", "copy2", "copyfile", "copytree", "move")}
SLOW_NNX = {"jit", "pmap", "grad", "value_and_grad", "Optimizer", "ModelAndOptimizer", "metrics"}

Rule = Callable[[str, ast.Module], list[str]]


@functools.lru_cache(maxsize=1)  # one rule after the other asks it of a source
def nodes_of(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it stands in the source, `?.b.c` where `a` is more than a name: `ast.unparse` takes far longer."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "?", *reversed(parts)])


def imported(path: str, nodes: Iterable[ast.AST]) -> dict[str, str]:
    """The full dotted names that the nodes import, each with the name it is bound to."""
    names = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.name] = alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                names[f"{base}.{alias.name}"] = alias.asname or alias.name
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
            names.update({arg.value: "" for arg in node.args if isinstance(arg, ast.Constant)})
    return names


@functools.lru_cache(maxsize=1)  # one rule after the other asks it of a source
def uses(path: str, tree: ast.Module) -> set[str]:
    """All dotted names imported, and all attributes read from them: `import jax; jax.sharding.Mesh` uses the latter."""
    names = imported(path, nodes_of(tree))
    bound = {}
    for full, short in names.items():
        bound[short] = short if full.split(".")[0] == short else full
    found = set(names)
    for node in nodes_of(tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = dotted(node).partition(".")
            if head in bound:
                found.add(f"{bound[head]}.{rest}")
    return found


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def arrows(path: str, tree: ast.Module) -> list[str]:
    """The computing parts import only what a bare GPU image has, and nothing of the parts above them."""
    for folder, (packages, parts) in MAY_IMPORT.items():
        if path.startswith(folder):
            return [name for name in imported(path, nodes_of(tree)) if not _allowed(name, packages, parts)]
    return []


def _allowed(name: str, packages: set[str], parts: set[str]) -> bool:
    top, _, rest = name.partition(".")
    if top == "remind_jax":
        return rest.split(".")[0] in parts
    return top in packages | {"benchmarks"} or top in sys.stdlib_module_names


def package_stands_alone(path: str, tree: ast.Module) -> list[str]:
    """The package is installed without configs, benchmarks, tests and what only tests need."""
    if not path.startswith("remind_jax/"):
        return []
    absent = ("configs", "benchmarks", "tests", "pytest", "chex", "hypothesis", "sksurv", "fairlearn")
    return [name for name in uses(path, tree) if within(name, *absent)]


def one_owner(path: str, tree: ast.Module) -> list[str]:
    """One file, or folder, per outside interface that changes often; tests may use them all."""
    owners = {
        "remind_jax/training/checkpoint.py": ("orbax",),
        "remind_jax/runtime/devices.py": ("jax.sharding", "jax.NamedSharding", "jax.P", "jax.make_mesh"),
        "remind_jax/runtime/files.py": ("fcntl", "os.replace", "os.rename", "tempfile"),
        "remind_jax/runtime/profiling.py": ("jax.profiler",),
        "remind_jax/data/builder.py": ("tensorflow_datasets.core.SequentialWriter",),
        "remind_jax/studies/trials.py": ("optuna",),
        "remind_jax/training/trackers/": ("tensorboardX", "mlflow", "wandb"),
        "remind_jax/models/": ("flax.nnx",),
        "remind_jax/runtime/cluster.py": ("ray",),
    }
    if path.startswith("tests/"):
        return []
    # Benchmarks look at one thing at a time, in folders of their own.
    names = {name for name in uses(path, tree) if path.startswith("remind_jax/") or not within(name, "tempfile")}
    return [n for owner, owned in owners.items() if not path.startswith(owner) for n in names if within(n, *owned)]


def writes_whole(path: str, tree: ast.Module) -> list[str]:
    """What writes to a path does so within `files.whole_file` and the like, or is a function of `files` itself."""
    opened = ("remind_jax/runtime/files.py", "remind_jax/runtime/records.py")  # the second to read and lock
    if not path.startswith("remind_jax/") or path in opened:
        return []
    own = {short for full, short in imported(path, nodes_of(tree)).items() if within(full, "remind_jax")}
    blocks = [node for node in nodes_of(tree) if isinstance(node, ast.With)]
    whole = [b for b in blocks if any("files.whole_" in ast.unparse(item.context_expr) for item in b.items)]
    inside = {id(node) for block in whole for node in ast.walk(block)}
    kept = [(i.optional_vars, i.context_expr) for b in blocks for i in b.items]
    kept += [(n.targets[0], n.value) for n in nodes_of(tree) if isinstance(n, ast.Assign)]
    memory = {"io.StringIO", "io.BytesIO"}
    kept = [(name, made) for name, made in kept if isinstance(name, ast.Name) and isinstance(made, ast.Call)]
    streams = {name.id for name, made in kept if dotted(made.func) in memory}
    found = []
    for call in (node for node in nodes_of(tree) if isinstance(node, ast.Call) and id(node) not in inside):
        head, _, name = dotted(call.func).rpartition(".")
        given = [dotted(argument) for argument in call.args]
        if head in own or (given and given[0] in streams):
            continue
        by_name = (name in WRITERS and (given or name == "touch")) or f"{head}.{name}" in NUMPY | COPIES
        if by_name or _opens(head, name, call):
            found.append(f"{ast.unparse(call.func)} in line {call.lineno}")
    return found


def _opens(head: str, name: str, call: ast.Call) -> bool:
    """Whether a call opens a file for more than reading."""
    if name == "open_memmap":
        return "mode='r'" not in ast.unparse(call)
    if name != "open":
        return False
    if head == "os":
        return ast.unparse(call.args[0]) != "os.devnull" and ast.unparse(call.args[1]) != "os.O_RDONLY"
    of_path = head not in ("", "io", "gzip")  # path.open(mode), and not open(path, mode)
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[not of_path :][:1]
    texts = [mode.value if isinstance(mode, ast.Constant) else "" if of_path else "w" for mode in modes]
    return any(isinstance(text, str) and set(text) & set("wax+") and not set(text) - set("rwaxbt+") for text in texts)


def no_slow_nnx(path: str, tree: ast.Module) -> list[str]:
    """The nnx forms of jit and grad walk the module in Python at every step."""
    return [name for name in uses(path, tree) if within(name, *(f"flax.nnx.{slow}" for slow in SLOW_NNX))]


def no_tensorflow(path: str, tree: ast.Module) -> list[str]:
    return [name for name in uses(path, tree) if within(name, "tensorflow", "tf_keras", "keras")]


def no_pickle(path: str, tree: ast.Module) -> list[str]:
    """Loading a pickle runs code that came with the data. Tests may write one, to see that it is refused."""
    found = [name for name in imported(path, nodes_of(tree)) if within(name, *PICKLES)]
    for call in (node for node in nodes_of(tree) if isinstance(node, ast.Call)):
        fixture = path.startswith("tests/") and dotted(call.func) == "np.save"
        for keyword in call.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" and not fixture:
                found.append(f"allow_pickle in line {call.lineno}")
    return found


def no_code_of_hubs(path: str, tree: ast.Module) -> list[str]:
    """What transformers loads may name code of its own: it is asked not to run any, at every call."""
    calls = [node for node in nodes_of(tree) if isinstance(node, ast.Call)]
    asked = [call for call in calls if dotted(call.func).endswith((".from_pretrained", "transformers.pipeline"))]
    refuse = ("trust_remote_code", "False")
    return [
        f"line {call.lineno} lacks trust_remote_code=False"
        for call in asked
        if refuse not in [(keyword.arg, ast.unparse(keyword.value)) for keyword in call.keywords]
    ]


def heavy_imports_inside(path: str, tree: ast.Module) -> list[str]:
    """A command that needs none of them starts at once. Type checkers' imports do not count."""
    if not path.startswith("remind_jax/") or path in ("remind_jax/training/checkpoint.py", "remind_jax/estimators.py"):
        return []
    # Benchmarks, which run without ml_collections, make networks from the defaults of a config.
    heavy = HEAVY | ({"ml_collections"} if path.startswith("remind_jax/config/") else set())
    return [name for name in imported(path, tree.body) if within(name, *heavy)]


def no_drawer(path: str, tree: ast.Module) -> list[str]:
    del tree
    return [path] if path.split("/")[-1] in ("utils.py", "util.py") else []


def floors(path: str, tree: ast.Module) -> list[str]:
    """A wing imports those below it."""
    parts = path.split("/")
    if parts[0] != "remind_jax" or len(parts) < 3:
        return []
    allowed = WINGS[parts[1]] | EVERYWHERE | {parts[1]}
    return [name for name in of_project(path, tree) if name.split(".")[1] not in allowed]


def of_project(path: str, tree: ast.Module) -> list[str]:
    """The names of this package that a file imports anywhere, below its top level."""
    return [name for name in imported(path, nodes_of(tree)) if within(name, "remind_jax") and name != "remind_jax"]


def no_hidden_imports(path: str, tree: ast.Module) -> list[str]:
    """What wings import of the package stands at the top of the file, where everybody sees it."""
    if not path.startswith("remind_jax/") or path.count("/") < 2:
        return []
    everywhere = set(imported(path, nodes_of(tree)))
    return [name for name in everywhere - set(imported(path, tree.body)) if within(name, "remind_jax")]


def checkpoints_are_for_training(path: str, tree: ast.Module) -> list[str]:
    """Everybody else opens the trained model: only the loop and analyses of trajectories read a checkpoint."""
    if not path.startswith("remind_jax/") or path.startswith(
        ("remind_jax/training/", "remind_jax/analysis/opening.py")
    ):
        return []
    return [name for name in of_project(path, tree) if within(name, "remind_jax.training.checkpoint")]


def sizes(path: str, tree: ast.Module) -> list[str]:
    """No file is longer than a reader's patience; a command is its text, its options, one call and what it prints."""
    if not path.startswith("remind_jax/"):
        return []
    lines, name = max((node.end_lineno or 0 for node in tree.body), default=0), pathlib.PurePath(path).stem
    is_command = path.count("/") == 1 and name not in NO_COMMANDS
    most = MOST_OF_A_COMMAND if is_command else MOST_LINES
    return [f"{lines} lines, at most {most}"] if lines > most else []


RULES: tuple[Rule, ...] = (
    arrows,
    package_stands_alone,
    one_owner,
    writes_whole,
    no_slow_nnx,
    no_tensorflow,
    no_pickle,
    no_code_of_hubs,
    heavy_imports_inside,
    no_drawer,
    floors,
    no_hidden_imports,
    checkpoints_are_for_training,
    sizes,
)

VIOLATIONS = [
    (arrows, "remind_jax/ops/a.py", "from flax import nnx"),
    (arrows, "remind_jax/ops/a.py", "import remind_jax.models.model"),
    (arrows, "remind_jax/ops/a.py", "def f():\n  import grain"),
    (arrows, "remind_jax/models/fusion/a.py", "from transformers import AutoTokenizer"),
    (arrows, "remind_jax/models/fusion/a.py", "from ...data import groups"),
    (arrows, "remind_jax/models/a.py", "from remind_jax import evaluation"),
    (arrows, "remind_jax/objectives/a.py", "import sklearn.metrics"),
    (arrows, "remind_jax/objectives/a.py", "from remind_jax import tasks"),
    (arrows, "remind_jax/models/a.py", "from remind_jax.tasks import survival"),
    (arrows, "benchmarks/run.py", "from remind_jax.tasks.task import Task"),
    (arrows, "remind_jax/objectives/a.py", "from remind_jax.models import model"),
    (arrows, "remind_jax/config/table.py", "from remind_jax.data import samplers"),
    (arrows, "remind_jax/methods.py", "from remind_jax.studies import baselines"),
    (arrows, "configs/a.py", "from remind_jax.data.sources import synthetic"),
    (arrows, "configs/a.py", "import numpy as np"),
    (arrows, "benchmarks/run.py", "import ml_collections"),
    (arrows, "benchmarks/run.py", "import tensorflow_datasets as tfds"),
    (arrows, "benchmarks/run.py", "from remind_jax.data import pipeline"),
    (arrows, "benchmarks/run.py", "import importlib\nimportlib.import_module('polars')"),
    (package_stands_alone, "remind_jax/training/loop.py", "from configs import nhanes"),
    (package_stands_alone, "remind_jax/training/step.py", "import chex"),
    (package_stands_alone, "remind_jax/evaluation/survival.py", "def f():\n  from sksurv import metrics"),
    (one_owner, "remind_jax/training/loop.py", "import orbax.checkpoint as ocp"),
    (one_owner, "remind_jax/training/loop.py", "from jax.sharding import Mesh"),
    (one_owner, "remind_jax/training/loop.py", "import jax\nmesh = jax.sharding.Mesh([], 'd')"),
    (one_owner, "remind_jax/training/loop.py", "import jax\nmesh = jax.make_mesh((4,), ('d',))"),
    (one_owner, "remind_jax/training/loop.py", "from jax import sharding as sh"),
    (one_owner, "remind_jax/training/optimizer.py", "from flax import nnx"),
    (one_owner, "remind_jax/studies/a.py", "import os\nos.replace('a.tmp', 'a')"),
    (one_owner, "remind_jax/data/a.py", "def f():\n  import fcntl"),
    (one_owner, "remind_jax/training/optimizer.py", "import flax\nflax.nnx.split(1)"),
    (one_owner, "remind_jax/training/loop.py", "import jax\njax.profiler.start_trace('a')"),
    (one_owner, "remind_jax/studies/a.py", "def f():\n  import wandb"),
    (one_owner, "remind_jax/studies/a.py", "def f():\n  import optuna"),
    (one_owner, "remind_jax/studies/a.py", "def f():\n  import ray"),
    (one_owner, "remind_jax/data/a.py", "import tempfile\ntempfile.mkstemp()"),
    (writes_whole, "remind_jax/a.py", "open('a', 'w')"),
    (writes_whole, "remind_jax/a.py", "open('a', mode='r+')"),
    (writes_whole, "remind_jax/a.py", "with path.open('ab') as file: pass"),
    (writes_whole, "remind_jax/a.py", "import gzip\ngzip.open(path, 'wt')"),
    (writes_whole, "remind_jax/a.py", "open('a', mode)"),
    (writes_whole, "remind_jax/a.py", "import os\nos.open('a', os.O_WRONLY | os.O_CREAT)"),
    (writes_whole, "remind_jax/a.py", "path.write_text('')"),
    (writes_whole, "remind_jax/a.py", "path.touch()"),
    (writes_whole, "remind_jax/a.py", "table.write_parquet('a')"),
    (writes_whole, "remind_jax/a.py", "import numpy as np\nnp.save('a', x)"),
    (writes_whole, "remind_jax/a.py", "figure.savefig(path)"),
    (writes_whole, "remind_jax/a.py", "import shutil\nshutil.copytree('a', 'b')"),
    (writes_whole, "remind_jax/a.py", "with files.whole_file(a) as b: pass\nb.write_bytes(b'')"),
    (no_slow_nnx, "remind_jax/models/a.py", "from flax import nnx\n@nnx.jit\ndef f(): pass"),
    (no_slow_nnx, "tests/models/test_a.py", "import flax.nnx as fx\nfx.value_and_grad(abs)"),
    (no_slow_nnx, "remind_jax/models/a.py", "from flax.nnx import Optimizer"),
    (no_tensorflow, "tests/test_a.py", "import tensorflow as tf"),
    (no_tensorflow, "remind_jax/data/a.py", "def f():\n  from tensorflow.io import gfile"),
    (no_pickle, "remind_jax/data/a.py", "import pickle"),
    (no_pickle, "tests/test_a.py", "from joblib import load"),
    (no_pickle, "remind_jax/data/a.py", "import numpy as np\nnp.load('f', allow_pickle=True)"),
    (no_pickle, "remind_jax/data/a.py", "import numpy as np\nnp.load('f', allow_pickle=x)"),
    (no_pickle, "remind_jax/data/a.py", "import numpy as np\nnp.save('f', [], allow_pickle=True)"),
    (no_pickle, "tests/test_a.py", "import numpy as np\nnp.load('f', allow_pickle=True)"),
    (no_code_of_hubs, "remind_jax/data/a.py", "AutoTokenizer.from_pretrained(name)"),
    (no_code_of_hubs, "tests/a.py", "transformers.AutoModel.from_pretrained(name, trust_remote_code=True)"),
    (no_code_of_hubs, "remind_jax/data/a.py", "A.from_pretrained(name, trust_remote_code=some)"),
    (heavy_imports_inside, "remind_jax/data/a.py", "import tensorflow_datasets as tfds"),
    (heavy_imports_inside, "remind_jax/evaluation/a.py", "from sklearn import metrics"),
    (heavy_imports_inside, "remind_jax/config/table.py", "import ml_collections"),
    (no_drawer, "remind_jax/utils.py", ""),
    (floors, "remind_jax/inference/a.py", "from remind_jax.training import loop"),
    (floors, "remind_jax/inference/a.py", "def f():\n  from remind_jax import training"),
    (floors, "remind_jax/training/a.py", "from remind_jax.studies import runner"),
    (floors, "remind_jax/studies/a.py", "from remind_jax.analysis import command"),
    (floors, "remind_jax/runtime/a.py", "from remind_jax.data import groups"),
    (floors, "remind_jax/data/a.py", "from ..models import model"),
    (floors, "remind_jax/evaluation/a.py", "from remind_jax import predict"),
    (floors, "remind_jax/evaluation/a.py", "from remind_jax import tasks"),
    (floors, "remind_jax/data/a.py", "from remind_jax.tasks import survival"),
    (floors, "remind_jax/tasks/a.py", "from remind_jax.inference import predictor"),
    (no_hidden_imports, "remind_jax/data/a.py", "def f():\n  from remind_jax.data import groups"),
    (no_hidden_imports, "remind_jax/data/a.py", "if TYPE_CHECKING:\n  from remind_jax.data import groups"),
    (
        checkpoints_are_for_training,
        "remind_jax/analysis/a.py",
        "from remind_jax.training.checkpoint import Checkpoints",
    ),
    (checkpoints_are_for_training, "remind_jax/predict.py", "from remind_jax.training import checkpoint"),
    (sizes, "remind_jax/data/a.py", "\n" * 450 + "pass"),
    (sizes, "remind_jax/predict.py", "\n" * 80 + "pass"),
]

ALLOWED = [
    ("remind_jax/ops/a.py", "import functools\nimport jax.numpy as jnp\nfrom remind_jax.ops import routing"),
    ("remind_jax/models/a.py", "from flax import nnx\nfrom ..ops import routing\nnnx.Linear(1, 2, rngs=nnx.Rngs(0))"),
    ("remind_jax/models/a.py", "import jax\njax.jit(abs)\njax.grad(abs)"),
    ("remind_jax/training/checkpoint.py", "import orbax.checkpoint as ocp"),
    ("remind_jax/runtime/devices.py", "from jax.sharding import Mesh"),
    ("remind_jax/data/a.py", "from remind_jax.runtime import files\nwith files.whole_file(a) as b: t.write_csv(b)"),
    (
        "remind_jax/data/a.py",
        "from remind_jax.runtime import files\nfiles.write_text(a, 'b')\nopen(a, 'rb')\nt.write_csv()",
    ),
    ("remind_jax/data/a.py", "import io\nout = io.StringIO()\nfigure.savefig(out)\na.open()"),
    ("remind_jax/data/a.py", "import numpy as np\ndef f():\n  import grain\n  np.load('f', allow_pickle=False)"),
    ("tests/test_a.py", "import numpy as np\nnp.save('f', [], allow_pickle=True)"),
    ("benchmarks/run.py", "from benchmarks import cases\nimport torch"),
    ("remind_jax/data/a.py", "AutoTokenizer.from_pretrained(name, trust_remote_code=False)"),
    ("remind_jax/data/a.py", "import tensorflow_datasets_like_name"),
    ("remind_jax/config/table.py", "def f():\n  import ml_collections"),
    ("remind_jax/predict.py", "def f():\n  from remind_jax.inference import model_folder"),
    ("remind_jax/inference/a.py", "from remind_jax import config\nfrom remind_jax.data import groups"),
    ("remind_jax/analysis/opening.py", "from remind_jax.training.checkpoint import Checkpoints"),
    ("remind_jax/config/table.py", "\n" * 400 + "pass"),
]


# ---- The house as a whole -------------------------------------------------------------------------------------------


def modules(files: dict[str, str]) -> dict[str, set[str]]:
    """What each module of the package imports of it, anywhere in its source; `files` are sources by path."""
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}

    def owner(name: str) -> str | None:
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name if name not in ("", "remind_jax") else None

    return {
        module: {found for name in imported(path, ast.walk(ast.parse(files[path]))) if (found := owner(name))}
        - {module}
        for module, path in names.items()
    }


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other, hidden imports included."""

    def reached(start: str) -> set[str]:
        found, left = set(), [start]
        while left:
            new = arrows[left.pop()] - found
            found |= new
            left += new
        return found

    reach = {module: reached(module) for module in arrows}
    loops = {frozenset(other for other in reach[m] if m in reach[other]) for m in arrows if m in reach[m]}
    return sorted(sorted(loop) for loop in loops)


def package() -> dict[str, str]:
    """Sources of the package by path."""
    files = (path for path in sources() if path.relative_to(ROOT).parts[0] == "remind_jax")
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def test_no_import_goes_in_a_circle() -> None:
    assert circles(modules(package())) == []


def test_a_circle_is_caught() -> None:
    files = {
        "remind_jax/a.py": "from remind_jax.data import b",
        "remind_jax/data/__init__.py": "",
        "remind_jax/data/b.py": "def f():\n  from remind_jax.data.c import g",
        "remind_jax/data/c.py": "if TYPE_CHECKING:\n  from remind_jax.data import b",
    }
    assert circles(modules(files)) == [["remind_jax.data.b", "remind_jax.data.c"]]
    assert circles(modules(files | {"remind_jax/data/c.py": "import json"})) == []


def test_the_house_has_room() -> None:
    files = package()
    assert sum(path.count("/") == 1 for path in files) <= MOST_AT_THE_TOP
    assert sum(text.count("\n") for text in files.values()) <= MOST_OF_ALL


def sources() -> list[pathlib.Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture(scope="module")
def broken() -> dict[Rule, dict[str, list[str]]]:
    """What breaks each rule, by path; a source is read once for all of them."""
    found: dict[Rule, dict[str, list[str]]] = {rule: {} for rule in RULES}
    for path in sources():
        relative, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        for rule in RULES:
            if names := rule(relative, tree):
                found[rule][relative] = sorted(set(names))
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(broken: dict[Rule, dict[str, list[str]]], rule: Rule) -> None:
    assert not broken[rule], f"{rule.__name__}: {broken[rule]}"


def test_the_search_finds_the_sources() -> None:
    assert {"__init__.py", "errors.py", "test_architecture.py"} <= {path.name for path in sources()}


@pytest.mark.parametrize(("rule", "path", "source"), VIOLATIONS, ids=lambda value: getattr(value, "__name__", None))
def test_a_violation_is_caught(rule: Rule, path: str, source: str) -> None:
    assert rule(path, ast.parse(source))


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert [rule.__name__ for rule in RULES if rule(path, ast.parse(source))] == []


def test_every_rule_has_a_violation() -> None:
    assert {rule for rule, _, _ in VIOLATIONS} == set(RULES)


def test_the_session_is_strict() -> None:
    assert jax.device_count() == 4
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
    with pytest.raises(ValueError, match="promotion"):
        jnp.ones(3, jnp.float32) + jnp.ones(3, jnp.bfloat16)
