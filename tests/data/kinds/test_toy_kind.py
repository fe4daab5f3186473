"""A kind of modality from outside: one class, its entry in KINDS and, for a network of its own, one in ENCODERS."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import yaml
from flax import nnx

import remind_jax
from remind_jax import cli, main
from remind_jax.data import check, dataset, reading
from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.importers import table
from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.kind import BY_TYPE, FitOptions, FittedKind, Guess, Kind, Rows, strings_of
from remind_jax.data.schema import InputSpec, Modality
from remind_jax.errors import UserError
from remind_jax.models.encoders import registry
from remind_jax.ops.transformer import on_rows
from remind_jax.training import plain_models
from tests import tiny_runs
from tests.data.manifest_files import SCHEMA

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
LETTERS = "ACGT"


@dataclasses.dataclass(frozen=True)
class FittedBases(FittedKind):
    """One-hot letters of a sequence, [length, 4]."""

    length: int

    @property
    def spec(self) -> InputSpec:
        return KINDS["bases"].spec((self.length, 4))

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        cells = [cell[: self.length].ljust(self.length) for cell in raw[name]]
        letters = np.array([list(cell) for cell in cells]).reshape(len(cells), self.length, 1)
        return (letters == np.array(list(LETTERS))).astype(self.spec.dtype)

    def plain(self, values: np.ndarray) -> np.ndarray:
        return values.mean(axis=1)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FittedBases":
        return cls(**content)


class Bases(Kind):
    """Sequences of letters in cells."""

    name = "bases"
    keys = ("column", "length")
    optional = ("length",)
    fitted = FittedBases

    def __init__(self, encoder: str):
        self.encoder, self.dtype = encoder, np.dtype(np.float32 if encoder == "patch" else np.uint8)

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        length = entry.get("length", 12)
        if not isinstance(length, int) or length < 1:
            raise UserError(f"modalities.{name}.length must be a positive number")
        return dataclasses.replace(super().parse(name, entry, image_size, frames), options={"length": length})

    def problems(self, modality: Modality, table: pl.DataFrame) -> list[Finding]:
        odd = table[modality.columns[0]].str.contains(f"[^{LETTERS}]").fill_null(False)
        found = [Finding("E008", f"{modality.name}: {in_rows(odd)} with other letters than {LETTERS}", True)]
        return super().problems(modality, table) + (found if odd.any() else [])

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        return {modality.name: strings_of(rows.cells(modality.columns[0]).to_list())}

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedBases:
        return FittedBases(modality.options["length"])

    def guess(self, column: pl.Series) -> Guess | None:
        is_bases = column.dtype == pl.String and column.str.contains(f"^[{LETTERS}]+$").all()
        return Guess(BY_TYPE, "bases") if is_bases else None


class BasesEncoder(nnx.Module):
    """One token out of the shares of the letters."""

    tokens = 1

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Linear(len(LETTERS), width, rngs=rngs)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        return on_rows(self.embed, jnp.mean(x.astype(jnp.float32), axis=1, keepdims=True))


@pytest.fixture(params=[pytest.param("patch", marks=pytest.mark.slow), "bases"])
def encoder(request, monkeypatch):
    """Registers the kind, once with an encoder that is there, once with one of its own."""
    family = registry.Family(lambda spec, modality, rngs: BasesEncoder(spec.width, rngs))
    monkeypatch.setitem(registry.ENCODERS, "bases", family)
    monkeypatch.setitem(KINDS, "bases", Bases(request.param))
    return request.param


@pytest.fixture
def data(tmp_path):
    """120 samples with a number and a sequence, each at times missing; sequences of class 1 have no C."""
    rng, n = np.random.default_rng(0), 120
    genes = ["".join(rng.choice(list("AGT" if i % 2 else LETTERS), 10)) for i in range(n)]
    columns = {"stay": [f"s{i}" for i in range(n)], "patient": [f"p{i}" for i in range(n)]}
    columns |= {"died": [str(i % 2) for i in range(n)], "sodium": [140 + i % 7 if i % 3 else None for i in range(n)]}
    columns["gene"] = [gene if i % 3 == 0 or i % 5 else None for i, gene in enumerate(genes)]
    folder = tmp_path / "data"
    folder.mkdir()
    pl.DataFrame(columns).write_csv(folder / "manifest.csv")
    gene = {"kind": "bases", "column": "gene", "length": 8}
    schema = SCHEMA | {"modalities": {"labs": {"kind": "tabular", "columns": ["sodium"]}, "gene": gene}}
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("encoder")
def test_a_run_trains_reports_and_predicts(data, tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        main.main([*tiny_runs.own_arguments(data, tmp_path / "cache"), f"--workdir={tmp_path / 'run'}"])
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    kinds = {each["name"]: each["kind"] for each in report["card"]["modalities"]}
    assert kinds == {"labs": "tabular", "gene": "bases"}
    predictor, frame = remind_jax.load(tmp_path / "run"), pl.read_csv(data / "manifest.csv", infer_schema=False)
    changed = frame.with_columns(gene=pl.col("gene").str.replace_all("[AGT]", "C"))
    moved = np.abs(predictor.predict_proba(frame) - predictor.predict_proba(changed)).max(axis=1) > 0
    np.testing.assert_array_equal(moved, frame["gene"].is_not_null())


@pytest.mark.usefixtures("encoder")
def test_plain_models_see_it(data, tmp_path):
    config = cli.parse_config(tiny_runs.own_arguments(data, tmp_path / "cache"))[0]
    loaded = dataset.load_dataset(config)
    found = plain_models.features(loaded, "train")
    genes = loaded.manifest.table["gene"][loaded.rows("train")].to_list()
    for seen, gene in zip(found.dense[:, -4:], genes, strict=True):
        expected = [np.nan] * 4 if gene is None else [gene[:8].count(letter) / 8 for letter in LETTERS]
        np.testing.assert_allclose(seen, expected)


@pytest.mark.usefixtures("encoder")
def test_its_entry_and_its_cells_are_checked(data):
    manifest = reading.read_manifest(data)
    assert not [finding for finding in check.find_problems(manifest) if finding.fatal]
    odd = manifest.table.with_columns(gene=pl.Series(["AXB", *manifest.table["gene"][1:]]))
    (found,) = check.find_problems(dataclasses.replace(manifest, table=odd))[:1]
    assert (found.code, found.message) == ("E008", "gene: 1 cell (row 1) with other letters than ACGT")
    schema = (data / "schema.yaml").read_text(encoding="utf-8")
    (data / "schema.yaml").write_text(schema.replace("length: 8", "length: no"), encoding="utf-8")
    with pytest.raises(UserError, match=r"gene\.length must be a positive number"):
        reading.read_manifest(data)
    (data / "schema.yaml").write_text(schema.replace("length: 8", "lenght: 8"), encoding="utf-8")
    with pytest.raises(UserError, match="did you mean 'length'"):
        reading.read_manifest(data)


@pytest.mark.usefixtures("encoder")
def test_importing_a_table_finds_it(data):
    found = table.from_table(pl.read_csv(data / "manifest.csv"), name="own", label="died", sample="stay")
    assert found.schema["modalities"]["gene"] == {"kind": "bases", "column": "gene"}


def test_without_its_entry_it_is_unknown(data):
    with pytest.raises(UserError, match="unknown kind 'bases'"):
        reading.read_manifest(data)
