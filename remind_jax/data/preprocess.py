"""From raw columns to model inputs: tables, vocabularies and tokenizers, all fitted on given rows only."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from remind_jax.data import manifest as manifests
from remind_jax.data.kinds.tabular import InputSpec, Tabular, check_numbers
from remind_jax.data.kinds.text import EOS, PAD, SPECIAL, UNK, load_pretrained, plain, train_unigram
from remind_jax.data.schema import PIXELS
from remind_jax.errors import UserError, did_you_mean

_LONGEST_TEXTS = 512


@dataclasses.dataclass(frozen=True)
class Codes:
    """A vocabulary of codes: the most frequent ones of the fitting rows from id 3 up, ties in string order."""

    length: int
    codes: tuple[str, ...]

    @classmethod
    def fit(cls, cells: Sequence[str], max_tokens: int, vocabulary: int) -> "Codes":
        """Fits on the cells of rows that have the modality; `vocabulary` counts pad, eos and unk."""
        counts: collections.Counter[str] = collections.Counter()
        longest = 0
        for cell in cells:
            codes = cell.split()
            counts.update(codes)
            longest = max(longest, len(codes))
        ranked = sorted(counts, key=lambda code: (-counts[code], code))
        return cls(min(max_tokens, longest + 1), tuple(ranked[: vocabulary - len(SPECIAL)]))

    @property
    def spec(self) -> InputSpec:
        """A row of ids."""
        return InputSpec("codes", (self.length,), len(SPECIAL) + len(self.codes))

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        """Int32 [n, t]: the first codes of each cell, eos, pad."""
        position = {code: i for i, code in enumerate(self.codes, start=len(SPECIAL))}
        ids = np.full((len(cells), self.length), PAD, np.int32)
        for row, cell in zip(ids, cells, strict=True):
            known = [position.get(code, UNK) for code in cell.split()[: self.length - 1]]
            row[: len(known) + 1] = [*known, EOS]
        return ids

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"length": self.length, "codes": list(self.codes)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Codes":
        """The inverse of `to_dict`."""
        return cls(content["length"], tuple(content["codes"]))


class Text:
    """A subword tokenizer: a Unigram model fitted on the given texts, or a pretrained one.

    Attributes:
      length: ids a text, longer texts are cut.
      tokenizer: a `tokenizers.Tokenizer` that cuts to `length` and closes with eos (or as its model does).
    """

    def __init__(self, tokenizer: Any, length: int):
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        self.tokenizer = tokenizer
        self.length = length

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        max_tokens: int,
        vocabulary: int,
        pretrained: str = "",
        patients: Sequence[str] | None = None,
    ) -> "Text":
        """Fits on texts of rows that have the modality, or loads `pretrained`; `length` is what they need."""
        tokenizer = load_pretrained(pretrained) if pretrained else train_unigram(texts, vocabulary, patients)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        # The most characters stand in for the most ids: encoding every text just to count would take minutes.
        longest = sorted(texts, key=len, reverse=True)[:_LONGEST_TEXTS]
        return cls(tokenizer, max((len(encoding.ids) for encoding in tokenizer.encode_batch_fast(longest)), default=1))

    @property
    def spec(self) -> InputSpec:
        """A row of ids."""
        return InputSpec("text", (self.length,), self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Int32 [n, t]: ids, then pad."""
        ids = np.full((len(texts), self.length), PAD, np.int32)
        for row, encoding in zip(ids, self.tokenizer.encode_batch_fast(list(texts)), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return ids

    def to_dict(self) -> dict[str, Any]:
        """For JSON; holds the whole tokenizer, so that a checkpoint needs no file beside it."""
        return {"length": self.length, "tokenizer": json.loads(self.tokenizer.to_str())}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Text":
        """The inverse of `to_dict`."""
        from tokenizers import Tokenizer

        return cls(plain(Tokenizer.from_str(json.dumps(content["tokenizer"]))), content["length"])


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Precomputed tokens, passed on as they are."""

    shape: tuple[int, int]

    @property
    def spec(self) -> InputSpec:
        """Rows of tokens."""
        return InputSpec("embedding", self.shape)

    def encode(self, values: np.ndarray, name: str) -> np.ndarray:
        """Float32 [n, t, d]. Raises UserError when the data has another shape than the fitting rows."""
        if values.shape[1:] == (0, 0):
            return np.zeros((len(values), *self.shape), np.float32)
        if values.shape[1:] != self.shape:
            raise UserError(f"E008 {name}: arrays are {list(values.shape[1:])}, in training {list(self.shape)}")
        return values.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Embedding":
        """The inverse of `to_dict`."""
        return cls(tuple(content["shape"]))


@dataclasses.dataclass(frozen=True)
class Pixels:
    """8-bit pixels of an image or a volume, passed on as they are; the model normalises them on the device."""

    shape: tuple[int, ...]

    @property
    def spec(self) -> InputSpec:
        """One image or volume."""
        return InputSpec("image" if len(self.shape) == 3 else "volume", self.shape)

    def encode(self, values: np.ndarray, name: str) -> np.ndarray:
        """The uint8 [n, *shape] that came. Raises UserError when the data has another shape than in training."""
        if values.shape[1:] != self.shape:
            raise UserError(f"E008 {name}: pixels are {list(values.shape[1:])}, in training {list(self.shape)}")
        return values

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Pixels":
        """The inverse of `to_dict`."""
        return cls(tuple(content["shape"]))


Encoder = Tabular | Codes | Text | Embedding | Pixels
_ENCODERS = {
    "tabular": Tabular,
    "codes": Codes,
    "text": Text,
    "embedding": Embedding,
    "image": Pixels,
    "volume": Pixels,
}


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """The fitted encoders of all modalities, in declared order."""

    encoders: Mapping[str, Encoder]

    @classmethod
    def fit(
        cls,
        manifest: manifests.Manifest,
        rows: np.ndarray,
        *,
        max_tokens: int,
        vocabulary: int,
        tokenizer: str | Mapping[str, str] = "",
        numbers: str = "standard",
        bins: int = 8,
    ) -> "Preprocessor":
        """Fits every encoder on some rows (the train rows) and looks at no other.

        Args:
          manifest: the data.
          rows: int [n], the row numbers to fit on.
          max_tokens: the most ids a text or a list of codes may have, eos included; shorter when no row needs as many.
          vocabulary: the most ids, pad, eos and unk included; fewer when the rows give no more.
          tokenizer: a folder or a hub name of a pretrained tokenizer for all text modalities, or a mapping from names
            of text modalities; empty: train one.
          numbers: how numbers of tabular modalities are encoded, one of `tabular.NUMBERS`.
          bins: the most features of a column beside its number, `numbers` piecewise and periodic.

        Raises:
          UserError: an option is out of range, the tokenizer cannot be used, or no row has an embedding.
        """
        if max_tokens < 2 or vocabulary < len(SPECIAL) + 1:
            raise UserError(f"max_tokens must be at least 2 and vocabulary at least 4: {max_tokens}, {vocabulary}")
        check_numbers(numbers, bins)
        texts = [modality.name for modality in manifest.schema.modalities if modality.kind == "text"]
        if isinstance(tokenizer, str):
            tokenizer = dict.fromkeys(texts, tokenizer)
        for name in tokenizer:
            if name not in texts:
                raise UserError(f"tokenizer: {name!r} is not a text modality{did_you_mean(name, texts)}")
        rows = np.asarray(rows, np.int64)
        encoders: dict[str, Encoder] = {}
        for j, modality in enumerate(manifest.schema.modalities):
            here = rows[manifest.presence[rows, j]]
            if modality.kind == "tabular":
                encoders[modality.name] = _fit_table(manifest, modality, here, numbers, bins)
                continue
            pretrained = tokenizer.get(modality.name, "")
            encoders[modality.name] = _fit_encoder(manifest, modality, here, max_tokens, vocabulary, pretrained)
        return cls(encoders)

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """What the model receives, in declared order."""
        return {name: encoder.spec for name, encoder in self.encoders.items()}

    def encode(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Model inputs of a batch made by `manifest.decode`.

        Returns:
          per modality float32 [n, p'], int32 [n, t], float32 [n, t, d] or uint8 [n, *shape], all zeros in rows that
          lack it, and `present`, `label`, `row` as they came.
        """
        batch: dict[str, np.ndarray] = {}
        for j, (name, encoder) in enumerate(self.encoders.items()):
            here = np.asarray(raw["present"][:, j], bool)
            if isinstance(encoder, Tabular):
                strings = raw.get(f"{name}/categorical")
                strings = None if strings is None else strings[here]
                values = encoder.encode(raw[f"{name}/numeric"][here], strings)
            elif isinstance(encoder, Embedding | Pixels):
                values = encoder.encode(raw[name], name)[here]
            else:
                values = encoder.encode(raw[name][here].tolist())
            batch[name] = np.zeros((len(here), *values.shape[1:]), values.dtype)
            batch[name][here] = values
        return batch | {key: raw[key] for key in ("present", "label", "row") if key in raw}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in declared order."""
        return {
            "modalities": [
                {"name": name, "kind": encoder.spec.kind} | encoder.to_dict() for name, encoder in self.encoders.items()
            ]
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Preprocessor":
        """The inverse of `to_dict`; the result encodes alike."""
        encoders = {}
        for entry in content["modalities"]:
            fields = {key: value for key, value in entry.items() if key not in ("name", "kind")}
            encoders[entry["name"]] = _ENCODERS[entry["kind"]].from_dict(fields)
        return cls(encoders)


def _alone(manifest: manifests.Manifest, modality: manifests.Modality) -> manifests.Manifest:
    """The manifest with one modality, so that no more than its raw columns are held."""
    return dataclasses.replace(manifest, schema=dataclasses.replace(manifest.schema, modalities=(modality,)))


def _fit_table(
    manifest: manifests.Manifest, modality: manifests.Modality, rows: np.ndarray, numbers: str, bins: int
) -> Tabular:
    """Fits the encoder of a tabular modality on rows that have it."""
    raw, name = manifests.decode(_alone(manifest, modality), rows), modality.name
    return Tabular.fit(modality, raw[f"{name}/numeric"], raw.get(f"{name}/categorical"), numbers, bins)


def _fit_encoder(
    manifest: manifests.Manifest,
    modality: manifests.Modality,
    rows: np.ndarray,
    max_tokens: int,
    vocabulary: int,
    pretrained: str,
) -> Encoder:
    """Fits the encoder of one modality that is no table on rows that have it."""
    alone, name = _alone(manifest, modality), modality.name
    if modality.kind in PIXELS:
        return Pixels(modality.shape)
    if modality.kind == "embedding":
        if not len(rows):
            raise UserError(f"no training row has the modality {name!r}: leave it out of the schema")
        return Embedding(manifests.decode(alone, rows[:1])[name].shape[1:])
    cells = manifests.decode(alone, rows)[name].tolist()
    if modality.kind == "codes":
        return Codes.fit(cells, max_tokens, vocabulary)
    patients = manifest.table[manifest.schema.patient_id].gather(rows).to_list()
    return Text.fit(cells, max_tokens, vocabulary, pretrained, patients)
