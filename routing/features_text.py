"""A text in numbers: what can be counted in it, and its hashed word and character n-grams.

The request (the last user turn) stays the same through all steps of an agent's run, so what was
made of the latest texts is kept.
"""

from __future__ import annotations

import math
import re
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

TEXT_COLUMNS = (
    "characters",
    "words",
    "lines",
    "sentences",
    "longest_sentence_words",
    "last_sentence_words",
    "word_characters",
    "distinct_word_share",
    "numbers",
    "distinct_numbers",
    "longest_number_digits",
    "digit_share",
    "capital_share",
    "foreign_share",
    "punctuation_share",
    "questions",
    "quotes",
    "brackets",
    "code_marks",
    "money_and_percent",
)
"""Of `count_text`. Shares, and characters per word, are as they are; all others log(1 + count)."""

WORD_COLUMNS, CHARACTER_COLUMNS = 1024, 1024
"""Columns of the hashed n-grams: of 1 and 2 words, and of 3 to 5 bytes."""

LONGEST = 2000
"""Characters of a text that are looked at: of a longer one both ends, half each. A document that
was pasted in says little of what is asked, and would take milliseconds."""

_KEPT = 256
"""Texts; some 8 KB each."""

_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*|[^\w\s]")
_SENTENCE_END = re.compile(r"[.!?。！？](?:\s+|$)|\n+")
_LONG_NUMBER = re.compile(r"\d+(?:,\d{3})*")

_CLASSES = (
    b"0123456789",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    bytes(range(128, 256)),
    b".,;:!?-()\"'/",
    b"?",
    b"\"'",
    b"()[]",
    b"{}<>=`_\\;#|",
    b"$%",
    b"\n",
)
_MASKS = np.array([[byte in members for byte in range(256)] for members in _CLASSES], float)
_MOST = 3 * (4 * LONGEST + 3)
"""N-grams of a text: 3 from each of its bytes, of which a character has at most 4."""

_DAMPED = np.array(
    [math.copysign(math.log1p(abs(x)), x) for x in range(-_MOST, _MOST + 1)], np.float32
)
"""log(1 + count) with the count's sign, for every count that there can be."""

_UNEVEN = np.uint32(0x9E3779B1)
"""An odd number with mixed bits (2^32 over the golden ratio), to multiply hashes by."""


@lru_cache(maxsize=_KEPT)
def text_columns(text: str) -> FloatArray:
    """`count_text`, then the hashed words, then the hashed characters; not to be written to."""
    row = np.concatenate((count_text(text), hash_words(text), hash_characters(text)))
    row.flags.writeable = False
    return row


def count_text(text: str) -> FloatArray:
    """What `TEXT_COLUMNS` name, of a text of any length: shape (20,)."""
    length = len(text)
    text = _both_ends(text)
    data = np.frombuffer(text.encode(errors="replace"), np.uint8)
    classes = (_MASKS @ np.bincount(data, minlength=256)).tolist()
    shares = [count / max(1, len(data)) for count in classes[:4]]
    tokens = _TOKEN.findall(text.lower())
    words = [token for token in tokens if token[0].isalpha()]
    numbers = [token for token in tokens if token[0].isdecimal()]
    sentences = [part.count(" ") + 1 for part in _SENTENCE_END.split(text) if part.strip()]
    digits = (len(found.replace(",", "")) for found in _LONG_NUMBER.findall(text))
    ends = (max(sentences), sentences[-1]) if sentences else (0, 0)
    first = (length, len(words), classes[9], len(sentences), *ends)
    mean = sum(map(len, words)) / max(1, len(words))
    distinct = len(set(words)) / max(1, len(words))
    of_numbers = (len(numbers), len(set(numbers)), max(digits, default=0))
    log = math.log1p
    row = (*map(log, first), mean, distinct, *map(log, of_numbers), *shares)
    return np.array((*row, *map(log, classes[4:9])), np.float32)


def hash_words(text: str) -> FloatArray:
    """Signed hashed counts of 1 and 2 words, damped by log(1 + count): shape (1024,).

    Case does not count and every digit is a 0, so that 16 and 27 are one word. The sign keeps the
    sum of two n-grams that share a column unbiased (Weinberger et al., arXiv 0902.2206).
    """
    tokens = _TOKEN.findall(_zeros(_both_ends(text).lower()))
    hashes = [zlib.crc32(token.encode(errors="replace")) for token in tokens]
    one = np.array(hashes, np.uint32)
    two = one[:-1] * _UNEVEN ^ one[1:]
    return _counts(np.concatenate((one, two)), WORD_COLUMNS)


def hash_characters(text: str) -> FloatArray:
    """The same of 3 to 5 bytes of the text in UTF-8, in lower case: shape (1024,)."""
    data = np.frombuffer(f" {_zeros(_both_ends(text).lower())} ".encode(errors="replace"), np.uint8)
    wide = data.astype(np.uint32)
    if len(wide) < 5:
        return np.zeros(CHARACTER_COLUMNS, np.float32)
    three = wide[:-2] | wide[1:-1] << 8 | wide[2:] << 16
    four = three[:-1] | wide[3:] << 24
    five = four[:-1] * _UNEVEN ^ wide[4:]
    return _counts(np.concatenate((three, four, five)), CHARACTER_COLUMNS)


def _counts(hashes: NDArray[np.uint32], columns: int) -> FloatArray:
    mixed = _mixed(hashes)
    signs = 1.0 - 2.0 * (mixed >> np.uint32(31))
    sums = np.bincount(mixed % np.uint32(columns), signs, columns).astype(np.intp)
    damped: FloatArray = _DAMPED[sums + _MOST]
    return damped


def _mixed(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Every bit of the result depends on all bits (the finalizer of MurmurHash3)."""
    half = np.uint32(16)
    hashes = (hashes ^ hashes >> half) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ hashes >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return hashes ^ hashes >> half


_DIGITS = str.maketrans("123456789", "0" * 9)


def _zeros(text: str) -> str:
    return text.translate(_DIGITS)


def _both_ends(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n{text[-half:]}"
