"""Work without a network, and a record of who asks for one: `python -m tests.training.cut_off FILE WORK …` writes FILE.

What Python asks for is seen by an audit hook, and refused. What any process asks for, the compiled ones of Weights &
Biases too, is seen where the system allows a network of one's own: it has a loopback device alone, and all addresses of
the world lie there, so that a packet to them can be read and goes nowhere.
"""

import contextlib
import ctypes
import fcntl
import ipaddress
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading

_NEWNET, _NEWUSER = 0x40000000, 0x10000000  # of <sched.h>
_SIOCADDRT, _SIOCSIFFLAGS, _UP = 0x890B, 0x8914, 1  # of <linux/sockios.h> and <net/if.h>
_ROUTE = "L16s16s16sHhLPhPLLH6x"  # struct rtentry of <linux/route.h>: its tenth field is the name of the device
_ALL_PACKETS, _IPV4, _IPV6, _NAME_SERVICE = 3, 0x0800, 0x86DD, 53
_PACKAGES = ("tensorboardX", "mlflow", "wandb")


def main(file: str, *work: str) -> None:
    """Watches a child at work; FILE gets `asked`, `packets` (null where they cannot be seen), `printed` and `code`."""
    heard = _own_network()
    command = [sys.executable, "-m", "tests.training.cut_off", "--", file, *work]
    # Its output ends when all have ended that it has started: a service may call home as it ends.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    asked = pathlib.Path(f"{file}.asked")
    seen = {"asked": asked.read_text().splitlines() if asked.exists() else [], "packets": _packets(heard)}
    pathlib.Path(file).write_text(json.dumps(seen | {"printed": done.stdout, "code": done.returncode}))


def _own_network() -> socket.socket | None:
    """Moves this process into a network of its own; returns a socket that hears all of it, None where it may not."""
    user = os.getuid()
    if ctypes.CDLL(None).unshare(_NEWNET | (_NEWUSER if user else 0)):
        return None
    if user:
        pathlib.Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    device, nowhere = ctypes.create_string_buffer(b"lo"), struct.pack("H14x", socket.AF_INET)
    route = struct.pack(_ROUTE, 0, *3 * [nowhere], _UP, 0, 0, 0, 0, ctypes.addressof(device), 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _UP))
        fcntl.ioctl(control, _SIOCADDRT, route)
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PACKETS))
    heard.setblocking(False)
    return heard


def _packets(heard: socket.socket | None) -> list[str] | None:
    if heard is None:
        return None
    found = set()
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, about = heard.recvfrom(65_536)
            found.add(_target(packet, about[1]))
    return sorted(found - {""})


def _target(packet: bytes, kind: int) -> str:
    """Where a packet goes, empty for what stays in this machine. The name service does not, wherever it lives."""
    if kind == _IPV4:
        address, start = ipaddress.ip_address(packet[16:20]), 4 * (packet[0] & 15)
    elif kind == _IPV6:
        address, start = ipaddress.ip_address(packet[24:40]), 40
    else:
        return ""
    (port,) = struct.unpack_from("!H", packet, start + 2)
    stays = address.is_loopback or address.is_multicast
    return "" if stays and port != _NAME_SERVICE else f"{address}:{port}"


def _refuse(file: str) -> None:
    """Refuses Python a network, and writes down what it asked for."""

    def note(event: str, arguments: tuple) -> None:
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event in ("socket.connect", "socket.sendto") and arguments[0].family != socket.AF_UNIX:
            host = arguments[1][0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if host not in (None, "", "localhost", "127.0.0.1", "::1"):
            with open(f"{file}.asked", "a") as asked:
                asked.write(f"{event} {host}\n")
            raise OSError("there is no network")

    sys.addaudithook(note)


def record(tracker: str, folder: str, loud: str = "") -> None:
    """A run of a single record that a tracker follows; a `loud` one leaves the tracker's package as it comes."""
    from remind_jax.training import trackers
    from remind_jax.training.run_folder import RunFolder

    if loud:
        trackers._set = contextlib.nullcontext
    with contextlib.closing(RunFolder(pathlib.Path(folder), {}, tracker)) as opened:
        opened.log({"step": 1, "loss": 0.5})
    for thread in threading.enumerate():
        if thread.name == "GetTelemetryConfig":  # MLflow's, which asks in the background
            thread.join()


def sweep(folder: str, data: str) -> None:
    """Sweeps over a network and a plain model, without a tracker, then with each; prints what each has imported."""
    from remind_jax import sweep
    from tests import tiny_runs

    root = pathlib.Path(folder)
    arguments = tiny_runs.own_arguments(pathlib.Path(data), root / "cache", eval__bootstrap=20, train__epochs=1.0)
    arguments = [*arguments, "--methods=soft_moe,logistic_regression", "--seeds=0"]
    with tiny_runs.quick_programs(root / "compiled"):
        for name in ("", "tensorboard", "mlflow", "wandb"):
            sweep.main([*arguments, f"--config.train.track={name}", f"--workdir={root / (name or 'alone')}"])
            print(f"\nimported by {name}:", *(package for package in _PACKAGES if package in sys.modules))


def call(address: str) -> None:
    """Sends a packet in a way that the audit hook of this process does not see."""
    calling = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ({address!r}, 80))"
    subprocess.run([sys.executable, "-c", calling], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "--":
        _refuse(sys.argv[2])
        {"record": record, "sweep": sweep, "call": call}[sys.argv[3]](*sys.argv[4:])
    else:
        main(*sys.argv[1:])
