"""From raw columns to model inputs: the kinds of all modalities, fitted on given rows only."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.kind import FitOptions, FittedKind
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import InputSpec


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

    def encode(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encodes a batch made by `manifest.decode`.

        Returns:
          per modality [n, *spec.shape], all zeros in rows that lack it, and `present`, `label`, `row`, `weight` as they
          came.
        """
        batch: dict[str, np.ndarray] = {}
        for j, (name, fitted) in enumerate(self.fitted.items()):
            here = np.asarray(raw["present"][:, j], bool)
            own = {key: column[here] for key, column in raw.items() if key == name or key.startswith(f"{name}/")}
            values = fitted.encode(own, name)
            batch[name] = np.zeros((len(here), *values.shape[1:]), values.dtype)
            batch[name][here] = values
        return batch | {key: raw[key] for key in ("present", "label", "row", "weight") if key in raw}

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
