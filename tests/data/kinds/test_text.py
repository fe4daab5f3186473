"""Texts: files, tokenizers that are trained and tokenizers that are pretrained."""

import json
import subprocess
import sys

import numpy as np
import pytest

from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.text import EOS, PAD, UNK, train_unigram
from remind_jax.data.manifest import decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.reading import read_manifest
from remind_jax.errors import UserError
from tests.data.fitting import WORDS, encode, fit, text_manifest, texts
from tests.data.manifest_files import edit_table, with_modality, write_manifest, write_schema


def test_text_files_are_read_and_bad_ones_refused(tmp_path):
    folder = write_manifest(tmp_path, n=4)
    write_schema(folder, **with_modality("note", kind="text", column="note", stored="file"))
    (folder / "a.txt").write_bytes("\ufeffcafé".encode())
    edit_table(folder, note=["a.txt", "a.txt", None, "a.txt"])
    assert decode(read_manifest(folder), np.arange(4))["note"].tolist() == ["café", "café", "", "café"]
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "blank.txt").write_text(" \n")
    edit_table(folder, note=["a.txt", "latin.txt", None, "blank.txt"])
    with pytest.raises(UserError, match=r"E007.*2 cells \(rows 2, 4\)"):
        read_manifest(folder)


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


def test_words_of_few_patients_stay_out_of_the_vocabulary():
    texts = ["Zorvathi has fever, Zorvathi coughs", "Zorvathi has fever", "Kelubrin has fever", "she has fever"] * 2
    patients = ["a", "b", "c", "d", "a", "b", "c", "d"]
    learned = set(train_unigram(texts, 100, patients).get_vocab())
    assert {"▁fever", "▁has"} <= learned
    assert not any("Zorv" in piece or "Kelu" in piece for piece in learned)
    assert any("Kelu" in piece for piece in train_unigram(texts * 2, 100).get_vocab())  # each text another patient's
