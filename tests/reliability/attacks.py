"""Rows about files and cells that attack: paths out of the folder, bombs and pickles."""

import contextlib
import functools
import gzip
import io
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from remind_jax.data import files
from remind_jax.errors import UserError
from remind_jax.models import pretrained
from remind_jax.training.checkpoint import Checkpoints
from tests.data.image_files import ramp, write_dicom, write_npy_header, write_picture, write_png_header
from tests.data.manifest_files import SCHEMA
from tests.reliability import Tally, malformed, row
from tests.reliability.inputs import COLUMNS, base_rows, load, write
from tests.tiny_runs import ROOT

# ---- Paths ----------------------------------------------------------------------------------------------------------

_OPENED: list[str] | None = None


def _note_opened(event: str, arguments: tuple) -> None:
    if event == "open" and _OPENED is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        _OPENED.append(os.fsdecode(arguments[0]))


@contextlib.contextmanager
def _opened() -> Iterator[list[str]]:
    """The paths that Python opens meanwhile."""
    global _OPENED
    if "note" not in _HOOKED:  # hooks stay for good
        sys.addaudithook(_note_opened)
        _HOOKED.add("note")
    _OPENED = found = []
    try:
        yield found
    finally:
        _OPENED = None


_HOOKED: set[str] = set()
SECRET = "outsider 4711"


def _attacks(folder: pathlib.Path, outside: pathlib.Path, ending: str) -> dict[str, str]:
    """Cells that lead out of the folder, or to no plain file, after what they need has been made."""
    (folder / "link.bin").symlink_to(outside / f"secret{ending}")
    (folder / "linked").symlink_to(outside)
    (folder / "second").symlink_to(folder / "linked")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "relative").symlink_to(f"../{outside.name}")
    (folder / "dangling").symlink_to(outside / "not there")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(folder):
        opened.bind("socket")
    name = f"secret{ending}"
    return {
        "dots": f"../{outside.name}/{name}",
        "dots within": f"scans/../../{outside.name}/{name}",
        "many dots": "../" * 40 + str(outside / name).lstrip("/"),
        "dots at the end": "scans/..",
        "absolute": str(outside / name),
        "double slash": f"/{outside / name}",
        "home": "~/secret",
        "file URL": f"file://{outside / name}",
        "http URL": "http://127.0.0.1:9/secret",
        "drive": f"C:\\{name}",
        "UNC": f"\\\\server\\share\\{name}",
        "backslash": f"..\\{outside.name}\\{name}",
        "NUL": f"scans/0\0../{outside.name}/{name}",
        "link to a file": "link.bin",
        "link to a folder": f"linked/{name}",
        "link to a link": f"second/{name}",
        "relative link": f"relative/{name}",
        "loop": "loop",
        "dangling": "dangling",
        "4096 characters": "a/" * 2048 + name,
        "long name": "a" * 300,
        "wide dots": f"．．/{outside.name}/{name}",
        "percent": f"%2e%2e/{outside.name}/{name}",
        "case": f"LINKED/{name}",
        "newline": f"scans\n/../../{outside.name}/{name}",
        "process": "/proc/self/environ",
        "device": "/dev/zero",
        "fifo": "fifo",
        "folder": "folder",
        "socket": "socket",
        "itself": ".",
        "blank": "scans/ ",
    }


@row(
    name="paths",
    title="cells that lead out of the folder: .., absolute, links, URL, NUL, over-long, devices",
    target="refused by code; nothing outside opened or told",
    unit="kinds of modality",
    reduced=1,
    full=4,
    broken="paths are joined to the folder as they come",
)
def paths(count: int, broken: bool) -> Tally:
    """Every attack for text, embeddings, images and volumes; what Python opens is watched."""
    tally = Tally()
    safe = files.safe_path
    if broken:
        files.safe_path = lambda root, cell: pathlib.Path(os.path.join(root, cell))
    try:
        for kind, ending in (("text", ".txt"), ("embedding", ".npy"), ("image", ".png"), ("volume", ".npy"))[:count]:
            with tempfile.TemporaryDirectory() as root:
                folder, outside = pathlib.Path(root) / "data", pathlib.Path(root) / "outside"
                folder.mkdir(), outside.mkdir()
                _secret(outside / f"secret{ending}", kind)
                modality = {"kind": kind, "column": "scan"} | (
                    {"stored": "file"} if kind in ("text", "embedding") else {}
                )
                schema = SCHEMA | {"modalities": {"labs": SCHEMA["modalities"]["labs"], "scan": modality}}
                attacks = _attacks(folder, outside, ending)
                for name, cell in attacks.items():
                    if broken and name in ("fifo", "device"):
                        continue  # would wait for ever
                    rows = base_rows()
                    for each in rows:
                        each[8] = ""
                    rows[3][8] = cell
                    write(folder, schema, rows)
                    with _opened() as opened:
                        verdict, why = load(folder, 12)
                    out = [path for path in opened if str(outside) in os.path.realpath(path)]
                    good = verdict == "refused" and not out and SECRET not in why and re.search("E00[1679]", why)
                    tally.check(bool(good), f"{kind}, {name}: {verdict} {why[:200]} opened {out}")
    finally:
        files.safe_path = safe
    tally.notes.append(f"{len(attacks)} attacks for each kind")
    return tally


