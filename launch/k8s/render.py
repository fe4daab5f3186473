"""Prints launch/k8s/jobset.yaml for a job of your own, to look at or to start.

    python launch/k8s/render.py --image=REGISTRY/remind-jax:cuda --nodes=2 --gpus=8 -- \
      --config=configs/embed.py --workdir=/shared/runs/embed | kubectl apply -f -

    --name=remind          of the job; --image=IMAGE built from launch/docker
    --nodes=2              pods, a process each; --gpus=8 of each, 0 for CPU
    --cpus=8 --memory=64Gi of each pod
    --claim=remind-shared  a persistent volume claim that all nodes can write (ReadWriteMany), mounted as /shared
    --preflight            runs launch/preflight.py there instead of training
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml

TEMPLATE = pathlib.Path(__file__).with_name("jobset.yaml")


def main(arguments: Sequence[str]) -> str:
    """The documents for a command line, as YAML."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="remind")
    parser.add_argument("--image", default="remind-jax:cuda")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--cpus", default="8")
    parser.add_argument("--memory", default="64Gi")
    parser.add_argument("--claim", default="remind-shared")
    parser.add_argument("--preflight", action="store_true")
    parser.add_argument("rest", nargs="*", help="arguments of remind_jax.main, after --")
    given = parser.parse_args(arguments)
    # Pods are named <name>-workers-0-<i>-<five letters>, and the job's name is their subdomain.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", given.name):
        parser.error(f"--name={given.name}: up to 40 lower-case letters, digits and hyphens, a letter first")
    if given.nodes < 1 or given.gpus < 0:
        parser.error(f"--nodes={given.nodes} --gpus={given.gpus}: at least one node")
    documents = list(yaml.safe_load_all(TEMPLATE.read_text(encoding="utf-8")))
    _fill(documents[0], given)
    _rename(documents[1], given.name)
    return yaml.safe_dump_all(documents, sort_keys=False)


def _fill(jobset: dict[str, Any], given: argparse.Namespace) -> None:
    jobset["metadata"]["name"] = jobset["spec"]["network"]["subdomain"] = given.name
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["completions"] = job["parallelism"] = given.nodes
    pod = job["template"]["spec"]
    pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = given.claim
    container = pod["containers"][0]
    container["image"] = given.image
    environment = {entry["name"]: entry for entry in container["env"]}
    environment["JAX_COORDINATOR_ADDRESS"]["value"] = f"{given.name}-workers-0-0.{given.name}:8476"
    environment["JAX_NUM_PROCESSES"]["value"] = str(given.nodes)
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    requests.update(cpu=given.cpus, memory=given.memory)
    limits.update({"memory": given.memory, "nvidia.com/gpu": given.gpus})
    if not given.gpus:
        del limits["nvidia.com/gpu"]
    if given.preflight:
        container["args"] = ["launch/preflight.py", "--folder=/shared", f"--devices={given.nodes * max(1, given.gpus)}"]
    elif given.rest:
        container["args"] = ["-m", "remind_jax.main", *given.rest]


def _rename(policy: dict[str, Any], name: str) -> None:
    key = "jobset.sigs.k8s.io/jobset-name"
    policy["metadata"]["name"] = name
    spec = policy["spec"]
    for selector in (spec["podSelector"], spec["ingress"][0]["from"][0]["podSelector"]):
        selector["matchLabels"][key] = name
    spec["egress"][0]["to"][0]["podSelector"]["matchLabels"][key] = name


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
