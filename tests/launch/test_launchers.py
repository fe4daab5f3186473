"""What launch/ would start, and that it starts: shell scripts, YAML, and real processes under an srun of our own."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

from launch import preflight
from launch.k8s import render
from remind_jax import sweep
from remind_jax.errors import UserError
from remind_jax.runtime import cluster, processes
from tests import tiny_runs

ROOT = tiny_runs.ROOT
LAUNCH, HERE = ROOT / "launch", pathlib.Path(__file__).parent
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
SCHEMAS = yaml.safe_load((HERE / "schemas.yaml").read_text(encoding="utf-8"))
TRAIN, SWEEP = LAUNCH / "slurm" / "train.sbatch", LAUNCH / "slurm" / "sweep.sbatch"
SKY, SKY_SWEEP = (
    yaml.safe_load((LAUNCH / "skypilot" / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("train", "sweep")
)
RAYJOB = yaml.safe_load((LAUNCH / "k8s" / "rayjob.yaml").read_text(encoding="utf-8"))
# As sbatch leaves it for the script of a job.
BATCH = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "2"}
RUN = ["--config=configs/nhanes.py", "--workdir=runs/a b"]


def _run(*command: object, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SLURM_"))}
    path = {"PATH": f"{HERE}:{clean['PATH']}", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    environment = {**clean, **path, "JAX_PLATFORMS": "cpu", **environment}
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def _check(document: object, schema: str) -> None:
    jsonschema.validate(document, {**SCHEMAS[schema], "$defs": SCHEMAS["$defs"]}, jsonschema.Draft202012Validator)


# ---- As they stand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [*SCRIPTS, SKY, SKY_SWEEP], ids=lambda x: x.get("name") if isinstance(x, dict) else x.name
)
def test_shell_is_clean(script, tmp_path):
    if isinstance(script, dict):
        given = "".join(f"{name}=\n" for name in script["envs"])
        (tmp_path / "run.sh").write_text(f"#!/usr/bin/env bash\n{given}{script['run']}", encoding="utf-8")
        script = tmp_path / "run.sh"
    else:
        assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    checker = pathlib.Path(sys.executable).with_name("shellcheck")
    found = _run(checker if checker.exists() else "shellcheck", "-x", script)
    assert found.returncode == 0, found.stdout


def test_the_checker_of_shells_finds_something(tmp_path):
    (tmp_path / "bad.sh").write_text("#!/bin/bash\nrm $1/*\n", encoding="utf-8")
    assert _run(pathlib.Path(sys.executable).with_name("shellcheck"), tmp_path / "bad.sh").returncode == 1


def test_every_launcher_is_in_the_table():
    table = (LAUNCH / "README.md").read_text(encoding="utf-8")
    linked = {(LAUNCH / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", table)}
    others = ("k8s/render.py", "k8s/rayjob.yaml", "skypilot/train.yaml", "skypilot/sweep.yaml")
    assert set(SCRIPTS) | {LAUNCH / name for name in others} <= linked


def test_exit_codes_are_those_of_the_table():
    table = (LAUNCH / "README.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table.partition("of training")[0], re.MULTILINE)}
    codes = {preflight.DEVICES, preflight.SUM, preflight.FOLDER, preflight.SPACE, preflight.CLOCK}
    assert listed == codes | {0, UserError.code}
    for code in listed:
        assert re.search(rf"^    {code} ", preflight.__doc__, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["--name=a-1", "--nodes=3", "--gpus=0", "--preflight"]])
def test_manifests_keep_the_published_schema(arguments):
    jobset, policy = yaml.safe_load_all(render.main(arguments))
    _check(jobset, "jobset")
    _check(policy, "policy")
    jobset["spec"]["network"]["enableDnsHostnames"] = True
    with pytest.raises(jsonschema.ValidationError, match="enableDnsHostnames"):
        _check(jobset, "jobset")
    policy["spec"]["egress"][0]["ports"] = [{"port": "dns"}]
    with pytest.raises(jsonschema.ValidationError, match="dns"):
        _check(policy, "policy")


def test_skypilot_keeps_the_published_schema():
    _check(SKY, "skypilot")
    _check(SKY_SWEEP, "skypilot")
    with pytest.raises(jsonschema.ValidationError, match="nodes"):
        _check(SKY | {"nodes": 2}, "skypilot")


def test_pods_have_no_rights_and_no_way_out():
    jobset, policy = yaml.safe_load_all(render.main(["--name=mine", "--nodes=3", "--gpus=4", "--", *RUN]))
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    own = {"podSelector": {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": "mine"}}}
    spec = policy["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["podSelector"] == own["podSelector"]
    assert spec["ingress"] == [{"from": [own]}]
    assert spec["egress"][0] == {"to": [own]}
    assert {port["port"] for port in spec["egress"][1]["ports"]} == {53}
    # Each pod finds the others by what stands there.
    given = {entry["name"]: entry.get("value", "2") for entry in container["env"]}
    place = processes.detect(given | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 4)
    assert place == processes.Place("JAX_*", "mine-workers-0-0.mine:8476", 3, 2)
    assert jobset["spec"]["network"]["subdomain"] == "mine"
    assert (job["completions"], job["parallelism"], container["resources"]["limits"]["nvidia.com/gpu"]) == (3, 3, 4)
    assert container["args"] == ["-m", "remind_jax.main", *RUN]


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
def test_a_sweep_of_kuberay_keeps_the_published_schema():
    _check(RAYJOB, "rayjob")
    with pytest.raises(jsonschema.ValidationError, match="entryPoint"):
        _check(RAYJOB | {"spec": {"entryPoint": "x"}}, "rayjob")
    groups = RAYJOB["spec"]["rayClusterSpec"]
    for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"]):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]
        assert group["template"]["spec"]["automountServiceAccountToken"] is False
    assert groups["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    program, module, *given = shlex.split(RAYJOB["spec"]["entrypoint"])[1:]
    assert (program, module) == ("-m", "remind_jax.sweep")
    setup, folder, _ = sweep.parse([argument.replace("/shared", "shared") for argument in given])
    assert setup.options.ray == cluster.Given("auto")
    assert str(folder) == "shared/runs/sweep"


@pytest.mark.parametrize("arguments", [["--name=Mine"], ["--nodes=0"], ["--gpus=-1"], ["--unknown"]])
def test_what_cannot_be_rendered_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        render.main(arguments)
    assert "error:" in capsys.readouterr().err


def test_images_stand_on_a_base_by_digest_and_run_as_an_ordinary_user():
    text = (LAUNCH / "docker" / "Dockerfile").read_text(encoding="utf-8")
    stages = dict.fromkeys(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    assert list(stages) == ["base", "cpu", "cuda", "ray"]
    for source in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert source in stages or re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", source)
    for stage in ("cpu", "cuda", "ray"):
        body = re.search(rf"^FROM \w+ AS {stage}\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)[1]
        assert re.findall(r"^USER (\S+)", body, re.MULTILINE)[-1] == "1000:1000"
        assert body.index("RUN pip") < body.index("USER 1000")
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    allowed = (LAUNCH / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert {f"!{name}" for names in copied for name in names.split()} <= set(allowed)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


# ---- Dry runs --------------------------------------------------------------------------------------------------------


def test_dry_run_of_slurm():
    shown = _run("bash", TRAIN, *RUN, DRY_RUN="1", **BATCH)
    check, train = (shlex.split(line) for line in shown.stdout.splitlines())
    assert [check[0], train[0]] == ["srun", "srun"]
    assert check[-2:] == ["launch/preflight.py", "--folder=runs/a b"]
    assert train[-4:] == ["-m", "remind_jax.main", *RUN]
    assert "--wait=60" in train
    sweep = shlex.split(_run("bash", SWEEP, *RUN, DRY_RUN="1", **BATCH).stdout)
    assert sweep == ["srun", "--ntasks=1", sys.executable, "-u", "-m", "remind_jax.sweep", "--share", *RUN]


@pytest.mark.parametrize("script", [TRAIN, SWEEP], ids=lambda script: script.name)
def test_options_of_slurm(script):
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(encoding="utf-8"), re.MULTILINE))
    assert options["signal"].startswith("USR1@")  # to the tasks: with B: it would go to the script alone
    assert {"requeue", "open-mode"} <= options.keys()
    assert "gpus-per-task" not in options


def test_dry_run_of_local_processes():
    shown = _run(LAUNCH / "local.sh", "-n", "3", "-d", "2", *RUN, DRY_RUN="1")
    lines = [shlex.split(line) for line in shown.stdout.splitlines()]
    for i, line in enumerate(lines):
        settings = dict(part.split("=", 1) for part in line[1 : line.index(sys.executable)])
        place = processes.detect(settings, 0)
        assert (place.process, place.processes) == (i, 3)
        assert int(settings["NPROC"]) >= 32
        assert "device_count=2" in settings["XLA_FLAGS"]
        assert line[-2:] == RUN
    assert len(lines) == 3


def test_dry_run_of_local_processes_with_gpus(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n", encoding="utf-8")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    shown = _run(LAUNCH / "local.sh", "-n", "2", *RUN, DRY_RUN="1", PATH=path, JAX_PLATFORMS="")
    assert re.findall(r"JAX_LOCAL_DEVICE_IDS=(\S+)", shown.stdout.replace("\\", "")) == ["0,1", "2,3"]
    uneven = _run(LAUNCH / "local.sh", "-n", "3", *RUN, DRY_RUN="1", PATH=path, JAX_PLATFORMS="")
    assert (uneven.returncode, uneven.stderr) == (2, "error: 3 processes cannot share 4 GPUs evenly\n")


def test_dry_run_of_skypilot(tmp_path):
    (tmp_path / "run.sh").write_text(SKY["run"], encoding="utf-8")
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    given = {"ARGUMENTS": "--config=configs/nhanes.py --workdir=/shared/a", "DRY_RUN": "1"}
    line = shlex.split(_run("bash", tmp_path / "run.sh", **nodes, **given).stdout)
    settings = dict(part.split("=", 1) for part in line[1:4])
    assert processes.detect(nodes | settings, 8) == processes.Place("JAX_*", "10.0.0.7:8476", 2, 1)
    assert line[4:] == ["python", "-m", "remind_jax.main", *given["ARGUMENTS"].split()]


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_dry_run_of_a_sweep_of_skypilot(tmp_path, rank):
    (tmp_path / "run.sh").write_text(SKY_SWEEP["run"], encoding="utf-8")
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": rank}
    given = {"ARGUMENTS": "--config=nhanes --workdir=shared/a", "DRY_RUN": "1"}
    start, run = map(shlex.split, _run("bash", tmp_path / "run.sh", **nodes, **given).stdout.splitlines())
    if rank == "1":
        assert (start, run) == (["ray", "start", "--address=10.0.0.7:6399", "--block"], ["wait"])
        return
    assert start[:4] == ["ray", "start", "--head", "--port=6399"]
    assert run[:3] == ["python", "-m", "remind_jax.sweep"]
    assert sweep.parse(run[3:])[0].options.ray == cluster.Given("10.0.0.7:6399")


def test_dry_run_of_docker():
    shown = _run(LAUNCH / "docker" / "run.sh", "cuda", "/data", *RUN, DRY_RUN="1")
    build, run = (shlex.split(line) for line in shown.stdout.splitlines())
    assert build[:4] == ["docker", "build", "--target", "cuda"]
    assert {"--read-only", "--gpus", "/data:/shared"} <= set(run)
    assert run[run.index("--network") + 1] == "none"
    assert run[-2:] == RUN
    assert _run(LAUNCH / "docker" / "run.sh", "cuda").returncode == 2


# ---- Real processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_of_slurm_checks_itself_and_starts_the_run(tmp_path):
    """Two tasks find each other by Slurm's variables, check the folder together, and training gets the arguments."""
    log = tmp_path / "log"
    settings = BATCH | {"FAKE_NODES": "2", "FAKE_LOG": str(log)}
    done = _run("bash", TRAIN, "--config=missing.py", f"--workdir={tmp_path}", **settings)
    assert "[0] process 0 of 2, as Slurm says" in done.stdout
    assert "[1] process 1 of 2, as Slurm says" in done.stdout
    assert done.stdout.count("renames are atomic") == 2
    assert "FAIL" not in done.stdout
    check, train = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    assert check["srun"] == train["srun"]
    assert train["command"][2:4] == ["-m", "remind_jax.main"]
    assert done.returncode == UserError.code
    assert "error: config file missing.py does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == [log]  # nothing is left of the check


