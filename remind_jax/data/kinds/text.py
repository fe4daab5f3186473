"""Free text: a subword tokenizer, trained on given texts or pretrained."""

import collections
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data.files import Look, load
from remind_jax.data.findings import FileRecord
from remind_jax.data.inputs import EOS, PAD, SPECIAL, UNK, padded, read_text
from remind_jax.data.kinds import foreign_tokenizers
from remind_jax.data.kinds.kind import BY_LENGTH, FitOptions, FittedKind, Guess, Kind, Rows, file_content, strings_of
from remind_jax.data.schema import InputSpec, Modality
from remind_jax.errors import UserError, did_you_mean

MAX_TRAINING_TEXTS = 20_000
MOST_TOKENS = 2**20  # of a text in a model that others have made
LEAST_PATIENTS = 3  # who must have used a word for it to be learned
SHORT_TEXT = 64  # characters; shorter texts ("stable overnight") are equal by chance
_LONGEST_TEXTS = 512
_AT_ONCE = 16  # texts, whose encodings take a hundred times their room
_RUNNING = r"\s|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}，。、；：]{5,}"


class FittedText(FittedKind):
    """A subword tokenizer: a Unigram model fitted on the given texts, or a pretrained one."""

    def __init__(self, tokenizer: Any, length: int):
        """Takes a `tokenizers.Tokenizer`, which is made to cut texts to `length` ids, its model's eos among them."""
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        self.tokenizer, self.length = tokenizer, length

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        max_tokens: int,
        vocabulary: int,
        pretrained: str = "",
        patients: Sequence[str] | None = None,
    ) -> "FittedText":
        """Fits on texts of rows that have the modality, or loads `pretrained`; `length` is what they need."""
        tokenizer = foreign_tokenizers.load(pretrained) if pretrained else train_unigram(texts, vocabulary, patients)
        _as_written(tokenizer).no_padding()
        tokenizer.enable_truncation(max_tokens)
        # The longest texts are taken for those of the most ids: encoding every text just to count would take minutes.
        longest, length = sorted(texts, key=len, reverse=True)[:_LONGEST_TEXTS], 1
        for start in range(0, len(longest), _AT_ONCE):
            found = foreign_tokenizers.encode(tokenizer, longest[start : start + _AT_ONCE])
            length = max(length, *map(len, found))
            if length == max_tokens:  # long notes need no more
                break
        return cls(tokenizer, length)

    @property
    def spec(self) -> InputSpec:
        return TEXT.spec((self.length,), self.tokenizer.get_vocab_size())

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """Returns ids, then pad, int32 [n, t]."""
        return padded(foreign_tokenizers.encode(self.tokenizer, raw[name].tolist()), self.length)

    def example(self, modality: Modality) -> dict[str, Any]:
        """Returns a few whole words of the vocabulary; nothing where texts are in files."""
        pieces = sorted(self.tokenizer.get_vocab(), key=self.tokenizer.token_to_id)
        words = [piece[1:] for piece in pieces if piece[:1] in ("\u2581", "\u0120") and piece[1:].isalpha()]
        text = " ".join([word for word in words if len(word) > 2][:8]) or "text"
        return {} if modality.stored == "file" else {modality.columns[0]: text}

    def plain(self, values: np.ndarray) -> Any:
        return bag(values, self.spec.vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole tokenizer for JSON, so that a model needs no other file."""
        return {"length": self.length, "tokenizer": json.loads(self.tokenizer.to_str())}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FittedText":
        if not isinstance(content["length"], int) or not 0 < content["length"] <= MOST_TOKENS:
            raise ValueError("length")
        text = json.dumps(content["tokenizer"])
        return cls(_as_written(foreign_tokenizers.from_json(text, "the tokenizer")), content["length"])


class Text(Kind):
    """Text in cells or in UTF-8 files."""

    name = "text"
    encoder = "text"
    dtype = np.dtype(np.int32)
    keys = ("column", "stored")
    optional = ("stored",)
    forms = "UTF-8 text, not blank, up to 64 MiB"
    fitted = FittedText

    def content(self, modality: Modality, table: pl.DataFrame, records: Mapping[str, FileRecord]) -> pl.Series:
        texts = table[modality.columns[0]]
        if modality.stored == "file":
            return file_content(texts, records, SHORT_TEXT + 1)
        return texts.set((texts.str.len_chars() <= SHORT_TEXT).fill_null(True), None)

    def look(self, path: pathlib.Path, modality: Modality, thorough: bool) -> Look:
        read_text(path)
        return Look()

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Returns the texts, object [n] of str, '' where missing."""
        texts = rows.cells(modality.columns[0]).to_list()
        if modality.stored == "file":
            texts = [None if path is None else load(rows.root, path, read_text) for path in texts]
        return {modality.name: strings_of(texts)}

    def check_options(self, options: FitOptions, names: list[str]) -> None:
        check_lengths(options)
        for name in {} if isinstance(options.tokenizer, str) else options.tokenizer:
            if name not in names:
                raise UserError(f"tokenizer: {name!r} is not a text modality{did_you_mean(name, names)}")

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedText:
        whole, texts = options.tokenizer, self.decode(modality, rows)[modality.name].tolist()
        pretrained = whole if isinstance(whole, str) else whole.get(modality.name, "")
        patients = rows.cells(rows.patient).to_list()
        return FittedText.fit(texts, options.max_tokens, options.vocabulary, pretrained, patients)

    def guess(self, column: pl.Series) -> Guess | None:
        """Looks for blanks between words, or for the running text of languages without blanks, in most cells."""
        is_text = column.dtype == pl.String and column.str.contains(_RUNNING).mean() > 0.5
        return Guess(BY_LENGTH, "text") if is_text else None


TEXT = Text()


def check_lengths(options: FitOptions) -> None:
    """Refuses limits of ids that leave no room for one; for every kind whose input is ids."""
    if options.max_tokens < 2 or options.vocabulary < len(SPECIAL) + 1:
        given = f"{options.max_tokens}, {options.vocabulary}"
        raise UserError(f"max_tokens must be at least 2 and vocabulary at least 4: {given}")


def bag(ids: np.ndarray, vocabulary: int) -> Any:
    """Counts ids in each row, [n, t] -> float32 [n, vocabulary], sparse but of JAX; padding and end do not count."""
    from scipy import sparse

    counted = (ids != PAD) & (ids != EOS)
    if not isinstance(ids, np.ndarray):
        xp, rows = ids.__array_namespace__(), ids.shape[0]
        return xp.zeros((rows, vocabulary)).at[xp.arange(rows)[:, None], ids].add(counted.astype(np.float32))
    rows, places = np.nonzero(counted)
    counts = np.ones(len(rows), np.float32), (rows, ids[rows, places])
    return sparse.coo_matrix(counts, shape=(len(ids), vocabulary)).tocsr()


def train_unigram(texts: Sequence[str], vocabulary: int, patients: Sequence[str] | None = None) -> Any:
    """Trains a Unigram tokenizer in T5's form (pad 0, eos 1, unk 2; NFKC; runs of white space as one "▁"; case kept).

    The pieces are those of a byte-pair training, whose counts are integers, and a piece's score is the logarithm of
    how often that segmentation uses it. The Unigram trainer of `tokenizers` sums floats in hash order and gives other
    scores in every process.

    Pieces end up in models, where names out of notes have no place: words in the texts of fewer than `LEAST_PATIENTS`
    patients take no part. Without `patients`, which tells whose each text is, every text is another patient's. There
    are at most `vocabulary` pieces.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

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
    characters: collections.Counter[str] = collections.Counter()
    for text in texts:
        characters.update(text)
    ranked = sorted(characters, key=lambda c: (-characters[c], c))
    texts = [text.translate(dict.fromkeys(map(ord, ranked[max(1, size // 2) :]))) for text in texts]
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=16, min_frequency=2)
    pairs.train_from_iterator(texts, trainer)
    pieces = sorted(pairs.get_vocab().items(), key=lambda item: item[1])
    counts = np.zeros(len(pieces), np.int64)
    for used in _ids(pairs, texts):
        counts += np.bincount(used, minlength=len(pieces))
    # Pieces that only served as steps to longer ones stay usable, at the cost of half an occurrence.
    scores = np.log(np.maximum(counts, 0.5) / max(counts.sum(), 1.0))
    table = [(piece, 0.0) for piece in SPECIAL]
    table += [(piece, round(float(scores[i]), 6)) for piece, i in pieces if piece not in SPECIAL]
    tokenizer = Tokenizer(models.Unigram(table, unk_id=UNK))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(list(SPECIAL))
    eos = SPECIAL[EOS]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, EOS)])
    return _as_written(tokenizer)


def _ids(tokenizer: Any, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yields the ids of texts, int64, without those that a tokenizer adds; of long notes few are held at a time."""
    for start in range(0, len(texts), _AT_ONCE):
        part = tokenizer.encode_batch_fast(texts[start : start + _AT_ONCE], add_special_tokens=False)
        yield np.concatenate([np.asarray(encoding.ids, np.int64) for encoding in part])


def _without_rare_words(texts: Sequence[str], patients: Sequence[object]) -> list[str]:
    """Leaves out the words that only few patients have."""
    owners: dict[str, set[object]] = collections.defaultdict(set)
    for text, patient in zip(texts, patients, strict=True):
        for word in text.split(" "):
            if len(owners[word]) < LEAST_PATIENTS:
                owners[word].add(patient)
    return [" ".join(word for word in text.split(" ") if len(owners[word]) == LEAST_PATIENTS) for text in texts]


def _as_written(tokenizer: Any) -> Any:
    """Makes "</s>" written in a note ordinary text."""
    tokenizer.encode_special_tokens = True
    return tokenizer
