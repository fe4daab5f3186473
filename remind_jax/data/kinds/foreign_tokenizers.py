"""Tokenizers that others have made: what they may hold, and a trial in a process of its own.

A tokenizer.json is a program: its regular expressions can search for hours, its replacements can write out terabytes,
and what contradicts itself ends `tokenizers` in a panic. Expressions are those of published tokenizers, replacements
keep texts about as long as they are, and the trial, with limits of time and memory, encodes some texts.
"""

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from remind_jax.data.inputs import PAD
from remind_jax.errors import UserError
from remind_jax.runtime import records

TRIAL_SECONDS = 30
_MOST = 2**28  # bytes of a tokenizer
_LONGER = 64  # times that replacements may make a text longer
_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "model")
REGEXES = frozenset(
    (
        *(r"\s+", " {2,}", r"\s{2,}|[\n\r\t]", r"[\n\r\t]", r"\n", "^▁+$", r"\A▁", r"\A +| +\z", " +▁", r"\s", "[0-9]"),
        *("[0-9][0-9][0-9]", "[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "\\p{N}", "\\p{N}{1,3}", r"\d", r"\d{1,3}"),
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        *(
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            for digits in ("", "{1,3}")
        ),
    )
)
"""Regular expressions of published tokenizers: GPT-2, CLIP, T5, XLM-R, ALBERT, Falcon, Llama 3, Qwen 2 and others."""
# Reads a tokenizer and encodes what may be slow: long runs of one sign, and signs of many scripts.
_TRIAL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_str(sys.stdin.buffer.read().decode())
tokenizer.no_padding()
tokenizer.enable_truncation(512)
texts = ["", "a", " ", "a" * 999, " " * 999, "1" * 999, "\\n" * 99, "aab" * 333, "<s></s><pad>"]
texts += ["\\u00e9\\u4e2d\\U0001f600\\x00\\x1b"]
texts += ["Pt. denies chest pain; BP 120/80, WBC 7.5." + chr(i) for i in range(32, 0x3000, 7)]
for text in texts:
    tokenizer.encode(text)
tokenizer.encode_batch_fast(texts)
"""


def from_json(content: str, what: str) -> Any:
    """Returns the `tokenizers.Tokenizer` of a tokenizer.json; `what` names it in messages.

    Raises UserError: it holds what it may not, or the trial fails.
    """
    check(content, what)
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content)


def check(content: str, what: str) -> None:
    """Refuses (UserError) a tokenizer.json that holds what it may not, or whose trial fails."""
    tree = records.of_shape(content.encode("utf-8", "replace"), {"model": {}}, what, "take another tokenizer")
    longer = 1.0
    for node in _nodes([tree.get(name) for name in _SECTIONS]):
        pattern = node.get("Regex")
        if pattern is not None and (not isinstance(pattern, str) or pattern not in REGEXES):
            text = "has a regular expression of no published tokenizer, which might search for ever"
            raise UserError(f"{what} {text}: take another tokenizer")
        if node.get("type") == "Replace":
            replaced, by = node.get("pattern"), node.get("content")
            before = replaced.get("String") if isinstance(replaced, dict) else None
            longer *= max(1.0, len(str(by)) / len(before if isinstance(before, str) and before else "x"))
    if longer > _LONGER:
        raise UserError(f"{what} makes texts more than {_LONGER} times longer: take another tokenizer")
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL], input=content.encode(), capture_output=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{what} encodes no text within {TRIAL_SECONDS} s: take another tokenizer") from None
    if done.returncode:
        raise UserError(f"{what} cannot be used: it encodes no text; take another tokenizer")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yields the mappings of a tree, but for those of vocabularies, which hold words."""
    if isinstance(tree, dict):
        yield tree
        tree = [value for key, value in tree.items() if key not in ("vocab", "merges")]
    for each in tree if isinstance(tree, list) else ():
        yield from _nodes(each)


def load(name: str) -> Any:
    """Loads the `tokenizers.Tokenizer` of a local folder or a hub name; raises UserError unless its pad id is 0."""
    file = pathlib.Path(name) / "tokenizer.json"
    if file.exists():  # before anything else reads it; caches of the hub are made of links
        content = records.content(file, records.ANYWHERE, _MOST)
        check(content.decode("utf-8", "replace"), f"tokenizer {name!r}")
    from transformers import AutoTokenizer

    try:
        wrapped = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of `tokenizers` they have no type of their own
        reason = type(error).__name__
        raise UserError(f"tokenizer {name!r} cannot be loaded ({reason}): give a folder or a hub name") from None
    if not hasattr(wrapped, "backend_tokenizer"):
        raise UserError(f"tokenizer {name!r} has no fast form (tokenizer.json)")
    if wrapped.pad_token_id != PAD:
        raise UserError(f"tokenizer {name!r} pads with id {wrapped.pad_token_id}; models here need pad id 0")
    return from_json(wrapped.backend_tokenizer.to_str(), f"tokenizer {name!r}")


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of texts. Raises UserError: the tokenizer contradicts itself, as no trial has shown."""
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    except BaseException as error:
        if re.search("PanicException", type(error).__name__) or type(error) is Exception:
            raise UserError("the tokenizer fails at some of these texts: take another one") from None
        raise