@pytest.mark.parametrize("script", [TRAIN, SWEEP], ids=lambda script: script.name)
@pytest.mark.parametrize(("code", "restarts", "queued"), [(75, "3", True), (75, "100", False), (143, "0", False)])
def test_a_job_that_was_stopped_in_time_queues_again(script, code, restarts, queued, tmp_path):
    for name, text in (("srun", f'case "$*" in *preflight*) ;; *) exit {code} ;; esac'), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_RESTART_COUNT": restarts}
    done = _run("bash", script, *RUN, **BATCH, **path)
    assert done.returncode == code
    assert done.stdout == ("requeue 77\n" if queued else "")


@pytest.mark.slow
def test_processes_that_share_no_folder_are_told_so(tmp_path):
    """Each in a folder of its own, by a link that leads every process elsewhere."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from launch import preflight\n"
        "folder = sys.argv[1] + os.environ['JAX_PROCESS_ID']\n"
        "preflight.main(['--folder=' + folder, *sys.argv[2:]])\n",
        encoding="utf-8",
    )
    start = (LAUNCH / "local.sh", "-n", "2", "-p", program, tmp_path / "folder")
    done = _run(*start)
    assert done.returncode == preflight.FOLDER
    assert "FAIL  [1]" in done.stdout
    assert "is not the same folder as that of process 0" in done.stdout
    assert "FAIL  [0]" not in done.stdout
    assert _run(*start, "--not-shared").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("--devices=5", preflight.DEVICES, "4 devices (cpu) instead of 5"),
        ("--free-gib=1e9", preflight.SPACE, "GiB free"),
        ("--folder=/proc/nowhere", preflight.FOLDER, "cannot be written"),
    ],
)
def test_what_the_preflight_finds(option, code, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        preflight.main([f"--folder={tmp_path}", "--free-gib=0.001", option])
    assert end.value.code == code
    shown = capsys.readouterr().out
    assert words in shown
    assert shown.count("FAIL") == (2 if code == preflight.FOLDER else 1)  # nor has that folder any space
    assert shown.count("ok ") == 6 - shown.count("FAIL")
    assert not list(tmp_path.iterdir())


def test_a_preflight_that_finds_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        preflight.main([f"--folder={tmp_path}", "--devices=4", "--free-gib=0.001"])
    assert end.value.code == 0
    assert "a sum over 4 devices" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown option --wrong"):
        preflight.main(["--wrong"])


def test_a_file_that_is_replaced_in_two_steps_is_found_out(tmp_path, monkeypatch):
    def in_two_steps(file: pathlib.Path, text: str) -> None:
        file.unlink(missing_ok=True)
        time.sleep(1e-3)  # on one core the reader would else not have its turn between the two
        file.write_text(text, encoding="utf-8")

    assert preflight.replace_while_reading(tmp_path / "a", "some text") == ""
    monkeypatch.setattr(preflight.files, "write_text", in_two_steps)
    assert "half-written or missing" in preflight.replace_while_reading(tmp_path / "b", "some text")


@pytest.mark.slow
def test_local_processes_end_with_the_one_that_fails(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(9)\ntime.sleep(50)\n",
        encoding="utf-8",
    )
    done = _run(LAUNCH / "local.sh", "-n", "3", "-p", program, timeout=20)
    assert done.returncode == 9
    assert "process 1 of 3 ended with exit code 9: ending the others" in done.stderr


def test_local_processes_hear_signals(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        "pathlib.Path(sys.argv[1], os.environ['JAX_PROCESS_ID']).touch()\n"
        "time.sleep(50)\n",
        encoding="utf-8",
    )
    ready = f"while (( $(ls {shlex.quote(str(tmp_path))} | wc -l) < 3 )); do sleep 0.05; done"
    start = f"{LAUNCH / 'local.sh'} -n 2 -p {program} {tmp_path} & {ready}; kill -USR1 $!; wait $!; echo $?"
    assert _run("bash", "-c", start).stdout == "75\n"


def test_there_is_no_slurm_here_that_the_tests_would_use():
    assert shutil.which("srun", path=f"{HERE}:{os.environ['PATH']}") == str(HERE / "srun")
