"""From raw columns to model inputs: the kinds of all modalities, fitted on given rows only."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from remind_jax.data.findings import Finding
from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.kind import FitOptions, FittedKind, Parts
from remind_jax.data.manifest import Manifest, decode
from remind_jax.data.schema import InputSpec

# (rows of a manifest, int [n], in any order) -> what a model receives of a modality, zeros where it is missing
Reader = Callable[[np.ndarray], np.ndarray]

_BLOCK = 4096  # rows read and encoded at a time
_BLOCK_BYTES = 32 * 2**20  # of inputs; images and volumes make blocks shorter


def blocks(rows: np.ndarray, spec: InputSpec) -> list[np.ndarray]:
    """Cuts rows into stretches of as many as are decoded and held at a time; there is at least one."""
    size = max(1, min(_BLOCK, _BLOCK_BYTES // max(1, math.prod(spec.shape) * spec.dtype.itemsize)))
    return [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """The fitted kinds of all modalities by name, in declared order."""

    fitted: Mapping[str, FittedKind]

    @classmethod
    def fit(cls, manifest: Manifest, rows: np.ndarray, options: FitOptions) -> "Preprocessor":
        """Fits every modality on some rows, int [n] (the train rows), and looks at no other.

        Raises UserError: an option is out of range, a tokenizer cannot be used, or no row has an embedding.
        """
        modalities = manifest.schema.modalities
        for kind in KINDS.values():
            kind.check_options(options, [each.name for each in modalities if each.kind == kind.name])
        rows, fitted = np.asarray(rows, np.int64), {}
        for j, modality in enumerate(modalities):
            here = manifest.rows(rows[manifest.presence[rows, j]])
            fitted[modality.name] = KINDS[modality.kind].fit(modality, here, options)
        return cls(fitted)

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """Describes what the model receives, in declared order."""
        return {name: fitted.spec for name, fitted in self.fitted.items()}

    def losses(self, manifest: Manifest) -> list[Finding]:
        """Tells which rows of a manifest, whose modalities are in order, lose something when they are encoded."""
        pairs = zip(self.fitted.values(), manifest.schema.modalities, strict=True)
        return [finding for fitted, modality in pairs for finding in fitted.losses(modality, manifest.table)]

    def encode(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encodes a batch made by `manifest.decode`.

        Returns:
          per modality [n, *spec.shape], all zeros in rows that lack it, and `present`, `label`, `row`, `weight` as they
          came.
        """
        present = np.asarray(raw["present"], bool)
        batch = {name: self._encoded(name, raw, present[:, j]) for j, name in enumerate(self.fitted)}
        return batch | {key: raw[key] for key in ("present", "label", "row", "weight") if key in raw}

    def readers(self, manifest: Manifest) -> dict[str, Reader]:
        """Makes what decodes and encodes each modality of a manifest's rows when they are asked for.

        What it makes raises UserError: a file that the rows name cannot be read or decoded (E007).
        """
        return {name: functools.partial(self._read, manifest, name) for name in self.fitted}

    def _read(self, manifest: Manifest, name: str, rows: np.ndarray) -> np.ndarray:
        raw = decode(manifest, rows, labels=False, modalities=(name,))
        return self._encoded(name, raw, raw["present"][:, list(self.fitted).index(name)])

    def _encoded(self, name: str, raw: Mapping[str, np.ndarray], here: np.ndarray) -> np.ndarray:
        """Encodes one modality, of which the rows `here`, bool [n], have something."""
        return _spread(self.fitted[name].encode(_own(name, raw, here), name), here)

    def parts(self, raw: Mapping[str, np.ndarray], name: str) -> Parts:
        """Returns the parts of one modality, of a kind that has them, of rows made by `manifest.decode`."""
        here = np.asarray(raw["present"], bool)[:, list(self.fitted).index(name)]
        found = self.fitted[name].parts(_own(name, raw, here), name)
        return found._replace(row=np.flatnonzero(here)[found.row])

    def encode_without(self, raw: Mapping[str, np.ndarray], name: str, lost: np.ndarray) -> np.ndarray:
        """Encodes one modality of rows as `encode` does, without some of its `parts`, bool [u]."""
        here = np.asarray(raw["present"], bool)[:, list(self.fitted).index(name)]
        left = self.fitted[name].without(_own(name, raw, here), name, lost)
        return _spread(self.fitted[name].encode(left, name), here)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fitted kinds for JSON, in declared order."""
        entries = self.fitted.items()
        return {"modalities": [{"name": name, "kind": each.spec.kind} | each.to_dict() for name, each in entries]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Preprocessor":
        """Inverts `to_dict`; the result encodes alike."""
        fitted = {}
        for entry in content["modalities"]:
            fields = dict(entry)
            name, kind = fields.pop("name"), fields.pop("kind")
            fitted[name] = KINDS[kind].fitted.from_dict(fields)
        return cls(fitted)


def _own(name: str, raw: Mapping[str, np.ndarray], here: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the raw columns of one modality in the rows `here`, bool [n]."""
    return {key: column[here] for key, column in raw.items() if key == name or key.startswith(f"{name}/")}


def _spread(values: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Puts values into the rows `here`, bool [n], zeros into the others."""
    found = np.zeros((len(here), *values.shape[1:]), values.dtype)
    found[here] = values
    return found
