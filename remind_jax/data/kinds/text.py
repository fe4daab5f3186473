"""Subword tokenizers: trained on given texts, or pretrained."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from remind_jax.errors import UserError

PAD, EOS, UNK = 0, 1, 2  # as in T5
SPECIAL = ("<pad>", "</s>", "<unk>")
MAX_TRAINING_TEXTS = 20_000
LEAST_PATIENTS = 3  # who must have used a word for it to be learned


def train_unigram(texts: Sequence[str], vocabulary: int, patients: Sequence[str] | None = None) -> Any:
    """A Unigram tokenizer in T5's form (pad 0, eos 1, unk 2; NFKC; runs of white space as one "▁"; case kept).

    The pieces are those of a byte-pair training, whose counts are integers, and a piece's score is the logarithm of
    how often that segmentation uses it. The Unigram trainer of `tokenizers` sums floats in hash order and gives other
    scores in every process.

    Pieces end up in checkpoints, where names out of notes have no place: words in the texts of fewer than
    `LEAST_PATIENTS` patients take no part.

    Args:
      texts: to train on.
      vocabulary: the most pieces.
      patients: whose each text is; without them every text is another patient's.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    # Metaspace knows only the blank; notes are full of line breaks.
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    # The model would take "</s>" written in a note for the end of the text.
    spelled = [normalizers.Replace(token, f"< {token[1:]}") for token in SPECIAL]
    normalizer = normalizers.Sequence([normalizers.NFKC(), blanks, *spelled, normalizers.Strip()])
    step = -(-len(texts) // MAX_TRAINING_TEXTS) or 1
    texts, patients = texts[::step], None if patients is None else patients[::step]
    texts = [normalizer.normalize_str(text) for text in texts]
    texts = _without_rare_words(texts, range(len(texts)) if patients is None else patients)
    pairs = Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
    pairs.pre_tokenizer = pre_tokenizers.Metaspace()
    size = vocabulary - len(SPECIAL)
    # Rare characters must not crowd out words; ties are broken here, as the trainer breaks them in hash order.
    characters = collections.Counter("".join(texts))
    ranked = sorted(characters, key=lambda c: (-characters[c], c))
    texts = [text.translate(dict.fromkeys(map(ord, ranked[max(1, size // 2) :]))) for text in texts]
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=16, min_frequency=2)
    pairs.train_from_iterator(texts, trainer)
    pieces = sorted(pairs.get_vocab().items(), key=lambda item: item[1])
    used = [encoding.ids for encoding in pairs.encode_batch_fast(texts, add_special_tokens=False)]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *used]).astype(np.int64), minlength=len(pieces))
    # Pieces that only served as steps to longer ones stay usable, at the cost of half an occurrence.
    scores = np.log(np.maximum(counts, 0.5) / max(counts.sum(), 1.0))
    table = [(piece, 0.0) for piece in SPECIAL]
    table += [(piece, round(float(scores[i]), 6)) for piece, i in pieces if piece not in SPECIAL]
    tokenizer = Tokenizer(models.Unigram(table, unk_id=UNK))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(list(SPECIAL))
    return plain(_with_eos(tokenizer))


def _without_rare_words(texts: Sequence[str], patients: Sequence[object]) -> list[str]:
    """Texts without words that only few patients have."""
    owners: dict[str, set[object]] = collections.defaultdict(set)
    for text, patient in zip(texts, patients, strict=True):
        for word in text.split(" "):
            if len(owners[word]) < LEAST_PATIENTS:
                owners[word].add(patient)
    return [" ".join(word for word in text.split(" ") if len(owners[word]) == LEAST_PATIENTS) for text in texts]


def _with_eos(tokenizer: Any) -> Any:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIAL[EOS]}", special_tokens=[(SPECIAL[EOS], EOS)]
    )
    return tokenizer


def plain(tokenizer: Any) -> Any:
    """Makes "</s>" written in a note ordinary text."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_pretrained(name: str) -> Any:
    """The `tokenizers.Tokenizer` of a local folder or a hub name. Raises UserError unless its pad id is 0."""
    from transformers import AutoTokenizer

    try:
        wrapped = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        reason = type(error).__name__
        raise UserError(f"tokenizer {name!r} cannot be loaded ({reason}): give a folder or a hub name") from None
    if not hasattr(wrapped, "backend_tokenizer"):
        raise UserError(f"tokenizer {name!r} has no fast form (tokenizer.json)")
    if wrapped.pad_token_id != PAD:
        raise UserError(f"tokenizer {name!r} pads with id {wrapped.pad_token_id}; models here need pad id 0")
    return plain(wrapped.backend_tokenizer)
