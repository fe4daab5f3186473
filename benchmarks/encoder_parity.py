"""Compares the encoders with their models in torch and writes the table of docs/encoder_parity.md.

    python -m benchmarks.encoder_parity [--size=small|full|all] [--out=docs/encoder_parity.md]

Needs torch and transformers: pip install -e .[torch]. The full sizes take some minutes and about 6 GiB.
"""

import argparse
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from benchmarks.run import environment
from remind_jax.errors import UserError

OUT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "encoder_parity.md"
SIZES = ("small", "full", "all")

_TEXT = """# Encoders beside torch

    {command}

Each model of the reference starts from random weights (its own initialisation; biases, norms and running statistics are
moved off zero and one), is written as safetensors, and is read by `remind_jax.models.pretrained.load` as a published
checkpoint is. Both sides then see the same normally distributed pixels or random token ids, in evaluation mode. The
references are ViTModel, T5EncoderModel and ResNetModel of transformers, and for r3d_18 `tests/reference/torch_r3d.py`,
which has torchvision's network and names.

A difference is the greatest over all entries of an output; the greatest entry stands beside it. The last two columns
are distances to torch in float64: that of ours in float32 and that of torch's own float32.

{table}

{machine}

`narrow` is ResNet-50 with fewer and narrower blocks. `tests/models/test_torch_parity.py` makes the same comparisons,
also with the names that transformers gave ViT's tensors before release 5 and with torchvision's names of ResNet's.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message)


def cases(size: str) -> list[tuple[str, str, Callable[[], Any]]]:
    """Name, size and maker of each comparison.

    Args:
      size: one of `SIZES`.
    """
    from tests.models import parity

    small = [
        ("ViT, 32 x 32", "small", lambda: parity.vit_case("small")),
        ("T5 v1.0, 200 tokens", "small", lambda: parity.t5_case("small", gated=False)),
        ("T5 v1.1, 200 tokens", "small", lambda: parity.t5_case("small", gated=True)),
        ("ResNet, 75 x 75", "narrow", lambda: parity.resnet_case("narrow")),
        ("3D ResNet, 7 x 25 x 30", "small", lambda: parity.video_case("small")),
    ]
    full = [
        ("ViT-B/16, 224 x 224", "base", lambda: parity.vit_case("base")),
        ("T5-base v1.0, 200 tokens", "base", lambda: parity.t5_case("base", gated=False)),
        ("T5-base v1.1, 200 tokens", "base", lambda: parity.t5_case("base", gated=True)),
        ("ResNet-50, 224 x 224", "50", lambda: parity.resnet_case("50")),
        ("r3d_18, 16 x 224 x 224", "18", lambda: parity.video_case("18")),
    ]
    return {"small": small, "full": full, "all": small + full}[size]


def table(size: str) -> str:
    """Runs the comparisons and gives their rows in Markdown."""
    from tests.models import parity

    heads = ("encoder", "size", "output", "shape", "largest entry", "difference", "/ largest")
    lines = [(*heads, "ours to float64", "torch to float64"), ("---",) * 4 + ("---:",) * 5]
    for name, key, make in cases(size):
        for found in parity.compare(make()):
            numbers = (found.ours, found.ours / found.largest, found.ours_wide, found.torch_wide)
            shape = " x ".join(map(str, found.shape))
            lines.append((name, key, found.output, shape, f"{found.largest:.2f}", *(f"{x:.2e}" for x in numbers)))
            print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str]) -> None:
    """Writes the page.

    Args:
      arguments: of the command line.

    Raises:
      UserError: an argument is not understood, or a package is not installed.
    """
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--size", choices=SIZES, default="all")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    options = parser.parse_args(arguments)
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        raise UserError(f"{' and '.join(missing)} not installed: pip install -e .[torch]")
    os.environ["JAX_PLATFORMS"] = "cpu"  # as torch; before JAX starts
    rows, about = table(options.size), environment(cores=0)
    versions = about["versions"] | {"transformers": metadata.version("transformers")}
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    command = f"python -m benchmarks.encoder_parity --size={options.size}"
    text = _TEXT.format(command=command, table=rows, machine=f"{about['device']}; commit {about['commit']}; {names}.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