def _secret(file: pathlib.Path, kind: str) -> None:
    if kind == "text":
        file.write_text(SECRET, encoding="utf-8")
    elif kind == "image":
        write_picture(file, ramp(20, 20, channels=3))
    else:
        np.save(file, np.ones((3, 4) if kind == "embedding" else (3, 8, 8), np.float32))


# ---- Bombs ----------------------------------------------------------------------------------------------------------

MOST_MIB = 512


def _png(width: int, height: int, *more: tuple[bytes, bytes], pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@functools.cache
def _zeros(size: int) -> bytes:
    """What zlib makes of so many zeros, without holding them."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    return b"".join([*(packer.compress(block) for _ in range(size // 2**20)), packer.flush()])


def _gz(path: pathlib.Path, head: bytes, size: int) -> None:
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(head)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


def _npz(path: pathlib.Path, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


def _tiff(path: pathlib.Path, width: int, height: int) -> None:
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 200),
        (278, 4, height),
        (279, 4, 50),
    ]
    body = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + bytes(300))


def _dicom(path: pathlib.Path, deflated: int = 0, **tags: object) -> None:
    write_dicom(path, np.zeros((4, 4), np.uint8), **tags)
    if deflated:
        content = path.read_bytes()
        content = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20], 1)
        path.write_bytes(content + _zeros(deflated))


GIB = 2**30
HARMLESS = (
    "png with 1 GiB of pixels behind a small header"  # it is as large as its header says, and what follows is left
)
BOMBS: dict[str, tuple[str, Callable[[pathlib.Path], object]]] = {
    "png of 60,000 x 60,000": ("image", lambda p: write_png_header(p, 60_000, 60_000)),
    "png of 2^31 - 1 squared": ("image", lambda p: write_png_header(p, 2**31 - 1, 2**31 - 1)),
    "png of one endless row": ("image", lambda p: write_png_header(p, 2**31 - 1, 1)),
    HARMLESS: (
        "image",
        lambda p: p.write_bytes(_png(8, 8, (b"IDAT", _zeros(GIB)))),
    ),
    "png with 1 GiB of text": (
        "image",
        lambda p: p.write_bytes(_png(8, 8, (b"zTXt", b"k\0\0" + _zeros(GIB)), pixels=bytes(200))),
    ),
    "png with 1 GiB of colour profile": (
        "image",
        lambda p: p.write_bytes(_png(8, 8, (b"iCCP", b"k\0\0" + _zeros(GIB)), pixels=bytes(200))),
    ),
    "png with 1 GiB of international text": (
        "image",
        lambda p: p.write_bytes(_png(8, 8, (b"iTXt", b"k\0\1\0\0\0" + _zeros(GIB)), pixels=bytes(200))),
    ),
    "tiff of 100,000 x 100,000": ("image", lambda p: _tiff(p, 100_000, 100_000)),
    "tiff as a volume": ("volume", lambda p: _tiff(p, 60_000, 60_000)),
    "gif of 65,535 x 65,535": (
        "image",
        lambda p: p.write_bytes(b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(40)),
    ),
    "dicom of 65,535 x 65,535": ("image", lambda p: _dicom(p, Rows=65_535, Columns=65_535)),
    "dicom of 2^30 frames": ("volume", lambda p: _dicom(p, NumberOfFrames=2**30)),
    "dicom, deflated": ("volume", lambda p: _dicom(p, deflated=GIB)),
    "npy of 2^40 bytes": ("image", lambda p: write_npy_header(p, (2**20, 2**20))),
    "npy volume of 2^42 bytes": ("volume", lambda p: write_npy_header(p, (2**14, 2**14, 2**14))),
    "npy embedding of 2^50 bytes": ("embedding", lambda p: write_npy_header(p, (2**25, 2**25), "<f4")),
    "npy, sparse file of 2^34 bytes": (
        "image",
        lambda p: (write_npy_header(p, (2**17, 2**17)), os.truncate(p, 2**34 + 128)),
    ),
    "npy embedding, sparse file of 2^34 bytes": (
        "embedding",
        lambda p: (write_npy_header(p, (2**17, 2**17)), os.truncate(p, 2**34 + 128)),
    ),
    "npy with a header of 100 MB": (
        "image",
        lambda p: p.write_bytes(b"\x93NUMPY\x02\0" + struct.pack("<I", 10**8) + b"(" * 10**8),
    ),
    "npz of 1 GiB as an image": ("image", lambda p: _npz(p, GIB)),
    "npz of 1 GiB as an embedding": ("embedding", lambda p: _npz(p, GIB)),
    "gz of 1 GiB as an image": ("image", lambda p: _gz(p, b"", GIB)),
    "gz of 1 GiB as a volume": ("volume", lambda p: _gz(p, b"\x93NUMPY", GIB)),
    "gz of 1 GiB as manifest.csv": ("csv", lambda p: _gz(p, ",".join(COLUMNS).encode() + b"\n", GIB)),
    "parquet of 30 million rows": ("parquet", lambda p: _long_parquet(p, 30_000_000)),
    "yaml of nine times nine": ("yaml", lambda p: p.write_text(malformed.laughs(12), encoding="utf-8")),
    "text of 2^34 bytes": ("text", lambda p: (p.touch(), os.truncate(p, 2**34))),
}


def _long_parquet(path: pathlib.Path, rows: int) -> None:
    """A small file of so many rows of zeros."""
    zeros = pl.select(pl.repeat(0, rows, dtype=pl.Int64).alias("x"))
    zeros.select(pl.col("x").alias(name) for name in COLUMNS).write_parquet(path, compression="zstd")


@row(
    name="bombs",
    title="files that claim or unpack to huge sizes: png, tiff, gif, dicom, npy, npz, gz, parquet, yaml",
    target=f"refused, under {MOST_MIB} MiB of memory each",
    unit="bombs",
    reduced=8,
    full=len(BOMBS),
    broken="sizes in headers are not looked at",
)
def bombs(count: int, broken: bool) -> Tally:
    """Each in a process of its own; memory as the kernel counts it, beyond what importing takes."""
    tally = Tally()
    names = list(BOMBS)[:: max(1, len(BOMBS) // count)][:count] if count < len(BOMBS) else list(BOMBS)
    if broken:
        names = ["png of 60,000 x 60,000", "npy, sparse file of 2^34 bytes"]
    for name in names:
        kind, make = BOMBS[name]
        with tempfile.TemporaryDirectory() as root:
            folder = pathlib.Path(root) / "data"
            _place_bomb(folder, kind, make)
            verdict, mib = _measured(folder, broken)
        tally.largest("most MiB above the start", mib)
        tally.check(
            verdict in (("refused", "loaded") if name == HARMLESS else ("refused",)) and mib < MOST_MIB,
            f"{name}: {verdict}, {mib:.0f} MiB",
        )
    return tally


def _place_bomb(folder: pathlib.Path, kind: str, make: Callable[[pathlib.Path], object]) -> None:
    rows = base_rows()
    modality = {"kind": kind, "column": "scan"} | ({"stored": "file"} if kind in ("text", "embedding") else {})
    is_file = kind in ("text", "embedding", "image", "volume")
    for each in rows:
        each[8] = "bomb" if is_file else ""
    labs = {"labs": SCHEMA["modalities"]["labs"]}
    write(folder, SCHEMA | {"modalities": labs | ({"scan": modality} if is_file else {})}, rows)
    if kind == "parquet":
        (folder / "manifest.csv").unlink()
    make(folder / {"csv": "manifest.csv", "parquet": "manifest.parquet", "yaml": "schema.yaml"}.get(kind, "bomb"))


_MEASURED = """
import contextlib, io, resource, sys
def most():  # not ru_maxrss, which a process inherits
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
from remind_jax import check_data
from remind_jax.data import inputs, reading
from remind_jax.errors import UserError
if sys.argv[2] == "broken":
    inputs.MAX_PIXELS = inputs.MAX_VOXELS = 2**62
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
start = most()
with contextlib.redirect_stdout(io.StringIO()):
    try:
        verdict = {0: "loaded", 2: "refused"}[check_data.run([sys.argv[1]])]
    except UserError as error:
        verdict = "refused" if str(error) and "\\n" not in str(error) and len(str(error)) < 5000 else "said too much"
    except BaseException as error:
        verdict = type(error).__name__
print(f"{verdict} {(most() - start) / 1024}")
"""


def _measured(folder: pathlib.Path, broken: bool) -> tuple[str, float]:
    """What check_data makes of a folder, and the most memory it took beyond its start, in MiB."""
    command = [sys.executable, "-c", _MEASURED, str(folder), "broken" if broken else ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return "took two minutes", float("inf")
    if done.returncode or not done.stdout.strip():
        return f"exit code {done.returncode}: {done.stderr[-200:]}", float("inf")
    verdict, _, mib = done.stdout.strip().rpartition(" ")
    return verdict, float(mib)


# ---- Pickles --------------------------------------------------------------------------------------------------------


def _pickle(canary: pathlib.Path) -> bytes:
    """A pickle that writes a file when it is read, spelled out: nothing here imports pickle."""
    return f"cbuiltins\nexec\n(Vopen({str(canary)!r}, 'w').write('x')\ntR.".encode()


def _object_array(canary: pathlib.Path, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
    return file.getvalue() + _pickle(canary)


def _zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return file.getvalue()


@row(
    name="pickles",
    title="pickles in npy, npz, pt, safetensors, images, manifests, tokenizers and checkpoint metadata",
    target="none executed, each refused",
    unit="all",
    reduced=1,
    full=1,
    broken="numpy may unpickle",
)
def pickles(count: int, broken: bool) -> Tally:
    """A file appears when one is read."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as root, _unpickling(broken):
        base, canary = pathlib.Path(root), pathlib.Path(root) / "CANARY"
        raw = _pickle(canary)
        forms = {
            "pickle": raw,
            "npy": _object_array(canary, (3, 4)),
            "npy volume": _object_array(canary, (3, 8, 8)),
            "npz": _zipped(x__npy=_object_array(canary, (3, 4))),
            "pt": _zipped(**{"archive/data__pkl": raw, "archive/version": b"3"}),
        }
        for kind in ("text", "embedding", "image", "volume", "csv", "parquet", "yaml"):
            for name, content in forms.items():
                folder = base / "data"
                shutil.rmtree(folder, ignore_errors=True)
                _place_bomb(folder, kind, lambda path, content=content: path.write_bytes(content))
                verdict, why = load(folder, None)
                ran = canary.exists()
                canary.unlink(missing_ok=True)
                good = not ran and (verdict == "refused" or (kind == "text" and verdict == "loaded"))
                tally.check(good, f"{name} as {kind}: {verdict} {why[:200]}{' executed' if ran else ''}")
        for name, content in forms.items():
            for ending in (".safetensors", ".pt", ".bin", ".npz", ""):
                file = base / f"weights{ending}"
                file.write_bytes(content)
                _refused(
                    tally,
                    canary,
                    f"{name} as weights{ending}",
                    lambda file=file: pretrained.load(str(file), {"w": pretrained.single("w")}, {"w": (3,)}),
                )
        for victim in _checkpoint_files(base / "whole"):
            folder = pathlib.Path(shutil.copytree(base / "whole", base / "copy"))
            (folder / victim).write_bytes(raw)
            (folder / "1" / "SHA256SUMS").write_text(checkpoint_sums(folder / "1"), encoding="utf-8")  # by an attacker
            _refused(tally, canary, f"pickle as {victim}", lambda folder=folder: _restore(folder), may_load=True)
            shutil.rmtree(folder)
    return tally


def checkpoint_sums(folder: pathlib.Path) -> str:
    from remind_jax.training import checkpoint

    return checkpoint._sums(folder)


def _checkpoint_files(folder: pathlib.Path) -> list[str]:
    with contextlib.closing(Checkpoints(folder, keep=0)) as checkpoints:
        checkpoints.save(1, {"x": np.arange(5, dtype=np.float32)}, {"step": 1})
    return sorted(path.relative_to(folder).as_posix() for path in (folder / "1").rglob("*") if path.is_file())


def _restore(folder: pathlib.Path) -> None:
    with contextlib.closing(Checkpoints(folder, keep=0, read_only=True, say=lambda text: None)) as checkpoints:
        checkpoints.record(1)
        checkpoints.arrays(1, {"x": np.zeros(5, np.float32)})


def _refused(tally: Tally, canary: pathlib.Path, what: str, call: Callable[[], object], may_load: bool = False) -> None:
    """Whether a call ends in a UserError, or does what it should where it may, and executes nothing."""
    why = ""
    try:
        call()
        why = "" if may_load else "loaded"
    except UserError:
        pass
    except BaseException as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
    ran = canary.exists()
    canary.unlink(missing_ok=True)
    tally.check(not why and not ran, f"{what}: {why}{' executed' if ran else ''}")


@contextlib.contextmanager
def _unpickling(broken: bool) -> Iterator[None]:
    """Lets an object array be read as numpy would if it were allowed to."""
    mapped = np.lib.format.open_memmap

    def trusting(path: pathlib.Path, mode: str) -> np.ndarray:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, **{"allow" + "_pickle": True})

    if broken:
        np.lib.format.open_memmap = trusting
    try:
        yield
    finally:
        np.lib.format.open_memmap = mapped
