"""Tokenizers that would hang, grow or panic are refused in one line before they see a text."""

import copy
import json

import pytest

from remind_jax.data.kinds import foreign_tokenizers, text
from remind_jax.errors import UserError

TEXTS = ["fever and cough", "no fever", "cough and pain", "pain and fever"] * 5


@pytest.fixture(scope="module")
def sound():
    return json.loads(text.train_unigram(TEXTS, 40).to_str())


def split(pattern):
    return {"pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}}


def replace(by, times=1, pattern=None):
    one = {"type": "Replace", "pattern": pattern or {"String": "e"}, "content": by}
    return {"normalizer": {"type": "Sequence", "normalizers": [one] * times}}


SPECIAL = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}}
ATTACKS = {
    "a search without end": (split({"Regex": "(a+)+$"}), "no published tokenizer"),
    "another": (replace(" ", pattern={"Regex": "(x+x+)+y"}), "no published tokenizer"),
    "an expression that is none": (split({"Regex": "("}), "no published tokenizer"),
    "an expression that is a list": (split({"Regex": ["a"]}), "no published tokenizer"),
    "replacements that grow": (replace("e" * 1000, times=3), "64 times longer"),
    "a special token that is not there": (
        {"post_processor": SPECIAL | {"single": [{"SpecialToken": {"id": "Q", "type_id": 0}}]}},
        "encodes no text",
    ),
    "no model": ({"model": None}, "model is no mapping"),
    "another model": ({"model": {"type": "Unigram", "unk_id": 99999, "vocab": [["a", 0.0]]}}, "encodes no text"),
    "no unknown token": ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}}, "encodes no text"),
    "words that are none": (
        {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "#", "vocab": {"a": 0}}},
        "encodes no text",
    ),
}


def test_a_sound_one_is_taken_as_it_is(sound):
    found = foreign_tokenizers.from_json(json.dumps(sound), "it")
    assert json.loads(found.to_str()) == sound


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_one_line(sound, name, capfd):
    change, says = ATTACKS[name]
    content = json.dumps(copy.deepcopy(sound) | change)
    with pytest.raises(UserError, match=rf"^it .*{says}") as caught:
        foreign_tokenizers.from_json(content, "it")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # of a panic in this process there would be a trace


def test_one_that_takes_for_ever_is_ended(sound, monkeypatch):
    monkeypatch.setattr(foreign_tokenizers, "TRIAL_SECONDS", 0.01)
    with pytest.raises(UserError, match="no text within"):
        foreign_tokenizers.from_json(json.dumps(sound), "it")


def test_a_folder_of_somebody_is_tried_before_transformers_opens_it(sound, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(json.dumps(sound | split({"Regex": "(a+)+$"})), encoding="utf-8")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(UserError, match="no published tokenizer"):
        foreign_tokenizers.load(str(tmp_path))


def test_a_panic_that_no_trial_has_shown_is_one_line():
    class PanicException(BaseException):
        pass

    class Tokenizer:
        def encode_batch_fast(self, texts):
            raise PanicException

    with pytest.raises(UserError, match="fails at some of these texts"):
        foreign_tokenizers.encode(Tokenizer(), ["a"])


def test_a_stop_by_the_user_passes():
    class Tokenizer:
        def encode_batch_fast(self, texts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        foreign_tokenizers.encode(Tokenizer(), ["a"])
