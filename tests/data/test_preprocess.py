import dataclasses
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.kinds.numbers import NUMBERS
from remind_jax.data.kinds.text import EOS, PAD, UNK, train_unigram
from remind_jax.data.manifest import Manifest, decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.reading import read_manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError
from tests.data.manifest_files import write_manifest

WORDS = ("patient", "admitted", "with", "fever", "sodium", "acute", "chronic", "renal", "failure", "stable")


def table_manifest(columns, *modalities):
    """A manifest in memory out of columns of one modality or more; patients and labels are made up."""
    n = len(next(iter(columns.values())))
    base = {"id": [str(i) for i in range(n)], "patient": [str(i) for i in range(n)], "y": ["0", "1"] * (n // 2)}
    schema = Schema("t", "id", "patient", "y", ("0", "1"), modalities)
    return Manifest(schema, pl.DataFrame(base | columns))


def fit(manifest, rows=None, *, max_tokens=16, vocabulary=100, **options):
    rows = np.arange(manifest.table.height) if rows is None else rows
    return Preprocessor.fit(manifest, rows, FitOptions(max_tokens, vocabulary, **options))


def encode(preprocessor, manifest):
    return preprocessor.encode(decode(manifest, np.arange(manifest.table.height)))


def texts(n=80, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(n)]


def text_manifest(cells):
    return table_manifest({"note": pl.Series(cells, dtype=pl.String)}, Modality("note", "text", ("note",)))


def code_manifest(cells):
    return table_manifest({"icd": pl.Series(cells, dtype=pl.String)}, Modality("icd", "codes", ("icd",)))


def test_tabular_by_hand():
    labs = Modality("labs", "tabular", ("a", "b", "c"), ("sex", "ward"))
    columns = {
        "a": [1.0, 3.0, None, 11.0, None, 100.0],  # train median 3, mean 5, variance (16 + 4 + 36) / 3
        "b": [2.0, 4.0, 2.0, 4.0, None, None],  # no hole among train rows that have the modality
        "c": [0.1, 0.1, 0.1, 0.1, None, 5.0],  # constant
        "sex": ["m", "f", None, "m", None, "x"],
        "ward": ["w", "w", "w", "w", None, None],
    }
    manifest = table_manifest(columns, labs)
    preprocessor = fit(manifest, np.arange(5))  # row 4 lacks the modality
    assert preprocessor.fitted["labs"].features == (
        *("a", "b", "c", "a is missing"),
        *("sex = f", "sex = m", "ward = w", "sex is missing"),
    )
    std = np.sqrt(56 / 3)
    expected = [
        [-4 / std, -1, 0, 0, 0, 1, 1, 0],
        [-2 / std, 1, 0, 0, 1, 0, 1, 0],
        [-2 / std, -1, 0, 1, 0, 0, 1, 1],
        [6 / std, 1, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [95 / std, -1, 0, 0, 0, 0, 0, 0],  # median of b is 3, its mean: 0
    ]
    expected[5][1] = 0
    batch = encode(preprocessor, manifest)["labs"]
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, expected, rtol=1e-6, atol=1e-7)
    assert preprocessor.inputs["labs"].shape == (8,)


def test_column_that_train_never_has_is_zero():
    labs = Modality("labs", "tabular", ("a", "b"))
    manifest = table_manifest({"a": [1.0, 2.0, 3.0, 4.0], "b": pl.Series([None, None, 7.0, 8.0])}, labs)
    batch = encode(fit(manifest, np.array([0, 1])), manifest)["labs"]
    np.testing.assert_array_equal(batch[:, 1:], [[0, 1], [0, 1], [0, 0], [0, 0]])


def test_codes_by_hand():
    manifest = code_manifest(["B A", "B C B", None, "A  D", "Z A B C D", ""])
    manifest = dataclasses.replace(manifest, table=manifest.table.with_columns(icd=pl.col("icd").replace("", None)))
    preprocessor = fit(manifest, np.arange(4), vocabulary=6)
    # B three times, A twice, then C before D, of which the limit of 6 ids leaves C.
    assert preprocessor.fitted["icd"].codes == ("B", "A", "C")
    assert preprocessor.inputs["icd"] == KINDS["codes"].spec((4,), 6)
    expected = [[3, 4, EOS, PAD], [3, 5, 3, EOS], [0] * 4, [4, UNK, EOS, PAD], [UNK, 4, 3, EOS], [0] * 4]
    batch = encode(preprocessor, manifest)["icd"]
    assert batch.dtype == np.int32
    np.testing.assert_array_equal(batch, expected)


def test_codes_are_cut_to_max_tokens_with_eos():
    manifest = code_manifest(["A B C D E F"] * 4)
    batch = encode(fit(manifest, max_tokens=4), manifest)["icd"]
    np.testing.assert_array_equal(batch, [[3, 4, 5, EOS]] * 4)


def test_text_ids_spell_the_text_and_end_with_eos():
    manifest = text_manifest([*texts(), None, "Fever\n\nwith\tfever"])
    preprocessor = fit(manifest, np.arange(80), max_tokens=64)
    tokenizer = preprocessor.fitted["note"].tokenizer
    batch = encode(preprocessor, manifest)["note"]
    assert batch.dtype == np.int32
    assert batch.max() < preprocessor.inputs["note"].vocabulary <= 100
    assert [tokenizer.id_to_token(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    for row, text in zip(batch[:80], manifest.table["note"], strict=False):
        end = row.tolist().index(EOS)
        assert (row[end + 1 :] == PAD).all()
        spelled = "".join(tokenizer.id_to_token(i) for i in row[:end])
        assert spelled == "▁" + text.replace(" ", "▁")
    assert (batch[80] == PAD).all()
    pieces = [tokenizer.id_to_token(i) for i in batch[81]]
    assert pieces[-1] == "<pad>" or pieces.count("</s>") == 1
    # White space of any kind separates words, and case is kept: F is not in the training texts.
    assert pieces[0] != "▁fever"
    assert pieces[pieces.index("</s>") - 1] == "▁fever"
    assert UNK in batch[81]


def test_frequent_words_become_single_pieces():
    manifest = text_manifest(texts(200))
    tokenizer = fit(manifest, vocabulary=300).fitted["note"].tokenizer
    for word in WORDS:
        assert tokenizer.encode(word).tokens == [f"▁{word}", "</s>"]


def test_text_is_cut_to_max_tokens_and_padded_no_further_than_needed():
    manifest = text_manifest([*texts(), "fever " * 200, "fever"])
    train = np.arange(80)
    assert fit(manifest, train, max_tokens=6).inputs["note"].shape == (6,)
    batch = encode(fit(manifest, train, max_tokens=6), manifest)["note"]
    assert (batch[:81] == EOS).any(axis=1).all()
    assert batch[80, -1] == EOS
    longest = fit(manifest, train, max_tokens=500).inputs["note"].shape[0]
    assert 12 <= longest < 60


def test_special_tokens_written_in_a_note_are_ordinary_text():
    manifest = text_manifest([*texts(79), "fever </s> <pad> fever"])
    preprocessor = fit(manifest, max_tokens=64)
    for again in (preprocessor, Preprocessor.from_dict(preprocessor.to_dict())):
        row = encode(again, manifest)["note"][79].tolist()
        assert row.count(EOS) == 1
        assert PAD not in row[: row.index(EOS)]


@pytest.mark.parametrize(
    "cells", [[None, None], ["a", None], ["", "x"], ["日本語の文章", "テキスト"], ["aaaa" * 500, "a"]]
)
def test_tiny_corpora_give_a_usable_tokenizer(cells):
    manifest = text_manifest([cell or None for cell in cells])
    batch = encode(fit(manifest, vocabulary=8), manifest)["note"]
    present = manifest.presence[:, 0]
    assert (batch[present] == EOS).sum(axis=1).tolist() == [1] * present.sum()
    assert (batch[~present] == PAD).all()
    assert batch.max(initial=0) < 8


def test_rare_characters_do_not_crowd_out_the_vocabulary():
    odd = [chr(0x4E00 + i) for i in range(300)]
    manifest = text_manifest([f"{text} {c}" for text, c in zip(texts(300), odd, strict=True)])
    spec = fit(manifest, vocabulary=120).inputs["note"]
    assert spec.vocabulary <= 120
    assert fit(manifest, vocabulary=120).fitted["note"].tokenizer.encode("fever").tokens == ["▁fever", "</s>"]


def test_training_is_the_same_in_every_process(tmp_path):
    write_manifest(tmp_path, n=300)
    program = (
        "import sys, json, hashlib, numpy as np\n"
        "from remind_jax.data import reading\n"
        "from remind_jax.data.kinds.kind import FitOptions\n"
        "from remind_jax.data.preprocess import Preprocessor\n"
        "m = reading.read_manifest(sys.argv[1])\n"
        "p = Preprocessor.fit(m, np.arange(200), FitOptions(32, 90))\n"
        "print(hashlib.sha256(json.dumps(p.to_dict()).encode()).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = [subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout for _ in range(3)]
    assert len(done[0]) == 65
    assert done[0] == done[1] == done[2]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_everything_is_fitted_on_the_given_rows_only(tmp_path, numbers):
    manifest = read_manifest(write_manifest(tmp_path, n=60))
    train = np.arange(0, 60, 2)
    odd = pl.int_range(60) % 2 == 1
    changed = manifest.table.with_columns(
        note=pl.when(odd).then(pl.lit("utterly different words " * 30)).otherwise("note"),
        icd=pl.when(odd).then(pl.lit("Q1 Q2 Q3 " * 20)).otherwise("icd"),
        sodium=pl.when(odd).then(1e6).otherwise("sodium"),
        wbc=pl.when(odd).then(None).otherwise("wbc"),
        sex=pl.when(odd).then(pl.lit("unknown")).otherwise("sex"),
    )
    other = dataclasses.replace(manifest, table=changed)
    one, two = (fit(data, train, numbers=numbers).to_dict() for data in (manifest, other))
    assert json.dumps(one) == json.dumps(two)
    everything = fit(other, np.arange(60), numbers=numbers).to_dict()
    assert json.dumps(everything) != json.dumps(one)
    for key in {"quantile": ["quantiles"], "piecewise": ["pieces"], "periodic": ["waves"]}.get(numbers, []):
        before, after = (next(m for m in found["modalities"] if m["name"] == "labs") for found in (one, everything))
        assert before[key] != after[key]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_round_trip_through_json_encodes_alike(tmp_path, numbers):
    manifest = read_manifest(write_manifest(tmp_path, n=60))
    preprocessor = fit(manifest, np.arange(40), numbers=numbers, bins=3)
    again = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    assert again.inputs == preprocessor.inputs
    assert list(again.inputs) == ["note", "icd", "labs", "scan"]
    one, two = encode(preprocessor, manifest), encode(again, manifest)
    assert list(one) == list(two) == ["note", "icd", "labs", "scan", "present", "label", "row"]
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("numbers", NUMBERS)
def test_missing_modalities_are_zero_and_present_ones_keep_their_shape(tmp_path, numbers):
    manifest = read_manifest(write_manifest(tmp_path, n=60))
    preprocessor = fit(manifest, np.arange(40), numbers=numbers)
    batch = encode(preprocessor, manifest)
    for j, (name, spec) in enumerate(preprocessor.inputs.items()):
        assert batch[name].shape == (60, *spec.shape)
        filled = (batch[name].reshape(60, -1) != 0).any(axis=1)
        np.testing.assert_array_equal(filled, manifest.presence[:, j])
    raw = decode(manifest, np.arange(60))
    np.testing.assert_array_equal(batch["scan"], raw["scan"])


def test_encoding_a_part_is_the_part_of_the_encoding(tmp_path):
    manifest = read_manifest(write_manifest(tmp_path, n=30))
    preprocessor = fit(manifest)
    whole = encode(preprocessor, manifest)
    rows = np.array([3, 17, 3])
    part = preprocessor.encode(decode(manifest, rows))
    none = preprocessor.encode(decode(manifest, np.zeros(0, int)))
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][rows])
        assert none[name].shape == (0, *whole[name].shape[1:])


def test_embedding_of_another_shape_is_refused():
    emb = Modality("emb", "embedding", ("emb",))
    train = table_manifest({"emb": pl.Series(np.ones((4, 2, 3), np.float32))}, emb)
    other = table_manifest({"emb": pl.Series(np.ones((4, 2, 5), np.float32))}, emb)
    with pytest.raises(UserError, match=r"E008 emb: arrays are \[2, 5\], in training \[2, 3\]"):
        encode(fit(train), other)


def save_pretrained(folder, pad="[PAD]"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token="[UNK]").save_pretrained(folder)


def test_pretrained_tokenizer_keeps_its_ids_and_travels_with_the_preprocessor(tmp_path):
    save_pretrained(tmp_path / "tokenizer")
    manifest = text_manifest(["fever with word", None, "stable", "admitted"])
    preprocessor = fit(manifest, max_tokens=3, tokenizer=str(tmp_path / "tokenizer"))
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    again = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    expected = [[1, 6, 5], [0, 0, 0], [1, 12, 0], [1, 4, 0]]
    np.testing.assert_array_equal(encode(preprocessor, manifest)["note"], expected)
    np.testing.assert_array_equal(encode(again, manifest)["note"], expected)
    assert again.inputs["note"] == KINDS["text"].spec((3,), 13)


def test_pretrained_tokenizer_must_pad_with_zero_and_exist(tmp_path):
    save_pretrained(tmp_path / "odd", pad="[UNK]")
    manifest = text_manifest(texts(4))
    with pytest.raises(UserError, match="pads with id 2"):
        fit(manifest, tokenizer=str(tmp_path / "odd"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        fit(manifest, tokenizer=str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'note'"):
        fit(manifest, tokenizer={"notes": "x"})


@pytest.mark.parametrize("options", [{"max_tokens": 1}, {"vocabulary": 3}, {"bins": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="at least"):
        fit(text_manifest(texts(4)), **options)


def test_words_of_few_patients_stay_out_of_the_vocabulary():
    texts = ["Zorvathi has fever, Zorvathi coughs", "Zorvathi has fever", "Kelubrin has fever", "she has fever"] * 2
    patients = ["a", "b", "c", "d", "a", "b", "c", "d"]
    learned = set(train_unigram(texts, 100, patients).get_vocab())
    assert {"▁fever", "▁has"} <= learned
    assert not any("Zorv" in piece or "Kelu" in piece for piece in learned)
    assert any("Kelu" in piece for piece in train_unigram(texts * 2, 100).get_vocab())  # each text another patient's
