"""Opens this folder with jax, numpy and flatbuffers: `predict = load("."); predict({"labs": ..., "present": ...})`.

`encode(rows)` of encode.py makes such inputs of rows of the raw table; schema.json lists them. A missing modality has
zeros as its input and False in `present`, [b, m] in their order. `python load.py` checks the folder by a made-up row.
"""

import json
import pathlib
import sys

import jax
import jax.export
import numpy as np

TYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "?"}


def read_weights(file):
    """Reads arrays by name from a file of a length, that many bytes of JSON, and numbers."""
    content = pathlib.Path(file).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = np.frombuffer(content[start + first : start + last], TYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def load(folder="."):
    """Returns a function from a batch to `probabilities` (values, survival: see schema.json), `features` and `seen`."""
    folder = pathlib.Path(folder)
    exported = jax.export.deserialize(bytearray((folder / "model.jax").read_bytes()))
    weights = jax.device_put(read_weights(folder / "weights.safetensors"))
    call = jax.jit(exported.call)
    rows = exported.in_avals[-1].shape[0]  # a symbol, or the fixed number of rows that the program needs

    def predict(batch):
        count = len(batch["present"])
        if not isinstance(rows, int):
            return {name: np.asarray(value) for name, value in call(weights, batch).items()}
        parts = []
        for start in range(0, count, rows):
            block = {name: np.asarray(x[start : start + rows]) for name, x in batch.items()}
            filled = {name: np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)]) for name, x in block.items()}
            parts.append(call(weights, filled))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    return predict


def check(folder):
    """Lists what differs from example.json when this machine encodes and predicts its row."""
    sys.path.insert(0, str(folder))
    import encode

    batch, wrong = encode.check(folder)
    name = json.loads((folder / "schema.json").read_text(encoding="utf-8"))["outputs"][0]["name"]
    found, expected = load(folder)(batch)[name][0], encode.worked(folder)[name]
    # Accelerators may round products to few digits.
    return wrong if np.allclose(found, expected, rtol=0.01, atol=0.01) else [*wrong, f"{name} {found}, were {expected}"]


if __name__ == "__main__":
    differs = check(pathlib.Path(__file__).resolve().parent)
    print(f"differs: {', '.join(differs)}" if differs else "ok: inputs and predictions of example.json")
    sys.exit(bool(differs))
